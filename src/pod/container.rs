//! What a worker remembers of one container of its pod.

use std::time::{Duration, Instant};

use super::backoff::{Backoff, INITIAL, MAX};
use super::probe::Probes;
use crate::runtime::{ContainerInfo, ExitRecord};

/// Label of a container that holds the image name as the pod wrote it.
pub const LABEL_IMAGE: &str = "image";
/// Label of a container that holds the digest of the image it was made from.
pub const LABEL_IMAGE_ID: &str = "image-id";

/// Why a container does not run, as `state.waiting` says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Such as `ErrImagePull` or `CreateContainerConfigError`.
    pub reason: &'static str,
    /// For a person.
    pub message: String,
}

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
            probes: None,
        }
    }
}

impl ContainerState {
    /// True while its process runs.
    pub fn running(&self) -> bool {
        self.current.as_ref().is_some_and(|c| c.started_at.is_some() && c.exit.is_none())
    }

    /// True once it has come up, as its startup probe says.
    pub fn started(&self) -> bool {
        self.running() && self.probes.as_ref().is_none_or(|p| p.started)
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

    /// Whether `policy` (`Always`, `OnFailure`, `Never`) wants an ended container started again.
    pub fn wants_restart(&self, policy: &str) -> bool {
        self.exit().is_some_and(|exit| restarts(policy, exit.code))
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

/// Whether `policy` (`Always`, `OnFailure`, `Never`) wants a container that ended with `code` started again.
pub fn restarts(policy: &str, code: i32) -> bool {
    policy == "Always" || policy == "OnFailure" && code != 0
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
    use crate::runtime::ContainerSpec;

    fn ended(code: i32) -> ContainerState {
        let exit = ExitRecord { code, signal: None, oom_killed: false, finished_at: 0 };
        let spec = ContainerSpec::default();
        let info = ContainerInfo { spec, pid: 1, started_at: Some(0), created_at: 0, exit: Some(exit) };
        ContainerState { current: Some(info), ..ContainerState::default() }
    }

    #[test]
    fn restart_policies() {
        for (policy, code, want) in [
            ("Always", 0, true),
            ("Always", 1, true),
            ("OnFailure", 0, false),
            ("OnFailure", 137, true),
            ("Never", 0, false),
            ("Never", 1, false),
        ] {
            assert_eq!(ended(code).wants_restart(policy), want, "{policy} {code}");
        }
        assert!(!ContainerState::default().wants_restart("Always"));
    }
}
