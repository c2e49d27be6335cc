//! The worker's part in an eviction: the pod fails with the reason it was given, and its containers are ended in the
//! time they were given.

use std::time::Duration;

use tokio::sync::mpsc;
use tracing::warn;

use super::worker::Worker;
use crate::runtime::rotated_files;

/// Why this node ends a pod that could go on.
#[derive(Debug, Clone)]
pub(super) struct Evicted {
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Message of the condition `DisruptionTarget`.
    pub message: String,
}

impl Worker {
    /// Gives the pod up, unless it has come to an end already.
    pub(super) fn evict(&mut self, reason: &'static str, message: String, grace: Duration) {
        if self.failed.is_some() || self.ended() || self.deleted() {
            return;
        }
        self.event(None, "Warning", reason, message.clone());
        let condition = match reason {
            "Preempting" => "Pod was preempted by Kubelet to accommodate a critical pod.".to_owned(),
            _ => message.clone(),
        };
        self.failed = Some((reason.to_owned(), message));
        self.evicted = Some(Evicted { grace, message: condition });
    }

    /// Removes what ended runs have written, but the logs of the newest; `done` is dropped afterwards.
    pub(super) async fn clean(&mut self, done: mpsc::Sender<()>) {
        for state in self.containers.values() {
            let newest = state.current.iter().filter(|c| c.exit.is_some());
            for run in newest.chain(&state.last) {
                if let Err(error) = self.unmount(&run.spec.id).await {
                    warn!(container = run.spec.id, %error, "write layer not removed");
                }
            }
            for log in state.last.iter().flat_map(|run| rotated_files(&run.spec.log_path)) {
                if let Err(error) = std::fs::remove_file(&log) {
                    warn!(log = %log.display(), %error, "log not removed");
                }
            }
        }
        drop(done);
    }
}
