//! The shim's loop: one poll over agents, container output and ended children.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, read};

use super::container::Container;
use super::{SandboxFile, files, namespaces};
use crate::runtime::cgroup;
use crate::runtime::protocol::{self, Call, Reply, Request, VERSION};
use crate::runtime::spec::Place;
use crate::runtime::types::ContainerSpec;

/// Agents connected at once; more are refused.
const MAX_CLIENTS: usize = 16;

/// See the module.
pub struct Server {
    dir: PathBuf,
    sandbox: SandboxFile,
    pid_holder: Option<i32>,
    listener: UnixListener,
    children: OwnedFd,
    clients: Vec<UnixStream>,
    containers: Vec<Container>,
    buffer: Vec<u8>,
    oom_floor: Option<i32>,
    bounding: u64,
    ended: bool,
}

impl Server {
    /// Listens on the sandbox's socket and records this process.
    pub fn bind(dir: PathBuf, sandbox: SandboxFile, pid_holder: Option<i32>) -> Result<Self, String> {
        let children = namespaces::child_events()?;
        let socket = dir.join(files::SOCKET);
        // relative: a socket's path may have no more than 107 bytes
        std::env::set_current_dir(&dir).map_err(|e| format!("entering {}: {e}", dir.display()))?;
        let listener =
            UnixListener::bind(files::SOCKET).map_err(|e| format!("listening on {}: {e}", socket.display()))?;
        listener.set_nonblocking(true).map_err(|e| format!("listening on {}: {e}", socket.display()))?;
        let pid = getpid().as_raw();
        let record = format!("{pid} {}", crate::runtime::process::start_time(pid).unwrap_or_default());
        fs::write(dir.join(files::PID), record).map_err(|e| format!("writing {}: {e}", files::PID))?;
        Ok(Self {
            dir,
            sandbox,
            pid_holder,
            listener,
            children,
            clients: Vec::new(),
            containers: Vec::new(),
            buffer: vec![0; 16 << 10],
            oom_floor: oom_floor(),
            bounding: bounding_set(),
            ended: false,
        })
    }

    /// Serves until told to shut down.
    pub fn run(&mut self) {
        while !self.ended {
            if let Err(error) = self.turn() {
                eprintln!("shim of {}: {error}", self.sandbox.spec.id);
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        let mut fds = vec![
            PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(self.clients.iter().map(|c| PollFd::new(c.as_fd(), PollFlags::POLLIN)));
        for container in &self.containers {
            fds.extend(container.outputs.iter().map(|o| PollFd::new(o.fd(), PollFlags::POLLIN)));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|f| f.any().unwrap_or(false)).collect();
        drop(fds);
        let clients = self.clients.len();
        let mut at = 2 + clients;
        for container in &mut self.containers {
            container.outputs.retain_mut(|output| {
                let due = ready[at];
                at += 1;
                !(due && output.copy(&mut self.buffer))
            });
        }
        if ready[0] {
            while read(&self.children, &mut self.buffer).is_ok_and(|n| n == self.buffer.len()) {}
            self.reap();
        }
        let due: Vec<usize> = (0..clients).filter(|i| ready[2 + i]).collect();
        for index in due.into_iter().rev() {
            if self.serve(index).is_err() {
                self.clients.remove(index);
            }
        }
        if ready[1] {
            self.accept();
        }
        Ok(())
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() >= MAX_CLIENTS || stream.set_nonblocking(false).is_err() {
                continue;
            }
            let containers = self.containers.iter().map(|c| c.info.clone()).collect();
            if protocol::write(&stream, &Reply::Hello { version: VERSION, containers }).is_ok() {
                self.clients.push(stream);
            }
        }
    }

    fn serve(&mut self, index: usize) -> io::Result<()> {
        let request: Request = match protocol::read(self.clients[index].by_ref())? {
            Some(request) => request,
            None => return Err(ErrorKind::UnexpectedEof.into()),
        };
        let result = match request.call {
            Call::Create(spec) => self.create(*spec),
            Call::Start { container } => self.find(&container).and_then(Container::start),
            Call::Kill { container, signal, all } => self.kill(&container, signal, all).map(|()| 0),
            Call::Remove { container } => self.remove(&container).map(|()| 0),
            Call::Shutdown => {
                self.shutdown();
                Ok(0)
            }
        };
        protocol::write(&self.clients[index], &Reply::Done { id: request.id, result })
    }

    fn find(&mut self, id: &str) -> Result<&mut Container, String> {
        self.containers.iter_mut().find(|c| c.info.spec.id == id).ok_or_else(|| format!("no container {id}"))
    }

    fn create(&mut self, spec: ContainerSpec) -> Result<i64, String> {
        if self.containers.iter().any(|c| c.info.spec.id == spec.id) {
            return Err(format!("container {} exists already", spec.id));
        }
        let cgroup = format!("{}/{}", self.sandbox.cgroup, spec.id);
        let place = Place {
            sandbox: &self.sandbox.spec,
            holder: getpid().as_raw(),
            pid_holder: self.pid_holder,
            cgroup: &cgroup,
            oom_floor: self.oom_floor,
            bounding: self.bounding,
        };
        let container = Container::create(&self.dir, spec, &place)?;
        let pid = container.info.pid;
        self.containers.push(container);
        Ok(i64::from(pid))
    }

    fn kill(&mut self, id: &str, signal: i32, all: bool) -> Result<(), String> {
        let container = self.find(id)?;
        if container.info.exit.is_some() || container.info.pid == 0 {
            return Ok(());
        }
        let signal = Signal::try_from(signal).map_err(|e| format!("signal {signal}: {e}"))?;
        if all {
            cgroup::signal(&container.cgroup, signal);
        }
        match kill(Pid::from_raw(container.info.pid), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => Err(format!("sending {signal} to container {id}: {error}")),
        }
    }

    fn remove(&mut self, id: &str) -> Result<(), String> {
        let Some(index) = self.containers.iter().position(|c| c.info.spec.id == id) else { return Ok(()) };
        cgroup::signal(&self.containers[index].cgroup, Signal::SIGKILL);
        let removed = cgroup::remove(&self.containers[index].cgroup);
        self.reap();
        self.containers.remove(index).forget();
        removed
    }

    fn shutdown(&mut self) {
        cgroup::signal(&self.sandbox.cgroup, Signal::SIGKILL);
        if let Some(pid) = self.pid_holder {
            // gone already is as good
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        self.ended = true;
    }

    /// Takes every ended child; those that are containers are recorded and told.
    fn reap(&mut self) {
        loop {
            let (pid, code, signal) = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code, None),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32, Some(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            let found = self.containers.iter_mut().find(|c| c.info.pid == pid.as_raw() && c.info.exit.is_none());
            let Some(container) = found else { continue };
            // nothing of a container outlives its first process
            cgroup::signal(&container.cgroup, Signal::SIGKILL);
            container.outputs.retain_mut(|output| !output.copy(&mut self.buffer));
            let exit = container.ended(code, signal);
            let told = Reply::Exited { container: container.info.spec.id.clone(), exit };
            self.clients.retain(|client| protocol::write(client, &told).is_ok());
        }
    }
}

/// Without `CAP_SYS_RESOURCE` no process may go below the value it was given.
fn oom_floor() -> Option<i32> {
    let own: i32 = fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok()?;
    match fs::write("/proc/self/oom_score_adj", "-998") {
        Ok(()) => None,
        Err(_) => Some(own),
    }
}

/// This process's capability bounding set.
fn bounding_set() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("CapBnd:")).unwrap_or_default();
    u64::from_str_radix(line.trim(), 16).unwrap_or_default()
}
