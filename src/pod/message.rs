//! What the worker of a pod is told: by the manager, the runtime, and its own tasks.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, oneshot};

use super::probe;
use crate::image::{Image, ImageError};
use crate::runtime::ExitRecord;

/// What a worker is told.
#[derive(Debug)]
pub enum Message {
    /// The newest spec (or deletion time) of the pod.
    Update(Box<Pod>),
    /// The pod is gone from its source: stop and forget it.
    Removed {
        /// Somebody took it from the API server while it still runs here.
        forced: bool,
    },
    /// The machine is about to go down: end all processes, and keep the rest for when it is back.
    Halt,
    /// The API server does not answer: the pod may go on without it.
    Unreached,
    /// Somebody deleted the API server's copy of this static pod.
    MirrorChanged,
    /// A container ended.
    Exited {
        /// Container id.
        container: String,
        /// How.
        exit: ExitRecord,
    },
    /// The shim died.
    SandboxLost {
        /// Sandbox id.
        sandbox: String,
    },
    /// A postStart hook has ended.
    PostStarted {
        /// Container id.
        container: String,
        /// Why it failed.
        result: Result<(), String>,
    },
    /// The answer of a probe has changed.
    Probed {
        /// Container id.
        container: String,
        /// Which probe.
        kind: probe::Kind,
        /// Its answer.
        success: bool,
    },
    /// Stop these runs (container ids); `grace` is the pod's own when unset.
    Stop {
        /// Container ids.
        containers: Vec<String>,
        /// Time between SIGTERM and SIGKILL.
        grace: Option<Duration>,
    },
    /// Stop all containers and remove the sandbox, then go on.
    Renew {
        /// Time between SIGTERM and SIGKILL.
        grace: Option<Duration>,
        /// Told when the sandbox is gone.
        done: oneshot::Sender<Result<(), String>>,
    },
    /// The import of archives this worker waited for has ended.
    Imported {
        /// Container name.
        container: String,
    },
    /// This node can or will not go on with the pod.
    Evict {
        /// Such as `Evicted`.
        reason: &'static str,
        /// For the pod's status.
        message: String,
        /// Time between SIGTERM and SIGKILL.
        grace: Duration,
    },
    /// Remove what ended containers have written; dropped when done.
    Clean(mpsc::Sender<()>),
    /// A pull this worker asked for has ended. Boxed: a mailbox has room for messages of the largest kind.
    Pulled(Box<Pulled>),
}

impl Message {
    /// True for one after which nothing of the pod is to be made any more.
    pub fn ends_pod(&self) -> bool {
        match self {
            Self::Update(pod) => pod.metadata.deletion_timestamp.is_some(),
            Self::Removed { .. } | Self::Halt | Self::Evict { .. } => true,
            _ => false,
        }
    }
}

/// The end of a pull.
#[derive(Debug)]
pub struct Pulled {
    /// Container name.
    pub container: String,
    /// What was asked for.
    pub image: String,
    /// The image, or why there is none.
    pub result: Result<Image, ImageError>,
    /// How long that took.
    pub took: Duration,
    /// Why its programs may fail on this machine.
    pub doubt: Option<String>,
}

// hundreds of workers have a mailbox each
const _: () = assert!(size_of::<Message>() <= 80);
