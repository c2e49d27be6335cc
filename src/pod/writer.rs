//! Writes a pod's status to the API server when it changes; changes during a write are coalesced, none is lost. A static
//! pod's status goes to its mirror, which is made, and made again when somebody deletes it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::PodExt;
use super::backoff::Backoff;
use crate::cluster::{self, ClusterError};

const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The newest status, and how often the mirror was seen to change.
#[derive(Clone, Default)]
struct Wanted {
    pod: Option<Arc<Pod>>,
    mirror: u64,
}

/// The status writer of one pod.
pub(super) struct StatusWriter {
    client: Option<kube::Client>,
    wanted: watch::Sender<Wanted>,
    task: Option<JoinHandle<()>>,
}

impl StatusWriter {
    /// A writer; without a client statuses stay on this node.
    pub fn new(client: Option<kube::Client>) -> Self {
        let (wanted, changes) = watch::channel(Wanted::default());
        let task = client.clone().map(|client| tokio::spawn(write_all(client, changes)));
        Self { client, wanted, task }
    }

    /// Hands over a newer status.
    pub fn put(&self, pod: Arc<Pod>) {
        self.wanted.send_modify(|w| w.pod = Some(pod));
    }

    /// Somebody deleted the mirror: it is made again.
    pub fn mirror_changed(&self) {
        self.wanted.send_modify(|w| w.mirror += 1);
    }

    /// Waits for the last status to be written, then deletes the pod from the API server unless it is gone already.
    /// The mirror of a static pod goes in any case.
    pub async fn finish(self, pod: &Pod, gone: bool) {
        let Self { client, wanted, task } = self;
        let (Some(client), Some(task)) = (client, task) else { return };
        if gone {
            task.abort();
            if pod.is_static() {
                delete_mirror(&client, pod).await;
            }
            return;
        }
        drop(wanted);
        if task.await.is_err() {
            warn!(pod = pod.name(), "status writer ended early");
        }
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        while let Err(error) = cluster::delete_pod(&client, pod.ns(), pod.name(), pod.uid()).await {
            if error.is_not_found() || error.is_conflict() {
                return;
            }
            debug!(pod = pod.name(), %error, "pod not deleted yet");
            tokio::time::sleep(backoff.fail(Instant::now())).await;
        }
    }
}

/// One try: a mirror that stays is deleted when the agent next sees it without its static pod.
async fn delete_mirror(client: &kube::Client, pod: &Pod) {
    if let Err(error) = cluster::delete_mirror(client, pod).await {
        debug!(pod = pod.name(), %error, "mirror pod not deleted");
    }
}

/// The uid a pod has on the API server.
async fn api_uid(client: &kube::Client, pod: &Pod, mirror: &mut Option<String>) -> Result<String, ClusterError> {
    if !pod.is_static() {
        return Ok(pod.uid().to_owned());
    }
    if mirror.is_none() {
        *mirror = Some(cluster::ensure_mirror(client, pod).await?);
    }
    Ok(mirror.clone().unwrap_or_default())
}

async fn write_all(client: kube::Client, mut changes: watch::Receiver<Wanted>) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    let mut pending = false;
    let (mut mirror, mut seen) = (None, 0);
    loop {
        if !pending && changes.changed().await.is_err() {
            return;
        }
        let wanted = changes.borrow_and_update().clone();
        if wanted.mirror != seen {
            seen = wanted.mirror;
            mirror = None;
        }
        let Some(pod) = wanted.pod else { continue };
        let written = async {
            let uid = api_uid(&client, &pod, &mut mirror).await?;
            cluster::patch_status(&client, &pod, &uid).await
        };
        match written.await {
            Ok(_) => {
                pending = false;
                backoff.reset();
            }
            Err(error) if !pod.is_static() && (error.is_not_found() || error.is_conflict()) => pending = false,
            Err(error) => {
                debug!(pod = pod.name(), %error, "status not written yet");
                mirror = None;
                pending = true;
                let delay = backoff.fail(Instant::now());
                // a pod that ends meanwhile need not wait: its last try is made at once
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    ended = changes.changed() => if ended.is_err() && pod.is_static() { return },
                }
            }
        }
    }
}
