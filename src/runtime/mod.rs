//! Containers: the agent's handle on pod sandboxes and their containers.
//!
//! Owns the shim and its protocol, the OCI spec, cgroups, CRI logs and exit records. Knows nothing of the API server:
//! the pod room hands in plain values ([`SandboxSpec`], [`ContainerSpec`]) and receives [`RuntimeEvent`]s.

mod cgroup;
mod cgroup_tree;
mod connection;
mod controllers;
mod cri_log;
mod descriptors;
mod details;
mod device_nodes;
mod freezer;
mod limits;
mod log_reader;
mod program;
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
pub use details::{Details, DiskUse, device_of, machine_details};
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
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use connection::Connection;
use program::Program;
use protocol::{Reply, Request, StreamRequest};
use store::SandboxFile;

use crate::{files, metrics};

/// How long a shim may take to become ready.
const START_TIME: Duration = Duration::from_secs(20);
/// How long a shim may take to end itself before it is killed.
const SHUTDOWN_TIME: Duration = Duration::from_secs(1);
/// How long a shim may take to open the streams of a process; its own limit for one is shorter.
const STREAMS_TIME: Duration = Duration::from_secs(40);

/// The agent's handle on all sandboxes; cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    config: RuntimeConfig,
    program: Program,
    sandboxes: PathBuf,
    hierarchies: Hierarchies,
    connections: Mutex<HashMap<String, Arc<Connection>>>,
    events: mpsc::UnboundedSender<RuntimeEvent>,
}

impl Runtime {
    /// Prepares the state directory and the root cgroup. Events arrive on the returned channel, which shims never wait
    /// for: there are no more of them than containers and sandboxes were made.
    pub fn open(config: RuntimeConfig) -> Result<(Self, mpsc::UnboundedReceiver<RuntimeEvent>), RuntimeError> {
        let sandboxes = config.state_dir.join("sandboxes");
        files::dir(&sandboxes, 0o700).map_err(io(format!("creating {}", sandboxes.display())))?;
        let hierarchies = Hierarchies::detect().map_err(io("finding cgroups; mount one of version 1 or 2".into()))?;
        let root = &config.cgroup_root;
        hierarchies.create(root).map_err(io(format!("creating the cgroup {root}; is the agent root?")))?;
        let (events, receiver) = mpsc::unbounded_channel();
        let program = Program::open(&config.shim_exe);
        let inner = Inner { config, program, sandboxes, hierarchies, connections: Mutex::default(), events };
        Ok((Self { inner: Arc::new(inner) }, receiver))
    }

    /// Finds the sandboxes of an earlier agent, connects to living shims and returns what each holds. They are asked side
    /// by side, and one that does not answer counts as lost.
    pub async fn recover(&self) -> Result<Vec<SandboxInfo>, RuntimeError> {
        let dir = &self.inner.sandboxes;
        let entries = fs::read_dir(dir).map_err(io(format!("reading {}", dir.display())))?;
        let mut asked: JoinSet<Result<Option<SandboxInfo>, RuntimeError>> = JoinSet::new();
        for entry in entries {
            let dir = entry.map_err(io(format!("reading {}", dir.display())))?.path();
            let runtime = self.clone();
            let file = match SandboxFile::read(&dir) {
                Ok(file) => file,
                Err(e) if store::unusable(&e) => {
                    tracing::warn!("removing the unreadable sandbox {}: {e}", dir.display());
                    asked.spawn(async move { runtime.remove_unreadable(dir).await.map(|()| None) });
                    continue;
                }
                // its pod may run, and must not run twice
                Err(e) => return Err(io(format!("reading the sandbox file in {}", dir.display()))(e)),
            };
            asked.spawn(async move { Ok(Some(runtime.recover_or_lose(&dir, file).await)) });
        }
        let found: Result<Vec<_>, _> = asked.join_all().await.into_iter().collect();
        let mut found: Vec<SandboxInfo> = found?.into_iter().flatten().collect();
        found.sort_by_key(|s| s.created_at);
        Ok(found)
    }

    async fn recover_or_lose(&self, dir: &Path, file: SandboxFile) -> SandboxInfo {
        let error = match self.recover_one(dir, &file).await {
            Ok(info) => return info,
            Err(error) => error,
        };
        tracing::warn!("sandbox {} counts as lost: {error}", file.spec.id);
        let connection = self.connections().remove(&file.spec.id);
        if let Some(connection) = connection {
            connection.removing.store(true, Ordering::Release);
        }
        self.kill_sandbox(&file.spec.id).await;
        SandboxInfo { alive: false, created_at: file.created_at, containers: store::read_infos(dir), spec: file.spec }
    }

    async fn recover_one(&self, dir: &Path, file: &SandboxFile) -> Result<SandboxInfo, RuntimeError> {
        let connection = self.connect(dir, &file.spec).await?;
        match connection.ask(Request::Info).await {
            Ok(Reply::Info(info)) => completed(dir, *info),
            Ok(other) => Err(unexpected(&other)),
            // it lives and has more to tell than a message holds
            Err(RuntimeError::Shim(message)) => {
                tracing::warn!("sandbox {}: {message}; its files tell the rest", file.spec.id);
                let (spec, containers) = (file.spec.clone(), store::read_infos(dir));
                Ok(SandboxInfo { spec, alive: true, created_at: file.created_at, containers })
            }
            Err(e) => Err(e),
        }
    }

    /// Ends what runs in a sandbox nobody can read. An error while its shim lives: the pod must not run twice.
    async fn remove_unreadable(&self, dir: PathBuf) -> Result<(), RuntimeError> {
        let (hierarchies, all, place) = (self.inner.hierarchies.clone(), self.inner.sandboxes.clone(), dir.clone());
        let removed = tokio::task::spawn_blocking(move || teardown::remove_sandbox(&place, &all, &hierarchies)).await;
        let Err(message) = removed.unwrap_or_else(|e| Err(format!("removing it: {e}"))) else { return Ok(()) };
        let shim = store::living_shim(&dir).map_err(io(format!("looking for the shim of {}", dir.display())))?;
        if shim.is_some() {
            return Err(RuntimeError::Unreachable { sandbox: dir.display().to_string(), message });
        }
        tracing::warn!("{message}");
        Ok(())
    }

    async fn connect(&self, dir: &Path, spec: &SandboxSpec) -> Result<Arc<Connection>, RuntimeError> {
        let shim = store::living_shim(dir).map_err(io(format!("looking for the shim of {}", dir.display())))?;
        let shim = shim.ok_or_else(|| RuntimeError::Unreachable {
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
        let living = store::living_shim(&dir).map_err(io(format!("looking for the shim of {}", dir.display())))?;
        if self.connections().contains_key(&id) || living.is_some() {
            return Err(RuntimeError::Shim(format!("sandbox {id} exists already; remove it first")));
        }
        let file = SandboxFile {
            spec: spec.clone(),
            cgroup_root: self.inner.config.cgroup_root.clone(),
            created_at: store::now(),
        };
        let made = async {
            files::dir(&dir, 0o700).map_err(io(format!("creating {}", dir.display())))?;
            file.write(&dir).map_err(io(format!("writing the sandbox file in {}", dir.display())))?;
            self.start_shim(&id, &dir).await?;
            self.connect(&dir, &spec).await
        };
        if let Err(e) = metrics::runtime("run_podsandbox", made).await {
            if let Err(e) = self.remove_sandbox(&id).await {
                tracing::warn!("removing the failed sandbox {id}: {e}");
            }
            return Err(e);
        }
        Ok(())
    }

    async fn start_shim(&self, id: &str, dir: &Path) -> Result<(), RuntimeError> {
        let unreachable = |message: String| RuntimeError::Unreachable { sandbox: id.to_owned(), message };
        let program = &self.inner.program;
        let mut command = Command::new(program.path());
        command.arg0("pikelet").arg("shim").arg("--dir").arg(dir).current_dir("/");
        // the agent's own may hold secrets, and containers may look into what a shim has forked
        command.env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        // The shim proper is a grandchild: its parent ends at once, and standard output ends when it is ready.
        let started = async {
            let mut child = command.spawn().map_err(|e| format!("starting {}: {e}", program.name().display()))?;
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
            Reply::Info(info) => completed(&self.sandbox_dir(sandbox)?, *info),
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

    /// More figures of it.
    pub fn details(&self, cgroup: &str) -> Details {
        self.inner.hierarchies.details(&format!("{}/{cgroup}", self.inner.config.cgroup_root))
    }

    /// Sets limits of a cgroup below the agent's cgroup root, which is created when missing.
    pub fn limit(&self, cgroup: &str, resources: &Resources) -> Result<(), RuntimeError> {
        let (path, hierarchies) = (format!("{}/{cgroup}", self.inner.config.cgroup_root), &self.inner.hierarchies);
        let began = Instant::now();
        let limited = hierarchies.create(&path).and_then(|()| hierarchies.apply(&path, resources));
        metrics::CGROUPS.observe(["update".into()], began.elapsed());
        limited.map_err(io(format!("limiting the cgroup {path}")))
    }

    /// Counters of a sandbox's network interfaces.
    pub fn interfaces(&self, sandbox: &str) -> Vec<Interface> {
        let text = self.shim(sandbox).and_then(|shim| fs::read_to_string(format!("/proc/{shim}/net/dev")).ok());
        interfaces(&text.unwrap_or_default())
    }

    /// Creates a container's process, stopped before its program. Returns its pid on the host.
    pub async fn create_container(&self, sandbox: &str, spec: ContainerSpec) -> Result<i32, RuntimeError> {
        let create = self.ask(sandbox, Request::Create { spec: Box::new(spec) });
        match metrics::runtime("create_container", create).await? {
            Reply::Pid(pid) => Ok(pid),
            other => Err(unexpected(&other)),
        }
    }

    /// Lets the program run; returns the start time in nanoseconds since the epoch.
    pub async fn start_container(&self, sandbox: &str, container: &str) -> Result<i64, RuntimeError> {
        let start = self.ask(sandbox, Request::Start { container: container.into() });
        match metrics::runtime("start_container", start).await? {
            Reply::StartedAt(at) => Ok(at),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends a signal to the container's first process (`all`: to every process of it). When the shim does not, this
    /// does.
    pub async fn kill_container(&self, s: &str, c: &str, signal: i32, all: bool) -> Result<(), RuntimeError> {
        let late = self.connections().get(s).is_some_and(|c| c.is_suspected());
        let asked = async {
            if late {
                return Err(RuntimeError::Silent { sandbox: s.to_owned(), seconds: 0 });
            }
            self.ask(s, Request::Kill { container: c.into(), signal, all }).await
        };
        match metrics::runtime("stop_container", asked).await {
            Err(RuntimeError::Silent { seconds, .. }) => {
                tracing::warn!(
                    "the shim of sandbox {s} does not answer for {seconds} s: signal {signal} to container {c} from outside"
                );
                let (dir, id) = (self.sandbox_dir(s)?, c.to_owned());
                let hierarchies = self.inner.hierarchies.clone();
                let sent = tokio::task::spawn_blocking(move || teardown::signal(&dir, &id, signal, all, &hierarchies));
                sent.await.unwrap_or_else(|e| Err(e.to_string())).map_err(RuntimeError::Shim)
            }
            other => other.map(drop),
        }
    }

    /// Gives up a sandbox whose containers do not end, or whose shim is stuck: all of its processes are killed from
    /// outside, the shim among them, and it counts as lost.
    pub async fn abandon(&self, sandbox: &str) {
        tracing::warn!("sandbox {sandbox} counts as lost: its processes and its shim are killed");
        self.kill_sandbox(sandbox).await;
        let connection = self.connections().get(sandbox).cloned();
        if let Some(connection) = connection {
            connection.lose();
        }
    }

    async fn kill_sandbox(&self, sandbox: &str) {
        let Ok(dir) = self.sandbox_dir(sandbox) else { return };
        let (hierarchies, all) = (self.inner.hierarchies.clone(), self.inner.sandboxes.clone());
        let killed = tokio::task::spawn_blocking(move || teardown::kill_sandbox(&dir, &all, &hierarchies)).await;
        if let Err(e) = killed.unwrap_or_else(|e| Err(e.to_string())) {
            tracing::warn!("sandbox {sandbox}: {e}");
        }
    }

    /// Removes a stopped container's state and cgroup (its log and root file system stay). Killed first if running.
    pub async fn remove_container(&self, sandbox: &str, container: &str) -> Result<(), RuntimeError> {
        let remove = self.ask(sandbox, Request::Remove { container: container.into() });
        metrics::runtime("remove_container", remove).await.map(drop)
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
        metrics::runtime("exec", self.streams(sandbox, request)).await
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
        metrics::runtime("exec_sync", self.streams(sandbox, request)).await
    }

    async fn streams(&self, sandbox: &str, request: StreamRequest) -> Result<Streams, RuntimeError> {
        let opened = timeout(STREAMS_TIME, streams::open(&self.sandbox_dir(sandbox)?, request)).await;
        let silent = |_| RuntimeError::Silent { sandbox: sandbox.to_owned(), seconds: STREAMS_TIME.as_secs() };
        opened.map_err(silent)?.map_err(RuntimeError::Shim)
    }

    /// The streams of a running container's own process, from now on.
    pub async fn attach(&self, sandbox: &str, container: &str, wanted: Wanted) -> Result<Streams, RuntimeError> {
        let request = StreamRequest::Attach { container: container.to_owned(), wanted };
        metrics::runtime("attach", self.streams(sandbox, request)).await
    }

    /// Kills what still runs, ends the shim, removes namespaces, cgroup and state. Safe to repeat, also for dead shims.
    pub async fn remove_sandbox(&self, sandbox: &str) -> Result<(), RuntimeError> {
        metrics::runtime("remove_podsandbox", self.take_down(sandbox)).await
    }

    async fn take_down(&self, sandbox: &str) -> Result<(), RuntimeError> {
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
        let long = matches!(request, Request::Create { .. } | Request::Start { .. });
        let answer = connection.ask(request).await;
        if matches!(answer, Err(RuntimeError::Silent { .. })) {
            let (runtime, sandbox) = (self.clone(), sandbox.to_owned());
            // it may be busy with something that takes long; when it is stuck, the pod goes on without it
            tokio::spawn(async move {
                if long || connection.is_stuck().await {
                    runtime.abandon(&sandbox).await;
                }
            });
        }
        answer
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

fn completed(dir: &Path, said: SandboxInfo) -> Result<SandboxInfo, RuntimeError> {
    store::completed(dir, said).map_err(io(format!("reading what runs in {}", dir.display())))
}

fn unexpected(reply: &Reply) -> RuntimeError {
    RuntimeError::Shim(format!("the shim gave an answer to another question: {reply:?}"))
}
