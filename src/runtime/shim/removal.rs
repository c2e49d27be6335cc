//! Removing containers without waiting for them, and the end of the shim.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use std::os::fd::AsFd;

use super::container::{Container, check_id};
use super::server::Server;
use crate::runtime::cgroup::{REMOVE_PAUSE, REMOVE_TRIES};
use crate::runtime::protocol::Reply;

/// How long a killed container may take to be gone.
const KILL_TIME: Duration = Duration::from_secs(5);

/// A container that is on its way out.
pub struct Removal {
    /// Its id.
    pub id: String,
    client: u64,
    request: u64,
    /// What is answered when nothing of it is left.
    then: Result<Reply, String>,
    /// When its first process must have ended.
    deadline: Instant,
    tries: u32,
    /// Not before that; `None` while its first process ends, which is told.
    next: Option<Instant>,
}

impl Removal {
    /// Of a container that could not be made, for the reason `error`.
    pub fn after_failure(id: String, client: u64, request: u64, error: String) -> Self {
        Self::new(id, client, request, Err(error))
    }

    fn new(id: String, client: u64, request: u64, then: Result<Reply, String>) -> Self {
        let now = Instant::now();
        Self { id, client, request, then, deadline: now + KILL_TIME, tries: 0, next: Some(now) }
    }

    /// When to look after it again.
    pub fn next(&self) -> Instant {
        self.next.unwrap_or(self.deadline)
    }
}

impl Server {
    /// Begins to remove a container; the answer comes when it is gone.
    pub fn remove(&mut self, client: u64, request: u64, id: String) {
        if let Err(e) = check_id(&id) {
            return self.respond(client, request, Err(e));
        }
        self.give_up(&id);
        if let Ok(number) = self.find(&id)
            && let Err(e) = self.pod.kill(&self.containers[number], Signal::SIGKILL as i32, true)
        {
            return self.respond(client, request, Err(e));
        }
        self.removals.push(Removal::new(id, client, request, Ok(Reply::Done)));
        self.go_on_removing();
    }

    /// Takes the next step of each removal that is due.
    pub fn go_on_removing(&mut self) {
        let now = Instant::now();
        for mut removal in std::mem::take(&mut self.removals) {
            match self.step(&mut removal, now) {
                None => self.removals.push(removal),
                Some(ended) => {
                    self.respond(removal.client, removal.request, ended.and(removal.then));
                }
            }
        }
    }

    /// `None` while it goes on; what hinders it, if anything, at its end.
    fn step(&mut self, removal: &mut Removal, now: Instant) -> Option<Result<(), String>> {
        let lives = |c: &Container| c.info.spec.id == removal.id && c.info.exit.is_none();
        if self.containers.iter().any(lives) {
            removal.next = None;
            let late = removal.deadline <= now;
            return late.then(|| Err(format!("container {} was killed but has not ended", removal.id)));
        }
        if removal.next.is_some_and(|next| next > now) {
            return None;
        }
        match self.pod.try_discard(&removal.id) {
            Ok(()) => {
                self.containers.retain(|c| c.info.spec.id != removal.id);
                Some(Ok(()))
            }
            Err(e) => {
                removal.tries += 1;
                removal.next = Some(now + REMOVE_PAUSE);
                // what could not be made says why
                let said = removal.then.as_ref().err().map(|why| format!("{why}; {e}"));
                (removal.tries >= REMOVE_TRIES).then(|| Err(said.unwrap_or(e)))
            }
        }
    }

    /// Ends everything.
    pub fn shutdown(&mut self) -> Result<(), String> {
        self.ending = true;
        self.give_up_all();
        let mut errors = Vec::new();
        for container in &self.containers {
            errors.extend(self.pod.kill(container, Signal::SIGKILL as i32, true).err());
        }
        errors.extend(self.wait_for_ends().err());
        if let Some(pause) = self.pod.held.pause {
            errors.extend(kill(pause, Signal::SIGKILL).err().map(|e| format!("first process: {e}")));
        }
        let half = std::mem::take(&mut self.removals).into_iter().map(|removal| removal.id);
        let all: Vec<String> = self.containers.drain(..).map(|c| c.info.spec.id).chain(half).collect();
        for id in all {
            errors.extend(self.pod.discard(&id).err());
        }
        if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
    }

    /// Reaps until all containers have ended.
    fn wait_for_ends(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + KILL_TIME;
        loop {
            self.reap();
            let Some(left) = self.containers.iter().find(|c| c.info.exit.is_none()) else { return Ok(()) };
            let remaining = deadline.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                return Err(format!("container {} was killed but has not ended", left.info.spec.id));
            }
            let timeout = PollTimeout::try_from(remaining).unwrap_or(PollTimeout::ZERO);
            let Some(children) = &self.children else { return Ok(()) };
            let mut fds = [PollFd::new(children.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(format!("waiting for killed processes: {e}")),
            }
        }
    }
}
