//! What a person on the machine orders of a pod: its containers stopped, or its sandbox made anew.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::oneshot;
use tracing::warn;

use super::ephemeral::all_containers;
use super::worker::Worker;

/// An order to the manager.
#[derive(Debug)]
pub enum Order {
    /// Stop every pod and then the agent.
    Drain {
        /// They go on when the machine has been restarted (`halt.rs`).
        for_restart: bool,
        /// Told when none is left.
        done: oneshot::Sender<()>,
    },
    /// Stop runs of containers of a pod. Its restart policy decides what comes then.
    Stop {
        /// The pod.
        uid: String,
        /// Container ids.
        containers: Vec<String>,
        /// Time between SIGTERM and SIGKILL; `None`: the pod's own.
        grace: Option<Duration>,
    },
    /// End a pod for the sake of others.
    Evict {
        /// The pod.
        uid: String,
        /// Reason of its status: `Evicted`, `Preempting`.
        reason: &'static str,
        /// Message of its status.
        message: String,
        /// Time between SIGTERM and SIGKILL.
        grace: Duration,
    },
    /// Remove what ended containers of all pods have written; answered when that is done.
    Clean(oneshot::Sender<()>),
    /// Stop all containers of a pod and remove its sandbox; a pod that is still wanted gets another one.
    Renew {
        /// The pod.
        uid: String,
        /// As for `Stop`.
        grace: Option<Duration>,
        /// Told when the sandbox is gone, or why it is not. Dropped when the pod goes first.
        done: oneshot::Sender<Result<(), String>>,
    },
}

impl Worker {
    /// preStop, SIGTERM and SIGKILL for the running containers that `which` takes.
    pub(super) fn stop_runs(&mut self, which: impl Fn(&str) -> bool, grace: Option<Duration>) {
        let pod = self.pod.clone();
        let grace = grace.unwrap_or_else(|| self.grace());
        for container in all_containers(&pod) {
            let Some(run) = self.run_of(&container).filter(|r| which(&r.id)) else { continue };
            let message = format!("Stopping container {}", container.name);
            self.shared.events.pod_event(&pod, Some(&container.name), "Normal", "Killing", message);
            if let Some(probes) = &mut self.state(&container.name).probes {
                probes.stop();
            }
            if grace.is_zero() {
                tokio::spawn(async move { run.signal(Signal::SIGKILL as i32, true).await });
            } else {
                tokio::spawn(run.end(grace));
            }
        }
    }

    /// Stops all containers, so that [`Worker::renewed`] can go on when they have ended.
    pub(super) fn renew(&mut self, grace: Option<Duration>, done: oneshot::Sender<Result<(), String>>) {
        // one who asked before hears nothing more, and sees that the sandbox is removed
        self.renewal = Some(done);
        self.stop_runs(|_| true, grace);
    }

    /// Removes the sandbox an order waits for, once nothing runs in it; false while something does.
    pub(super) async fn renewed(&mut self) -> bool {
        if self.renewal.is_none() {
            return true;
        }
        if self.containers.values().any(|s| s.running()) {
            return false;
        }
        let errors = self.drop_sandbox().await;
        if !errors.is_empty() {
            warn!(pod = %self.uid, errors = errors.join("; "), "sandbox not wholly removed");
        }
        if let Some(done) = self.renewal.take() {
            let result = if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) };
            // the one who asked may have gone away
            let _ = done.send(result);
        }
        if self.ended() {
            return true;
        }
        // the containers of a fresh one start at once
        for state in self.containers.values_mut() {
            state.crash.reset();
            state.waiting = None;
        }
        true
    }
}
