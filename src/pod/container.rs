//! What a worker remembers of one container of its pod.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};

use super::backoff::{Backoff, INITIAL, MAX, RESET_AFTER};
use super::probe::Probes;
use super::restart::restarts;
use crate::runtime::{ContainerInfo, ExitRecord};

/// Label of a container that holds the image name as the pod wrote it.
pub const LABEL_IMAGE: &str = "image";
/// Label of a container that holds the digest of the image it was made from.
pub const LABEL_IMAGE_ID: &str = "image-id";

/// Label of a run that holds the reason of its end, where the runtime cannot tell it.
pub const LABEL_REASON: &str = "exit-reason";

/// Why a container does not run, as `state.waiting` says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Such as `ErrImagePull` or `CreateContainerConfigError`.
    pub reason: &'static str,
    /// For a person.
    pub message: String,
}

/// The containers of a pod by name. Each in a box: a node of the map has room for eleven, and most pods have one.
pub type Containers = BTreeMap<String, Box<ContainerState>>;

/// One container of a pod: its present run, the one before it, and what keeps it from starting.
#[derive(Debug)]
pub struct ContainerState {
    /// The newest run.
    pub current: Option<ContainerInfo>,
    /// The run before (`lastState`).
    pub last: Option<ContainerInfo>,
    /// Set while it cannot start.
    pub waiting: Option<Waiting>,
    /// CrashLoopBackOff.
    pub crash: Backoff,
    /// ImagePullBackOff.
    pub pull: Backoff,
    /// The image of the last pull, and why that failed.
    pub pull_error: Option<(String, String)>,
    /// A pull is under way.
    pub pulling: bool,
    /// Number the next run gets.
    pub next_attempt: u32,
    /// Configuration errors are tried again after this.
    pub retry: Backoff,
    /// Text of the termination message file of `current`.
    pub message: Option<String>,
    /// Text of the termination message file of `last`.
    pub last_message: Option<String>,
    /// Its postStart hook is under way.
    pub hooking: bool,
    /// Resources the newest run has.
    pub applied: Option<ResourceRequirements>,
    /// It is started again for a resize or another image, whatever its policy says.
    pub changed: bool,
    /// Its probes while it runs.
    pub probes: Option<Probes>,
}

impl Default for ContainerState {
    fn default() -> Self {
        Self {
            current: None,
            last: None,
            waiting: None,
            crash: Backoff::new(INITIAL, MAX),
            pull: Backoff::new(INITIAL, MAX),
            pull_error: None,
            pulling: false,
            next_attempt: 0,
            retry: Backoff::new(Duration::from_millis(500), Duration::from_secs(5)),
            message: None,
            last_message: None,
            hooking: false,
            applied: None,
            changed: false,
            probes: None,
        }
    }
}

impl ContainerState {
    /// True while its process runs.
    pub fn running(&self) -> bool {
        self.current.as_ref().is_some_and(|c| c.started_at.is_some() && c.exit.is_none())
    }

    /// True while the containers after it wait: its image is being pulled, or its postStart hook is under way.
    pub fn holds_back(&self) -> bool {
        self.pulling || self.running() && self.hooking
    }

    /// True once it has come up: its postStart hook has ended, and its startup probe says so.
    pub fn started(&self) -> bool {
        self.running() && !self.hooking && self.probes.as_ref().is_none_or(|p| p.started)
    }

    /// True while it can serve, as its readiness probe says.
    pub fn ready(&self) -> bool {
        self.running() && !self.hooking && self.probes.as_ref().is_none_or(|p| p.ready)
    }

    /// How the newest run ended, if it has.
    pub fn exit(&self) -> Option<&ExitRecord> {
        self.current.as_ref()?.exit.as_ref()
    }

    /// True when the newest run ended with code 0.
    pub fn succeeded(&self) -> bool {
        self.exit().is_some_and(|e| e.code == 0)
    }

    /// Runs before the newest one.
    pub fn restart_count(&self) -> u32 {
        self.current.as_ref().map_or(self.next_attempt, |c| c.spec.attempt)
    }

    /// Whether the container of that name, if it has ended, is to be started again.
    pub fn wants_restart(&self, pod: &Pod, name: &str) -> bool {
        self.exit().is_some_and(|exit| self.changed || restarts(pod, name, exit.code))
    }

    /// Decides how long the next start waits after a run of that length: the first restart comes at once, also after a long
    /// time without one; each that follows waits twice as long.
    pub fn back_off(&mut self, ran: Duration, crashed: bool, now: Instant) {
        if ran >= RESET_AFTER {
            self.crash.reset();
        } else if crashed && self.restart_count() > 0 {
            self.crash.fail(now);
        }
    }

    /// Puts a wait in place; true when it says something new.
    pub fn wait(&mut self, reason: &'static str, message: impl Into<String>) -> bool {
        let waiting = Waiting { reason, message: message.into() };
        let new = self.waiting.as_ref() != Some(&waiting);
        self.waiting = Some(waiting);
        new
    }

    /// The earliest moment something is due by itself.
    pub fn wake(&self, now: Instant) -> Option<Instant> {
        [self.crash.pending(now), self.pull.pending(now), self.retry.pending(now)].into_iter().flatten().min()
    }
}

/// Why a run ended: what is noted of it, or what its end says.
pub fn reason_of<'a>(run: &'a ContainerInfo, exit: &ExitRecord) -> &'a str {
    run.spec.labels.get(LABEL_REASON).map_or_else(|| exit_reason(exit), String::as_str)
}

/// `Error`, `Completed` or `OOMKilled`.
pub fn exit_reason(exit: &ExitRecord) -> &'static str {
    match exit {
        ExitRecord { oom_killed: true, .. } => "OOMKilled",
        ExitRecord { code: 0, .. } => "Completed",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_after_a_long_run_is_as_the_first() {
        let now = Instant::now();
        let mut state = ContainerState { next_attempt: 3, ..ContainerState::default() };
        let mut ends = |minutes| {
            state.back_off(Duration::from_mins(minutes), true, now);
            state.crash.pending(now).map(|at| (at - now).as_secs())
        };
        assert_eq!((ends(1), ends(9), ends(10), ends(0)), (Some(10), Some(20), None, Some(10)));
    }
}
