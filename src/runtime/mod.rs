//! Containers: the agent's handle on pod sandboxes and their containers.
//!
//! Owns the shim and its protocol, the OCI spec, cgroups, CRI logs and exit records. Knows nothing of the API server:
//! the pod room hands in plain values ([`SandboxSpec`], [`ContainerSpec`]) and receives [`RuntimeEvent`]s.

mod cgroup;
mod connection;
mod cri_log;
mod descriptors;
mod device_nodes;
mod limits;
mod log_reader;
mod protocol;
mod rooted;
mod seccomp;
pub mod shim;
mod spec;
mod store;
mod streams;
mod teardown;
mod types;
mod usage;
mod user;

pub use cgroup::Hierarchies;
pub use cri_log::{Rotation, Stream as LogStream, rotated_files};
pub use log_reader::{LogOptions, last_lines, read_log};
pub use protocol::Wanted;
pub use seccomp::section as seccomp_profile;
pub use streams::{Ending, Reader, Streams, Terminal};
pub use types::*;
pub use usage::{Interface, Usage, interfaces};
pub use user::resolve_user;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::timeout;

use connection::Connection;
use protocol::{Reply, Request, StreamRequest};
use store::SandboxFile;

/// Events waiting for the pod room; when it is full the shims wait.
const EVENTS: usize = 1024;
/// How long a shim may take to become ready.
const START_TIME: Duration = Duration::from_secs(20);
/// How long a shim may take to end itself before it is killed.
const SHUTDOWN_TIME: Duration = Duration::from_secs(1);

/// The agent's handle on all sandboxes; cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    config: RuntimeConfig,
    sandboxes: PathBuf,
    hierarchies: Hierarchies,
    connections: Mutex<HashMap<String, Arc<Connection>>>,
    events: mpsc::Sender<RuntimeEvent>,
}

impl Runtime {
    /// Prepares the state directory and the root cgroup. Events arrive on the returned channel.
    pub fn open(config: RuntimeConfig) -> Result<(Self, mpsc::Receiver<RuntimeEvent>), RuntimeError> {
        let sandboxes = config.state_dir.join("sandboxes");
        fs::create_dir_all(&sandboxes).map_err(io(format!("creating {}", sandboxes.display())))?;
        let hierarchies = Hierarchies::detect().map_err(io("finding cgroups; mount one of version 1 or 2".into()))?;
        let root = &config.cgroup_root;
        hierarchies.create(root).map_err(io(format!("creating the cgroup {root}; is the agent root?")))?;
        let (events, receiver) = mpsc::channel(EVENTS);
        let inner = Inner { config, sandboxes, hierarchies, connections: Mutex::default(), events };
        Ok((Self { inner: Arc::new(inner) }, receiver))
    }

    /// Finds the sandboxes of an earlier agent, connects to living shims and returns what each holds.
    pub async fn recover(&self) -> Result<Vec<SandboxInfo>, RuntimeError> {
        let dir = &self.inner.sandboxes;
        let entries = fs::read_dir(dir).map_err(io(format!("reading {}", dir.display())))?;
        let mut found = Vec::new();
        for dir in entries.flatten().map(|e| e.path()) {
            let file = match SandboxFile::read(&dir) {
                Ok(file) => file,
                Err(e) => {
                    // Cut off before its shim was started: nothing runs there.
                    tracing::warn!("removing the unreadable sandbox {}: {e}", dir.display());
                    if let Err(e) = teardown::remove_dir(&dir) {
                        tracing::warn!("{e}");
                    }
                    continue;
                }
            };
            match self.recover_one(&dir, &file).await {
                Ok(info) => found.push(info),
                Err(e) => {
                    tracing::warn!("sandbox {} counts as lost: {e}", file.spec.id);
                    found.push(SandboxInfo {
                        alive: false,
                        created_at: file.created_at,
                        containers: store::read_infos(&dir),
                        spec: file.spec,
                    });
                }
            }
        }
        found.sort_by_key(|s| s.created_at);
        Ok(found)
    }

    async fn recover_one(&self, dir: &Path, file: &SandboxFile) -> Result<SandboxInfo, RuntimeError> {
        let connection = self.connect(dir, &file.spec).await?;
        match connection.ask(Request::Info).await? {
            Reply::Info(info) => Ok(*info),
            other => Err(unexpected(&other)),
        }
    }

    async fn connect(&self, dir: &Path, spec: &SandboxSpec) -> Result<Arc<Connection>, RuntimeError> {
        let shim = store::living_shim(dir).ok_or_else(|| RuntimeError::Unreachable {
            sandbox: spec.id.clone(),
            message: "its process is gone".into(),
        })?;
        let connection = Connection::open(dir, spec, shim, self.inner.events.clone()).await?;
        let before = self.connections().insert(spec.id.clone(), connection.clone());
        if let Some(before) = before {
            before.removing.store(true, Ordering::Release);
        }
        Ok(connection)
    }

    /// Starts a shim with its namespaces and the pod cgroup; returns when both are ready.
    pub async fn create_sandbox(&self, spec: SandboxSpec) -> Result<(), RuntimeError> {
        let id = spec.id.clone();
        let dir = self.sandbox_dir(&id)?;
        if self.connections().contains_key(&id) || store::living_shim(&dir).is_some() {
            return Err(RuntimeError::Shim(format!("sandbox {id} exists already; remove it first")));
        }
        let file = SandboxFile {
            spec: spec.clone(),
            cgroup_root: self.inner.config.cgroup_root.clone(),
            created_at: store::now(),
        };
        let made = async {
            fs::create_dir_all(&dir).map_err(io(format!("creating {}", dir.display())))?;
            file.write(&dir).map_err(io(format!("writing the sandbox file in {}", dir.display())))?;
            self.start_shim(&id, &dir).await?;
            self.connect(&dir, &spec).await
        };
        if let Err(e) = made.await {
            if let Err(e) = self.remove_sandbox(&id).await {
                tracing::warn!("removing the failed sandbox {id}: {e}");
            }
            return Err(e);
        }
        Ok(())
    }

    async fn start_shim(&self, id: &str, dir: &Path) -> Result<(), RuntimeError> {
        let unreachable = |message: String| RuntimeError::Unreachable { sandbox: id.to_owned(), message };
        let mut command = Command::new(&self.inner.config.shim_exe);
        command.arg("shim").arg("--dir").arg(dir).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let exe = &self.inner.config.shim_exe;
        // The shim proper is a grandchild: its parent ends at once, and standard output ends when it is ready.
        let started = async {
            let mut child = command.spawn().map_err(|e| format!("starting {}: {e}", exe.display()))?;
            let mut said = String::new();
            if let Some(mut out) = child.stdout.take() {
                out.read_to_string(&mut said).await.map_err(|e| format!("waiting for its start: {e}"))?;
            }
            child.wait().await.map_err(|e| format!("waiting for its start: {e}"))?;
            Ok(said)
        };
        let said = match timeout(START_TIME, started).await {
            Ok(said) => said.map_err(unreachable)?,
            Err(_) => return Err(unreachable(format!("not ready within {} s", START_TIME.as_secs()))),
        };
        match said.trim() {
            "ready" => Ok(()),
            "" => Err(unreachable(format!("it ended at once; see {}", dir.join(store::LOG).display()))),
            message => Err(unreachable(message.to_owned())),
        }
    }

    /// `/proc/<shim>/ns/net` or a bind mount of it: valid while the sandbox lives.
    pub fn netns_path(&self, sandbox: &str) -> Option<PathBuf> {
        Some(PathBuf::from(format!("/proc/{}/ns/net", self.shim(sandbox)?)))
    }

    /// The process that holds a living sandbox's namespaces.
    pub fn shim(&self, sandbox: &str) -> Option<i32> {
        self.connections().get(sandbox).map(|c| c.shim)
    }

    /// A link to the user namespace of a sandbox that has one of its own.
    pub fn user_namespace(&self, sandbox: &str) -> Option<PathBuf> {
        self.sandbox_dir(sandbox).ok().map(|dir| dir.join(store::USER_NAMESPACE))
    }

    /// What a sandbox holds now.
    pub async fn inspect(&self, sandbox: &str) -> Result<SandboxInfo, RuntimeError> {
        match self.ask(sandbox, Request::Info).await? {
            Reply::Info(info) => Ok(*info),
            other => Err(unexpected(&other)),
        }
    }

    /// A cgroup below the agent's cgroup root, as `/proc/<pid>/cgroup` writes it.
    pub fn cgroup_path(&self, cgroup: &str) -> String {
        format!("/{}/{}", self.inner.config.cgroup_root.trim_matches('/'), cgroup.trim_matches('/'))
    }

    /// The living sandbox of a pod.
    pub fn sandbox_of(&self, pod_uid: &str) -> Option<String> {
        let connections = self.connections();
        let mut living = connections.iter().filter(|(_, c)| !c.removing.load(Ordering::Acquire));
        living.find(|(_, c)| c.pod_uid() == pod_uid).map(|(id, _)| id.clone())
    }

    /// Figures of a cgroup below the agent's cgroup root; `None` when there is none.
    pub fn usage(&self, cgroup: &str) -> Option<Usage> {
        self.inner.hierarchies.usage(&format!("{}/{cgroup}", self.inner.config.cgroup_root))
    }

    /// Sets limits of a cgroup below the agent's cgroup root, which is created when missing.
    pub fn limit(&self, cgroup: &str, resources: &Resources) -> Result<(), RuntimeError> {
        let (path, hierarchies) = (format!("{}/{cgroup}", self.inner.config.cgroup_root), &self.inner.hierarchies);
        let limited = hierarchies.create(&path).and_then(|()| hierarchies.apply(&path, resources));
        limited.map_err(io(format!("limiting the cgroup {path}")))
    }

    /// Counters of a sandbox's network interfaces.
    pub fn interfaces(&self, sandbox: &str) -> Vec<Interface> {
        let text = self.shim(sandbox).and_then(|shim| fs::read_to_string(format!("/proc/{shim}/net/dev")).ok());
        interfaces(&text.unwrap_or_default())
    }

    /// Creates a container's process, stopped before its program. Returns its pid on the host.
    pub async fn create_container(&self, sandbox: &str, spec: ContainerSpec) -> Result<i32, RuntimeError> {
        match self.ask(sandbox, Request::Create { spec: Box::new(spec) }).await? {
            Reply::Pid(pid) => Ok(pid),
            other => Err(unexpected(&other)),
        }
    }

    /// Lets the program run; returns the start time in nanoseconds since the epoch.
    pub async fn start_container(&self, sandbox: &str, container: &str) -> Result<i64, RuntimeError> {
        match self.ask(sandbox, Request::Start { container: container.into() }).await? {
            Reply::StartedAt(at) => Ok(at),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends a signal to the container's first process (`all`: to every process of it).
    pub async fn kill_container(&self, s: &str, c: &str, signal: i32, all: bool) -> Result<(), RuntimeError> {
        self.ask(s, Request::Kill { container: c.into(), signal, all }).await.map(drop)
    }

    /// Removes a stopped container's state and cgroup (its log and root file system stay). Killed first if running.
    pub async fn remove_container(&self, sandbox: &str, container: &str) -> Result<(), RuntimeError> {
        self.ask(sandbox, Request::Remove { container: container.into() }).await.map(drop)
    }

    /// Starts another process in a running container. An error's text begins with `exec: ` when the command is at fault.
    pub async fn exec(
        &self,
        sandbox: &str,
        container: &str,
        args: Vec<String>,
        tty: bool,
        wanted: Wanted,
    ) -> Result<Streams, RuntimeError> {
        let request = StreamRequest::Exec { container: container.to_owned(), args, tty, bound: false, wanted };
        streams::open(&self.sandbox_dir(sandbox)?, request).await.map_err(RuntimeError::Shim)
    }

    /// The same, of a process that is killed when its streams are dropped before it has ended.
    pub async fn exec_bound(
        &self,
        sandbox: &str,
        container: &str,
        args: Vec<String>,
        wanted: Wanted,
    ) -> Result<Streams, RuntimeError> {
        let request = StreamRequest::Exec { container: container.to_owned(), args, tty: false, bound: true, wanted };
        streams::open(&self.sandbox_dir(sandbox)?, request).await.map_err(RuntimeError::Shim)
    }

    /// The streams of a running container's own process, from now on.
    pub async fn attach(&self, sandbox: &str, container: &str, wanted: Wanted) -> Result<Streams, RuntimeError> {
        let request = StreamRequest::Attach { container: container.to_owned(), wanted };
        streams::open(&self.sandbox_dir(sandbox)?, request).await.map_err(RuntimeError::Shim)
    }

    /// Kills what still runs, ends the shim, removes namespaces, cgroup and state. Safe to repeat, also for dead shims.
    pub async fn remove_sandbox(&self, sandbox: &str) -> Result<(), RuntimeError> {
        let dir = self.sandbox_dir(sandbox)?;
        let connection = self.connections().get(sandbox).cloned();
        if let Some(connection) = connection {
            connection.removing.store(true, Ordering::Release);
            match timeout(SHUTDOWN_TIME, connection.ask(Request::Shutdown)).await {
                Ok(Ok(_)) => {}
                Ok(Err(e)) => tracing::warn!("ending the shim of sandbox {sandbox}: {e}; killing it"),
                Err(_) => tracing::warn!("the shim of sandbox {sandbox} does not answer; killing it"),
            }
        }
        let (hierarchies, all) = (self.inner.hierarchies.clone(), self.inner.sandboxes.clone());
        let removed = tokio::task::spawn_blocking(move || teardown::remove_sandbox(&dir, &all, &hierarchies)).await;
        let removed = removed.unwrap_or_else(|e| Err(format!("removing it: {e}")));
        self.connections().remove(sandbox);
        removed.map_err(|message| RuntimeError::Unreachable { sandbox: sandbox.to_owned(), message })
    }

    async fn ask(&self, sandbox: &str, request: Request) -> Result<Reply, RuntimeError> {
        let connection = self.connections().get(sandbox).cloned();
        let connection = connection.ok_or_else(|| RuntimeError::Unreachable {
            sandbox: sandbox.to_owned(),
            message: "there is none; create the sandbox first".into(),
        })?;
        connection.ask(request).await
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<String, Arc<Connection>>> {
        self.inner.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sandbox_dir(&self, id: &str) -> Result<PathBuf, RuntimeError> {
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return Err(RuntimeError::Shim(format!("sandbox id {id:?}: only letters, digits, - and _ are allowed")));
        }
        Ok(self.inner.sandboxes.join(id))
    }
}

fn io(what: String) -> impl FnOnce(std::io::Error) -> RuntimeError {
    move |source| RuntimeError::Io { what, source }
}

fn unexpected(reply: &Reply) -> RuntimeError {
    RuntimeError::Shim(format!("the shim gave an answer to another question: {reply:?}"))
}
