//! Makers at work: containers and other processes that are being made, each in its own time.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::container::{Container, Making, Pod, Still, check_id};
use super::exec::{self, Wish};
use super::maker::{Maker, is_child};
use super::output::set_nonblocking;
use super::removal::Removal;
use super::server::{Exec, Server};
use crate::runtime::protocol::Reply;
use crate::runtime::types::ContainerSpec;

/// How long a container may take to be made, and another process in one.
const CREATE_TIME: Duration = Duration::from_mins(1);
const EXEC_TIME: Duration = Duration::from_secs(15);
/// Processes that are made in one container at a time: more take no less time, and some may be stuck.
const MAKERS: usize = 4;

/// A maker, and what for.
pub struct Job {
    /// Of no other.
    pub id: u64,
    /// The maker.
    pub maker: Maker,
    /// When it is given up.
    pub deadline: Instant,
    what: What,
}

enum What {
    Container { client: u64, request: u64, making: Box<Making> },
    Process { session: u64, container: String, bound: bool },
}

/// A process that is made when fewer others are.
pub struct Waiting {
    /// The connection that wants it.
    pub session: u64,
    container: String,
    bound: bool,
    wish: Wish,
}

impl Server {
    /// Begins to make a container; the answer comes when that is done.
    pub fn create(&mut self, client: u64, request: u64, spec: ContainerSpec) -> Result<(), String> {
        let id = spec.id.clone();
        check_id(&id)?;
        let known = self.containers.iter().map(|c| &c.info.spec.id).chain(self.made_now());
        if known.chain(self.removals.iter().map(|r| &r.id)).any(|known| *known == id) {
            return Err(format!("container {id} exists already; remove it first"));
        }
        let begun = self.pod.prepare(spec).and_then(|mut making| {
            if making.is_seen() {
                making.still = self.hold_still()?;
            }
            let maker = Maker::start(|reporter| {
                self.shed();
                self.pod.make(&mut making, reporter)
            })?;
            self.push(maker, CREATE_TIME, What::Container { client, request, making: Box::new(making) });
            Ok(())
        });
        if let Err(e) = begun {
            self.thaw_if_done();
            self.removals.push(Removal::after_failure(id, client, request, e));
        }
        Ok(())
    }

    fn made_now(&self) -> impl Iterator<Item = &String> {
        self.jobs.iter().filter_map(|job| match &job.what {
            What::Container { making, .. } => Some(&making.spec.id),
            What::Process { .. } => None,
        })
    }

    fn push(&mut self, maker: Maker, limit: Duration, what: What) {
        let id = self.jobs.last().map_or(0, |job| job.id + 1);
        self.jobs.push(Job { id, maker, deadline: Instant::now() + limit, what });
    }

    /// A process is wanted: it is made now or when fewer others are.
    pub fn wish(&mut self, session: u64, container: String, bound: bool, wish: Wish) {
        self.waiting.push_back(Waiting { session, container, bound, wish });
        self.make_waiting();
    }

    fn make_waiting(&mut self) {
        let mut at = 0;
        while let Some(next) = self.waiting.get(at) {
            let same =
                |job: &&Job| matches!(&job.what, What::Process { container, .. } if *container == next.container);
            if self.jobs.iter().filter(same).count() >= MAKERS {
                at += 1;
                continue;
            }
            let Some(Waiting { session, container, bound, wish }) = self.waiting.remove(at) else { return };
            let begun = self.find(&container).and_then(|number| exec::start(&self.pod, &self.containers[number], wish));
            match begun {
                Ok(maker) => self.push(maker, EXEC_TIME, What::Process { session, container, bound }),
                Err(e) => self.streaming(session, Err(e), None),
            }
        }
    }

    /// A maker says something.
    pub fn hear(&mut self, id: u64) {
        let Some(number) = self.jobs.iter().position(|job| job.id == id) else { return };
        let maker = &mut self.jobs[number].maker;
        maker.receive();
        if maker.outcome.is_some() {
            self.finish(number);
        }
    }

    /// Whether `pid` was a maker; what it has said last counts.
    pub fn maker_ended(&mut self, pid: Pid) -> bool {
        let Some(number) = self.jobs.iter().position(|job| job.maker.pid == pid) else { return false };
        let maker = &mut self.jobs[number].maker;
        maker.receive();
        maker.end_early();
        self.finish(number);
        true
    }

    /// Gives up what takes too long.
    pub fn end_overdue(&mut self) {
        let now = Instant::now();
        while let Some(number) = self.jobs.iter().position(|job| job.deadline <= now) {
            let job = &mut self.jobs[number];
            let limit = match job.what {
                What::Container { .. } => CREATE_TIME,
                What::Process { .. } => EXEC_TIME,
            };
            job.maker.outcome = Some(Err(format!(
                "not ready within {} s, and given up: is a file system it needs out of reach?",
                limit.as_secs()
            )));
            self.finish(number);
        }
    }

    /// Gives up making the container `id`; false when it is not being made.
    pub fn give_up(&mut self, id: &str) -> bool {
        let of = |job: &Job| matches!(&job.what, What::Container { making, .. } if making.spec.id == id);
        let Some(number) = self.jobs.iter().position(of) else { return false };
        self.jobs[number].maker.outcome = Some(Err("removed while it was made".into()));
        self.finish(number);
        true
    }

    /// Gives up the process that ends with the connection `id`.
    pub fn give_up_bound(&mut self, id: u64) {
        let of = |job: &Job| matches!(&job.what, What::Process { session, bound: true, .. } if *session == id);
        if let Some(number) = self.jobs.iter().position(of) {
            self.jobs[number].maker.outcome = Some(Err("nobody waits for it any more".into()));
            self.finish(number);
        }
    }

    /// Gives up everything.
    pub fn give_up_all(&mut self) {
        self.waiting.clear();
        while let Some(job) = self.jobs.last_mut() {
            job.maker.outcome = Some(Err("the pod is being removed".into()));
            self.finish(self.jobs.len() - 1);
        }
    }

    fn finish(&mut self, number: usize) {
        let Job { mut maker, what, .. } = self.jobs.remove(number);
        maker.process = maker.process.filter(|&pid| self.is_new(pid));
        let outcome = match (maker.outcome.take(), maker.process) {
            (Some(Ok(())), Some(pid)) => Ok((pid, maker.terminal.take())),
            (Some(Err(e)), _) => Err(e),
            _ => Err("no process was made".into()),
        };
        if outcome.is_err() {
            maker.kill();
        }
        match what {
            What::Container { client, request, making } => {
                let (id, cgroup) = (making.spec.id.clone(), making.cgroup.clone());
                let made = outcome.and_then(|(pid, terminal)| self.pod.made(*making, pid, terminal));
                match made {
                    Ok(container) => {
                        let pid = container.info.pid;
                        self.add(container);
                        self.respond(client, request, Ok(Reply::Pid(pid)));
                        self.end_stray(Pid::from_raw(pid));
                    }
                    Err(e) => {
                        self.pod.hierarchies.signal_all(&cgroup, Signal::SIGKILL);
                        self.removals.push(Removal::after_failure(id, client, request, e));
                    }
                }
                self.thaw_if_done();
            }
            What::Process { session, bound, container } => {
                let made = outcome.and_then(|(pid, terminal)| {
                    // its end is awaited whatever comes of its terminal
                    self.execs.push(Exec { pid, session, bound });
                    terminal.iter().try_for_each(set_nonblocking).map(|()| (pid, terminal))
                });
                match made {
                    Ok((pid, terminal)) => {
                        if bound && !self.clients.contains_key(&session) {
                            let _ = kill(pid, Signal::SIGKILL);
                        }
                        self.streaming(session, Ok(()), terminal.as_ref());
                        self.end_stray(pid);
                    }
                    Err(e) => {
                        self.let_die(&container);
                        self.streaming(session, Err(e), None);
                    }
                }
            }
        }
        if self.jobs.is_empty() {
            self.strays.clear();
        }
        self.make_waiting();
    }

    fn add(&mut self, container: Container) {
        let cgroup = container.cgroup.clone();
        self.containers.push(container);
        // one that may trace others, or is beside such, made while another is
        if self.jobs.iter().any(|job| matches!(&job.what, What::Container { making, .. } if making.is_seen())) {
            let held = self.hold_still();
            let held =
                held.and_then(|still| if still.tracers.contains(&cgroup) { self.pod.freeze(&cgroup) } else { Ok(()) });
            if let Err(e) = held {
                tracing::error!("{e}");
            }
        }
    }

    /// Whether `pid` is, or was until just now, a child of the shim's that nobody else has made.
    fn is_new(&self, pid: Pid) -> bool {
        let known = self.containers.iter().any(|c| c.info.exit.is_none() && c.info.pid == pid.as_raw())
            || self.execs.iter().any(|e| e.pid == pid)
            || self.jobs.iter().any(|job| job.maker.pid == pid)
            || self.pod.held.pause == Some(pid);
        !known && (is_child(pid) || self.strays.iter().any(|end| end.pid == pid))
    }

    /// What was made may have ended already.
    fn end_stray(&mut self, pid: Pid) {
        let end = self.strays.iter().find(|end| end.pid == pid).copied();
        // else it is another's end, whose number this one got
        if let Some(end) = end.filter(|_| !is_child(pid)) {
            self.ended(end);
        }
    }

    /// A container's first process is seen by its neighbours while it still has the host's files for its own. Begins to stop
    /// those that may not be tracing then; the maker waits for them, and stops the tracers.
    fn hold_still(&mut self) -> Result<Still, String> {
        let still = Pod::not_to_go_on(&self.containers);
        for cgroup in still.others.iter().chain(&still.tracers) {
            if self.still.contains(cgroup) {
                continue;
            }
            if still.others.contains(cgroup) {
                self.pod.freeze(cgroup)?;
            }
            self.still.push(cgroup.clone());
        }
        Ok(still)
    }

    /// A maker that joined a container which had frozen itself would not even end (version 1).
    fn let_die(&self, container: &str) {
        let cgroup = self.pod.sandbox.container_cgroup(container);
        if !self.still.contains(&cgroup) {
            self.pod.hierarchies.thaw_all(&cgroup);
        }
    }

    fn thaw_if_done(&mut self) {
        if !self.jobs.iter().any(|job| matches!(&job.what, What::Container { making, .. } if making.is_seen())) {
            for cgroup in std::mem::take(&mut self.still) {
                self.pod.hierarchies.thaw(&cgroup);
            }
        }
    }
}
