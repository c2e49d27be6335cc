//! The shim's only loop: requests of agents, output and ends of containers.

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::client::{Client, Session};
use super::container::{Container, Pod};
use super::devices::DeviceProgram;
use super::exec::Wish;
use super::jobs::{Job, Waiting};
use super::namespaces::Held;
use super::process::Process;
use super::removal::Removal;
use super::setup::context;
use crate::runtime::cgroup::Hierarchies;
use crate::runtime::descriptors;
use crate::runtime::protocol::{self, ClientMessage, Reply, Request, ShimMessage, StreamRequest};
use crate::runtime::store::SandboxFile;
use crate::runtime::types::SandboxInfo;

/// Shared by all sockets and pipes.
const BUFFER: usize = 32 * 1024;
/// Exec and attach sessions at a time, and how many more that are bound to their process: probes must not wait for people.
const MAX_SESSIONS: usize = 192;
const MAX_BOUND: usize = 64;
/// Connections at a time: those, an agent's own, and such as are told that there are too many.
const MAX_CLIENTS: usize = MAX_SESSIONS + MAX_BOUND + 16;
/// Ended processes nobody knows that are remembered while something is made.
const MAX_STRAYS: usize = 1024;
/// How long nobody is accepted when the process or the machine is out of descriptors.
const DEAF: Duration = Duration::from_secs(1);
/// Memory that making a container took is given back when that was so long ago.
const TRIM_AFTER: Duration = Duration::from_secs(1);
/// poll(2) counts whole milliseconds.
const ROUNDING: Duration = Duration::from_millis(1);

/// All state of a shim.
pub struct Server {
    pub(super) pod: Pod,
    listener: Option<UnixListener>,
    pub(super) children: Option<SignalFd>,
    pub(super) clients: BTreeMap<u64, Client>,
    next_client: u64,
    pub(super) containers: Vec<Container>,
    /// Processes beside the containers' own, and the session of each.
    pub(super) execs: Vec<Exec>,
    /// What is being made.
    pub(super) jobs: Vec<Job>,
    /// Processes to be made when others are.
    pub(super) waiting: VecDeque<Waiting>,
    /// What is being removed.
    pub(super) removals: Vec<Removal>,
    /// Ends of processes that may turn out to be what is being made.
    pub(super) strays: Vec<End>,
    /// Cgroups that stand still while a container is made.
    pub(super) still: Vec<String>,
    buffer: Box<[u8]>,
    pub(super) ending: bool,
    /// When free memory is given back.
    pub(super) trim_at: Option<Instant>,
    /// Nobody is accepted until then.
    deaf_until: Option<Instant>,
}

/// A process that is no container's first.
pub struct Exec {
    /// A child of the shim.
    pub pid: Pid,
    /// The connection that is told of its end.
    pub session: u64,
    /// It must not outlive its session.
    pub bound: bool,
}

/// An ended child.
#[derive(Clone, Copy)]
pub struct End {
    /// Its number, which may be another's from now on.
    pub pid: Pid,
    /// Exit code; 128 + signal for a killed one.
    pub code: i32,
    /// What it was killed by.
    pub signal: Option<i32>,
}

#[derive(Clone, Copy)]
enum Source {
    Listener,
    Children,
    Client(u64),
    Output(usize, usize),
    Job(u64),
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
            listener: Some(listener),
            children: Some(children),
            clients: BTreeMap::new(),
            next_client: 0,
            containers: Vec::new(),
            execs: Vec::new(),
            jobs: Vec::new(),
            waiting: VecDeque::new(),
            removals: Vec::new(),
            strays: Vec::new(),
            still: Vec::new(),
            deaf_until: None,
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
                    Source::Job(id) => self.hear(id),
                }
            }
            self.forget_dead();
            self.end_overdue();
            self.go_on_removing();
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
        let now = Instant::now();
        for (number, container) in self.containers.iter().enumerate() {
            let outputs = container.output.readable(now);
            waiting.extend(outputs.map(|(i, fd)| (Source::Output(number, i), fd, PollFlags::POLLIN)));
        }
        waiting.extend(self.children.iter().map(|fd| (Source::Children, fd.as_fd(), PollFlags::POLLIN)));
        waiting.extend(self.jobs.iter().map(|j| (Source::Job(j.id), j.maker.as_fd(), PollFlags::POLLIN)));
        if self.clients.len() < MAX_CLIENTS && self.deaf_until.is_none_or(|until| until <= now) {
            waiting.extend(self.listener.iter().map(|fd| (Source::Listener, fd.as_fd(), PollFlags::POLLIN)));
        }
        for (&id, client) in &self.clients {
            let write = if client.unsent.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            waiting.push((Source::Client(id), client.stream.as_fd(), PollFlags::POLLIN | write));
        }
        let mut fds: Vec<_> = waiting.iter().map(|&(_, fd, events)| PollFd::new(fd, events)).collect();
        let deaf = self.deaf_until.filter(|until| *until > now);
        let jobs = self.jobs.iter().map(|j| j.deadline);
        let rests = self.containers.iter().filter_map(|c| c.output.rest(now));
        let next =
            jobs.chain(self.removals.iter().map(Removal::next)).chain(rests).chain(self.trim_at).chain(deaf).min();
        let timeout = next.map(|at| at.saturating_duration_since(now) + ROUNDING);
        let timeout = timeout.map_or(PollTimeout::NONE, |t| PollTimeout::try_from(t).unwrap_or(PollTimeout::NONE));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(format!("waiting for events: {e}")),
        }
        let happened = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        Ok(waiting.iter().map(|w| w.0).zip(happened).filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        match listener.accept() {
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
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => {
                tracing::warn!("accepting a connection: {e}; trying again in {} s", DEAF.as_secs());
                self.deaf_until = Some(Instant::now() + DEAF);
            }
        }
    }

    /// In a forked process: closes what is the shim's alone, all of other containers included.
    pub(super) fn shed(&mut self) {
        (self.listener, self.children) = (None, None);
        self.clients.clear();
        self.containers.clear();
        self.jobs.clear();
        self.waiting.clear();
        self.removals.clear();
        self.buffer.fill(0);
    }

    pub(super) fn send(&mut self, id: u64, message: &ShimMessage) {
        self.send_frame(id, protocol::encode(message));
    }

    fn send_frame(&mut self, id: u64, frame: Result<Vec<u8>, String>) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        match frame {
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
                    let ends = std::mem::take(&mut client.descriptors);
                    self.stream(id, request, ends);
                }
                Ok(Some(ClientMessage::CloseStdin)) => {
                    for container in &mut self.containers {
                        container.output.close_stdin(id);
                    }
                }
                Ok(Some(ClientMessage::Request { id: request_id, request })) => {
                    self.answer(id, request_id, request);
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
        let bound = matches!(request, StreamRequest::Exec { bound: true, .. });
        let kind = if bound { Session::Bound } else { Session::Plain };
        let held = |kind: Session| self.clients.values().filter(|c| c.session == Some(kind)).count();
        let (plain, all) = (held(Session::Plain), held(Session::Plain) + held(Session::Bound));
        let full = if bound { all >= MAX_SESSIONS + MAX_BOUND } else { plain >= MAX_SESSIONS };
        if let Some(client) = self.clients.get_mut(&id) {
            client.session = Some(if full { Session::Refused } else { kind });
        }
        if full {
            let text = format!("there are {all} exec and attach sessions in this pod already; end some of them first");
            return self.streaming(id, Err(text), None);
        }
        let opened = match request {
            StreamRequest::Exec { container, args, tty, bound, wanted } => {
                self.wish(id, container, bound, Wish { args, tty, wanted, ends });
                return;
            }
            StreamRequest::Attach { container, wanted } => {
                self.find(&container).and_then(|number| match &mut self.containers[number] {
                    ended if ended.info.exit.is_some() => Err(format!("container {container} has ended")),
                    running => running.output.attach(id, wanted, ends),
                })
            }
        };
        match opened {
            Ok(descriptor) => self.streaming(id, Ok(()), descriptor.as_ref()),
            Err(e) => self.streaming(id, Err(e), None),
        }
    }

    /// Answers the stream session on the connection `id`.
    pub(super) fn streaming(&mut self, id: u64, result: Result<(), String>, descriptor: Option<&OwnedFd>) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        match protocol::encode(&ShimMessage::Streaming { result }) {
            Ok(frame) => client.send_with(&frame, descriptor),
            Err(e) => {
                tracing::error!("{e}");
                client.dead = true;
            }
        }
    }

    fn forget_dead(&mut self) {
        let dead: Vec<u64> = self.clients.iter().filter(|(_, c)| c.dead).map(|(id, _)| *id).collect();
        for id in dead {
            self.clients.remove(&id);
            self.waiting.retain(|w| w.session != id);
            self.give_up_bound(id);
            for exec in self.execs.iter().filter(|e| e.session == id && e.bound) {
                // one that has ended meanwhile is reaped soon
                let _ = kill(exec.pid, Signal::SIGKILL);
            }
            for container in &mut self.containers {
                container.output.detach(id);
            }
        }
    }

    /// Answers a request, at once or when what was asked for is done.
    fn answer(&mut self, client: u64, id: u64, request: Request) {
        let result = match request {
            Request::Create { spec } => match self.create(client, id, *spec) {
                Ok(()) => return,
                Err(e) => Err(e),
            },
            Request::Start { container } => self.find(&container).and_then(|number| {
                self.trim_at = Some(Instant::now() + TRIM_AFTER);
                self.pod.start(&mut self.containers[number]).map(Reply::StartedAt)
            }),
            Request::Kill { container, signal, all } => self
                .find(&container)
                .and_then(|number| self.pod.kill(&self.containers[number], signal, all).map(|()| Reply::Done)),
            Request::Remove { container } => return self.remove(client, id, container),
            Request::Info => Ok(Reply::Info(Box::new(SandboxInfo {
                spec: self.pod.sandbox.spec.clone(),
                alive: true,
                created_at: self.pod.sandbox.created_at,
                containers: self.containers.iter().map(|c| c.info.clone()).collect(),
            }))),
            Request::Shutdown => self.shutdown().map(|()| Reply::Done),
        };
        self.respond(client, id, result);
    }

    pub(super) fn respond(&mut self, client: u64, id: u64, result: Result<Reply, String>) {
        self.send_frame(client, protocol::respond(id, result));
    }

    pub(super) fn find(&self, id: &str) -> Result<usize, String> {
        let number = self.containers.iter().position(|c| c.info.spec.id == id);
        number.ok_or_else(|| format!("no container {id} in sandbox {}", self.pod.sandbox.spec.id))
    }

    /// Collects ended processes.
    pub(super) fn reap(&mut self) {
        while let Some(Ok(Some(_))) = self.children.as_ref().map(SignalFd::read_signal) {}
        loop {
            let end = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => End { pid, code, signal: None },
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    End { pid, code: 128 + signal as i32, signal: Some(signal as i32) }
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(e) => {
                    tracing::error!("waiting for ended processes: {e}");
                    return;
                }
            };
            if self.pod.held.pause == Some(end.pid) {
                // all of its PID namespace has ended, and no process can be made there: the agent makes another sandbox
                tracing::error!("the pod's first process has ended");
                self.ending = true;
            }
            if !self.ended(end) && !self.maker_ended(end.pid) && !self.jobs.is_empty() {
                self.strays.truncate(MAX_STRAYS - 1);
                self.strays.insert(0, end);
            }
        }
    }

    /// Tells the agents of a container's end, or that of another process; false for one that is neither.
    pub(super) fn ended(&mut self, end: End) -> bool {
        let End { pid, code, signal } = end;
        if let Some(number) = self.execs.iter().position(|e| e.pid == pid) {
            let Exec { session, .. } = self.execs.swap_remove(number);
            self.send(session, &ShimMessage::Ended { code });
            return true;
        }
        let ended = |c: &&mut Container| c.info.pid == pid.as_raw() && c.info.exit.is_none();
        let Some(container) = self.containers.iter_mut().find(ended) else { return false };
        let exit = self.pod.finish(container, code, signal, &mut self.buffer);
        let viewers = container.output.take_viewers();
        let message = ShimMessage::Exited { container: container.info.spec.id.clone(), exit };
        for id in viewers {
            self.send(id, &ShimMessage::Ended { code });
        }
        let clients: Vec<u64> = self.clients.iter().filter(|(_, c)| c.session.is_none()).map(|(id, _)| *id).collect();
        for id in clients {
            self.send(id, &message);
        }
        true
    }
}
