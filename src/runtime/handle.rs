//! The agent's handle on all sandboxes: starts shims, finds them again, talks to them and takes them down.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::connection::Connection;
use super::protocol::Call;
use super::shim::{SandboxFile, files};
use super::types::{ContainerInfo, ContainerSpec, RuntimeConfig, RuntimeError, RuntimeEvent, SandboxInfo, SandboxSpec};
use super::{cgroup, process};

/// Events that may wait for the manager.
const EVENTS: usize = 1024;
/// Time a shim has to answer a shutdown before it is killed.
const SHUTDOWN: Duration = Duration::from_secs(2);

struct Inner {
    config: RuntimeConfig,
    events: mpsc::Sender<RuntimeEvent>,
    shims: Mutex<BTreeMap<String, Arc<Connection>>>,
}

/// The agent's handle on all sandboxes; cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> RuntimeError {
    let what = what.into();
    move |source| RuntimeError::Io { what, source }
}

impl Runtime {
    /// Prepares the state directory. Events arrive on the returned channel.
    pub fn open(config: RuntimeConfig) -> Result<(Self, mpsc::Receiver<RuntimeEvent>), RuntimeError> {
        let dir = config.state_dir.join("sandboxes");
        fs::create_dir_all(&dir).map_err(io_error(format!("creating {}", dir.display())))?;
        let (events, receiver) = mpsc::channel(EVENTS);
        let inner = Inner { config, events, shims: Mutex::default() };
        Ok((Self { inner: Arc::new(inner) }, receiver))
    }

    fn dir(&self, sandbox: &str) -> PathBuf {
        self.inner.config.state_dir.join("sandboxes").join(sandbox)
    }

    fn shims(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Connection>>> {
        self.inner.shims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the sandboxes of an earlier agent, connects to living shims and returns what each holds.
    pub async fn recover(&self) -> Result<Vec<SandboxInfo>, RuntimeError> {
        let root = self.inner.config.state_dir.join("sandboxes");
        let mut found = Vec::new();
        for entry in fs::read_dir(&root).map_err(io_error(format!("reading {}", root.display())))?.flatten() {
            let Some(file) = read_json::<SandboxFile>(&entry.path().join(files::SANDBOX)) else {
                warn!(dir = %entry.path().display(), "sandbox never finished: removing it");
                let _ = fs::remove_dir_all(entry.path());
                continue;
            };
            let (alive, containers) = match self.connect(&file.spec).await {
                Ok(containers) => (true, containers),
                Err(error) => {
                    debug!(sandbox = %file.spec.id, %error, "shim is gone");
                    (false, recorded(&entry.path()))
                }
            };
            found.push(SandboxInfo { spec: file.spec, alive, created_at: file.created_at, containers });
        }
        found.sort_by_key(|s| s.created_at);
        Ok(found)
    }

    async fn connect(&self, spec: &SandboxSpec) -> io::Result<Vec<ContainerInfo>> {
        // through a descriptor: a socket's path may have no more than 107 bytes
        let dir = fs::File::open(self.dir(&spec.id))?;
        let socket = PathBuf::from(format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), files::SOCKET));
        let events = self.inner.events.clone();
        let (connection, mut containers) =
            Connection::open(&socket, spec.id.clone(), spec.pod_uid.clone(), events).await?;
        self.shims().insert(spec.id.clone(), Arc::new(connection));
        containers.sort_by_key(|c| c.created_at);
        Ok(containers)
    }

    /// Starts a shim with its namespaces and the pod cgroup; returns when both are ready.
    pub async fn create_sandbox(&self, spec: SandboxSpec) -> Result<(), RuntimeError> {
        let id = spec.id.clone();
        let dir = self.dir(&id);
        let unreachable = |message: String| RuntimeError::Unreachable { sandbox: id[..12].to_owned(), message };
        fs::create_dir_all(&dir).map_err(io_error(format!("creating {}", dir.display())))?;
        let created_at = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or_default();
        let cgroup = format!("/{}/{}", self.inner.config.cgroup_root.trim_matches('/'), spec.cgroup);
        let file = SandboxFile { spec, cgroup, created_at };
        let path = dir.join(files::SANDBOX);
        serde_json::to_vec(&file)
            .map_err(io::Error::other)
            .and_then(|text| fs::write(&path, text))
            .map_err(io_error(format!("writing {}", path.display())))?;
        let log = dir.join("shim.log");
        let log = fs::File::create(&log).map_err(io_error(format!("creating {}", log.display())))?;
        let exe = &self.inner.config.shim_exe;
        let mut child = Command::new(exe)
            .arg("shim")
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|e| unreachable(format!("starting {} shim: {e}", exe.display())))?;
        let mut said = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out)
                .read_line(&mut said)
                .await
                .map_err(|e| unreachable(format!("reading its answer: {e}")))?;
        }
        // reaped when it ends; it outlives this agent otherwise
        tokio::spawn(async move { child.wait().await });
        if said.trim() != "ready" {
            return Err(unreachable(said.trim().to_owned()));
        }
        self.connect(&file.spec).await.map(drop).map_err(|e| unreachable(format!("connecting to it: {e}")))
    }

    /// The network namespace of a sandbox; valid while it lives.
    pub fn netns_path(&self, sandbox: &str) -> Option<PathBuf> {
        let pid = living(&self.dir(sandbox))?;
        Some(PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

    async fn call(&self, sandbox: &str, call: Call) -> Result<i64, RuntimeError> {
        let unreachable = |message: &str| RuntimeError::Unreachable {
            sandbox: sandbox[..12].to_owned(),
            message: message.to_owned(),
        };
        let shim = self.shims().get(sandbox).cloned().ok_or_else(|| unreachable("not connected"))?;
        match shim.call(call).await {
            Ok(result) => result.map_err(RuntimeError::Shim),
            Err(error) => Err(unreachable(&error.to_string())),
        }
    }

    /// Creates a container's process, stopped before its program. Returns its pid on the host.
    pub async fn create_container(&self, sandbox: &str, spec: ContainerSpec) -> Result<i32, RuntimeError> {
        self.call(sandbox, Call::Create(Box::new(spec))).await.map(|pid| pid as i32)
    }

    /// Lets the program run; returns the start time in nanoseconds since the epoch.
    pub async fn start_container(&self, sandbox: &str, container: &str) -> Result<i64, RuntimeError> {
        self.call(sandbox, Call::Start { container: container.to_owned() }).await
    }

    /// Sends a signal to the container's first process (`all`: to every process of it).
    pub async fn kill_container(
        &self,
        sandbox: &str,
        container: &str,
        signal: i32,
        all: bool,
    ) -> Result<(), RuntimeError> {
        self.call(sandbox, Call::Kill { container: container.to_owned(), signal, all }).await.map(drop)
    }

    /// Removes a stopped container's state and cgroup (log and root file system stay). Killed first if running.
    pub async fn remove_container(&self, sandbox: &str, container: &str) -> Result<(), RuntimeError> {
        self.call(sandbox, Call::Remove { container: container.to_owned() }).await.map(drop)
    }

    /// Kills what still runs, ends the shim, removes cgroup and state. Safe to repeat, also for dead shims.
    pub async fn remove_sandbox(&self, sandbox: &str) -> Result<(), RuntimeError> {
        let dir = self.dir(sandbox);
        let shim = self.shims().remove(sandbox);
        if let Some(shim) = shim {
            // one that does not answer is killed below
            let _ = tokio::time::timeout(SHUTDOWN, shim.call(Call::Shutdown)).await;
        }
        let removed = tokio::task::spawn_blocking(move || remove_all(&dir)).await;
        removed.map_err(|e| RuntimeError::Shim(format!("removing sandbox {sandbox}: {e}")))?
    }
}

fn read_json<T: for<'a> serde::Deserialize<'a>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Container records a dead shim left.
fn recorded(dir: &Path) -> Vec<ContainerInfo> {
    let entries = fs::read_dir(dir.join(files::CONTAINERS)).into_iter().flatten().flatten();
    let mut found: Vec<ContainerInfo> = entries.filter_map(|e| read_json(&e.path().join(files::INFO))).collect();
    found.sort_by_key(|c| c.created_at);
    found
}

/// Pid of a sandbox's shim if that very process still lives.
fn living(dir: &Path) -> Option<i32> {
    let record = fs::read_to_string(dir.join(files::PID)).ok()?;
    let (pid, started) = record.trim().split_once(' ')?;
    let pid: i32 = pid.parse().ok()?;
    (process::start_time(pid)? == started.parse::<u64>().ok()?).then_some(pid)
}

fn remove_all(dir: &Path) -> Result<(), RuntimeError> {
    let Some(file) = read_json::<SandboxFile>(&dir.join(files::SANDBOX)) else {
        return match fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error(format!("removing {}", dir.display()))(error))
            }
            _ => Ok(()),
        };
    };
    let cgroup = cgroup::remove(&file.cgroup).map_err(RuntimeError::Shim);
    if let Some(pid) = living(dir) {
        // it may have ended just now
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    cgroup?;
    fs::remove_dir_all(dir).map_err(io_error(format!("removing {}", dir.display())))
}
