//! The shim's only loop: requests of agents, output and ends of containers.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::client::Client;
use super::container::{Container, Pod};
use super::devices::DeviceProgram;
use super::exec;
use super::namespaces::Held;
use super::process::Process;
use super::setup::context;
use crate::runtime::cgroup::Hierarchies;
use crate::runtime::descriptors;
use crate::runtime::protocol::{self, ClientMessage, Reply, Request, ShimMessage, StreamRequest};
use crate::runtime::store::SandboxFile;
use crate::runtime::types::SandboxInfo;

/// Shared by all sockets and pipes.
const BUFFER: usize = 32 * 1024;
/// Connections at a time: an agent's own, and one for every exec and attach.
const MAX_CLIENTS: usize = 72;
/// Memory that making a container took is given back when that was so long ago.
const TRIM_AFTER: Duration = Duration::from_secs(1);
/// poll(2) counts whole milliseconds.
const ROUNDING: Duration = Duration::from_millis(1);
/// How long a killed container may take to be gone.
const KILL_TIME: Duration = Duration::from_secs(5);

/// All state of a shim.
pub struct Server {
    pod: Pod,
    listener: UnixListener,
    children: SignalFd,
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    containers: Vec<Container>,
    /// Processes beside the containers' own, and the session of each.
    execs: Vec<Exec>,
    buffer: Box<[u8]>,
    ending: bool,
    /// When free memory is given back.
    trim_at: Option<Instant>,
}

/// A process that is no container's first.
struct Exec {
    pid: Pid,
    session: u64,
    /// It must not outlive its session.
    bound: bool,
}

#[derive(Clone, Copy)]
enum Source {
    Listener,
    Children,
    Client(u64),
    Output(usize, usize),
}

impl Server {
    /// Ready to [`Server::run`].
    pub fn new(
        dir: PathBuf,
        sandbox: SandboxFile,
        hierarchies: Hierarchies,
        held: Held,
        listener: UnixListener,
    ) -> Result<Self, String> {
        listener.set_nonblocking(true).map_err(context("making the socket non-blocking"))?;
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block().map_err(context("blocking SIGCHLD"))?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let children = SignalFd::with_flags(&mask, flags).map_err(context("watching for ended processes"))?;
        Ok(Self {
            pod: Pod {
                dir,
                sandbox,
                hierarchies,
                held,
                process: Process::own()?,
                device_program: DeviceProgram::default(),
            },
            listener,
            children,
            clients: BTreeMap::new(),
            next_client: 0,
            containers: Vec::new(),
            execs: Vec::new(),
            buffer: vec![0; BUFFER].into_boxed_slice(),
            ending: false,
            trim_at: None,
        })
    }

    /// Serves until the sandbox is shut down.
    pub fn run(&mut self) -> Result<(), String> {
        while !(self.ending && self.clients.values().all(|c| c.unsent.is_empty())) {
            for (source, flags) in self.wait()? {
                match source {
                    Source::Listener => self.accept(),
                    Source::Children => self.reap(),
                    Source::Output(container, index) => {
                        if let Some(container) = self.containers.get_mut(container) {
                            container.output.pump(index, &mut self.buffer);
                        }
                    }
                    Source::Client(id) => self.serve(id, flags),
                }
            }
            self.forget_dead();
            if self.trim_at.is_some_and(|at| at <= Instant::now()) {
                self.trim_at = None;
                crate::allocator::trim();
            }
        }
        Ok(())
    }

    /// Blocks until something happens. Outputs come before ends and requests so that logs are whole, and requests,
    /// which may change the containers' numbers, come last.
    fn wait(&self) -> Result<Vec<(Source, PollFlags)>, String> {
        let mut waiting: Vec<(Source, BorrowedFd<'_>, PollFlags)> = Vec::new();
        for (number, container) in self.containers.iter().enumerate() {
            let outputs = container.output.readable();
            waiting.extend(outputs.map(|(i, fd)| (Source::Output(number, i), fd, PollFlags::POLLIN)));
        }
        waiting.push((Source::Children, self.children.as_fd(), PollFlags::POLLIN));
        if self.clients.len() < MAX_CLIENTS {
            waiting.push((Source::Listener, self.listener.as_fd(), PollFlags::POLLIN));
        }
        for (&id, client) in &self.clients {
            let write = if client.unsent.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            waiting.push((Source::Client(id), client.stream.as_fd(), PollFlags::POLLIN | write));
        }
        let mut fds: Vec<_> = waiting.iter().map(|&(_, fd, events)| PollFd::new(fd, events)).collect();
        let timeout = self.trim_at.map(|at| at.saturating_duration_since(Instant::now()) + ROUNDING);
        let timeout = timeout.map_or(PollTimeout::NONE, |t| PollTimeout::try_from(t).unwrap_or(PollTimeout::NONE));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(format!("waiting for events: {e}")),
        }
        let happened = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        Ok(waiting.iter().map(|w| w.0).zip(happened).filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((stream, _)) => {
                if let Err(e) = stream.set_nonblocking(true) {
                    tracing::warn!("accepting a connection: {e}");
                    return;
                }
                let id = self.next_client;
                self.next_client += 1;
                self.clients.insert(id, Client::new(stream));
                self.send(id, &ShimMessage::Hello { version: protocol::VERSION });
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => tracing::warn!("accepting a connection: {e}"),
        }
    }

    fn send(&mut self, id: u64, message: &ShimMessage) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        match protocol::encode(message) {
            Ok(frame) => client.send(&frame),
            Err(e) => {
                tracing::error!("{e}");
                client.dead = true;
            }
        }
    }

    fn serve(&mut self, id: u64, flags: PollFlags) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if flags.contains(PollFlags::POLLOUT) {
            client.flush();
        }
        if !flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            return;
        }
        match descriptors::receive(client.stream.as_fd(), &mut self.buffer, &mut client.descriptors) {
            Ok(0) => client.dead = true,
            Ok(count) => client.received.extend_from_slice(&self.buffer[..count]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => client.dead = true,
        }
        while let Some(client) = self.clients.get_mut(&id).filter(|c| !c.dead) {
            match protocol::decode(&mut client.received) {
                Ok(None) => break,
                Ok(Some(ClientMessage::Hello { version })) => {
                    if version != protocol::VERSION {
                        tracing::warn!("agent speaks protocol {version}, this shim {}", protocol::VERSION);
                    }
                }
                Ok(Some(ClientMessage::Stream(request))) => {
                    client.session = true;
                    let ends = std::mem::take(&mut client.descriptors);
                    self.stream(id, request, ends);
                }
                Ok(Some(ClientMessage::CloseStdin)) => {
                    for container in &mut self.containers {
                        container.output.close_stdin(id);
                    }
                }
                Ok(Some(ClientMessage::Request { id: request_id, request })) => {
                    if matches!(request, Request::Start { .. }) {
                        self.trim_at = Some(Instant::now() + TRIM_AFTER);
                    }
                    let result = self.answer(request);
                    self.send(id, &ShimMessage::Response { id: request_id, result });
                }
                Err(e) => {
                    tracing::warn!("dropping a connection: {e}");
                    client.dead = true;
                }
            }
        }
    }

    /// Opens a stream session on the connection `id`.
    fn stream(&mut self, id: u64, request: StreamRequest, ends: Vec<OwnedFd>) {
        let opened = match request {
            StreamRequest::Exec { container, args, tty, bound, wanted } => self.find(&container).and_then(|number| {
                exec::exec(&self.pod, &self.containers[number], &args, tty, wanted, ends).map(|(pid, terminal)| {
                    self.execs.push(Exec { pid, session: id, bound });
                    terminal
                })
            }),
            StreamRequest::Attach { container, wanted } => {
                self.find(&container).and_then(|number| match &mut self.containers[number] {
                    ended if ended.info.exit.is_some() => Err(format!("container {container} has ended")),
                    running => running.output.attach(id, wanted, ends),
                })
            }
        };
        let (result, descriptor) = match opened {
            Ok(descriptor) => (Ok(()), descriptor),
            Err(e) => (Err(e), None),
        };
        let Some(client) = self.clients.get_mut(&id) else { return };
        match protocol::encode(&ShimMessage::Streaming { result }) {
            Ok(frame) => client.send_with(&frame, descriptor.as_ref()),
            Err(e) => {
                tracing::error!("{e}");
                client.dead = true;
            }
        }
        // a process that was not made, or has ended already
        self.reap();
    }

    fn forget_dead(&mut self) {
        let dead: Vec<u64> = self.clients.iter().filter(|(_, c)| c.dead).map(|(id, _)| *id).collect();
        for id in dead {
            self.clients.remove(&id);
            for exec in self.execs.iter().filter(|e| e.session == id && e.bound) {
                // one that has ended meanwhile is reaped soon
                let _ = nix::sys::signal::kill(exec.pid, Signal::SIGKILL);
            }
            for container in &mut self.containers {
                container.output.detach(id);
            }
        }
    }

    fn answer(&mut self, request: Request) -> Result<Reply, String> {
        match request {
            Request::Create { spec } => {
                if self.containers.iter().any(|c| c.info.spec.id == spec.id) {
                    return Err(format!("container {} exists already; remove it first", spec.id));
                }
                let created = self.pod.create(*spec);
                // A failed creation leaves zombies that keep the container's PID namespace alive.
                if created.is_err() {
                    self.reap();
                }
                let container = created?;
                let pid = container.info.pid;
                self.containers.push(container);
                self.reap();
                Ok(Reply::Pid(pid))
            }
            Request::Start { container } => {
                let number = self.find(&container)?;
                self.pod.start(&mut self.containers[number]).map(Reply::StartedAt)
            }
            Request::Kill { container, signal, all } => {
                let number = self.find(&container)?;
                self.pod.kill(&self.containers[number], signal, all).map(|()| Reply::Done)
            }
            Request::Remove { container } => self.remove(&container).map(|()| Reply::Done),
            Request::Info => Ok(Reply::Info(Box::new(SandboxInfo {
                spec: self.pod.sandbox.spec.clone(),
                alive: true,
                created_at: self.pod.sandbox.created_at,
                containers: self.containers.iter().map(|c| c.info.clone()).collect(),
            }))),
            Request::Shutdown => self.shutdown().map(|()| Reply::Done),
        }
    }

    fn find(&self, id: &str) -> Result<usize, String> {
        let number = self.containers.iter().position(|c| c.info.spec.id == id);
        number.ok_or_else(|| format!("no container {id} in sandbox {}", self.pod.sandbox.spec.id))
    }

    fn remove(&mut self, id: &str) -> Result<(), String> {
        if let Ok(number) = self.find(id) {
            self.pod.kill(&self.containers[number], Signal::SIGKILL as i32, true)?;
            self.wait_for_ends(|c| c.info.spec.id == id)?;
        }
        self.pod.discard(id)?;
        self.containers.retain(|c| c.info.spec.id != id);
        Ok(())
    }

    fn shutdown(&mut self) -> Result<(), String> {
        self.ending = true;
        let mut errors = Vec::new();
        for container in &self.containers {
            errors.extend(self.pod.kill(container, Signal::SIGKILL as i32, true).err());
        }
        errors.extend(self.wait_for_ends(|_| true).err());
        if let Some(pause) = self.pod.held.pause {
            errors.extend(nix::sys::signal::kill(pause, Signal::SIGKILL).err().map(|e| format!("first process: {e}")));
        }
        for container in std::mem::take(&mut self.containers) {
            errors.extend(self.pod.discard(&container.info.spec.id).err());
        }
        if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
    }

    /// Reaps until the chosen containers have ended.
    fn wait_for_ends(&mut self, chosen: impl Fn(&Container) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + KILL_TIME;
        loop {
            self.reap();
            let Some(left) = self.containers.iter().find(|c| c.info.exit.is_none() && chosen(c)) else { return Ok(()) };
            let remaining = deadline.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                return Err(format!("container {} was killed but has not ended", left.info.spec.id));
            }
            let timeout = PollTimeout::try_from(remaining).unwrap_or(PollTimeout::ZERO);
            let mut fds = [PollFd::new(self.children.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(format!("waiting for killed processes: {e}")),
            }
        }
    }

    /// Collects ended processes and tells the agents about containers among them.
    fn reap(&mut self) {
        while let Ok(Some(_)) = self.children.read_signal() {}
        loop {
            let (pid, code, signal) = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code, None),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32, Some(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(e) => {
                    tracing::error!("waiting for ended processes: {e}");
                    return;
                }
            };
            if let Some(number) = self.execs.iter().position(|e| e.pid == pid) {
                let Exec { session, .. } = self.execs.swap_remove(number);
                self.send(session, &ShimMessage::Ended { code });
                continue;
            }
            let ended = |c: &&mut Container| c.info.pid == pid.as_raw() && c.info.exit.is_none();
            let Some(container) = self.containers.iter_mut().find(ended) else { continue };
            let exit = self.pod.finish(container, code, signal, &mut self.buffer);
            let viewers = container.output.take_viewers();
            let message = ShimMessage::Exited { container: container.info.spec.id.clone(), exit };
            for id in viewers {
                self.send(id, &ShimMessage::Ended { code });
            }
            let clients: Vec<u64> = self.clients.iter().filter(|(_, c)| !c.session).map(|(id, _)| *id).collect();
            for id in clients {
                self.send(id, &message);
            }
        }
    }
}
