//! Taking a pod down: signals, grace, removal of all it had. Teardown collects errors, goes on, and is repeated until it is whole.

use std::time::{Duration, Instant};

use tracing::warn;

use super::backoff::Backoff;
use super::hook::LEAST_GRACE;
use super::recall::is_recalled;
use super::times::seconds;
use super::worker::Worker;
use super::{PodExt, checkpoint, log_links};
use crate::runtime::{ContainerInfo, rotated_files};
use crate::{files, volume};

/// Longest wait between two tries of a teardown that left something.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// How far the stopping of a pod has come.
#[derive(Debug)]
pub(super) struct Stopping {
    retry: Backoff,
    finished: bool,
}

impl Default for Stopping {
    fn default() -> Self {
        Self { retry: Backoff::new(Duration::from_millis(100), RETRY_MAX), finished: false }
    }
}

impl Stopping {
    /// Nothing of the pod is left on this node.
    pub fn finished(&self) -> bool {
        self.finished
    }
}

impl Worker {
    /// One step of stopping; returns when the next is due by itself.
    pub(super) async fn stop(&mut self) -> Option<Instant> {
        let grace = match self.pod.metadata.deletion_timestamp {
            // one that is gone from the API server by force has a little time, as Kubernetes says
            _ if self.forced => self.grace().min(LEAST_GRACE),
            None if self.removed => self.grace(),
            _ => seconds(self.pod.grace_seconds()),
        };
        if self.stopping.is_none() {
            self.note_deletion();
            self.stopping = Some(Stopping::default());
        }
        if let Some(at) = self.end_containers(grace).await {
            return Some(at);
        }
        if let Some(at) = self.stopping.as_ref().and_then(|s| s.retry.pending(Instant::now())) {
            return Some(at);
        }
        let mut errors = self.drop_sandbox().await;
        // before the checkpoint goes with the folder: nobody would know of them after that
        errors.extend(self.remove_logs().await);
        errors.extend(self.shared.volumes.teardown(&self.uid).await);
        self.volumes = None;
        let now = Instant::now();
        let stopping = self.stopping.get_or_insert_default();
        if errors.is_empty() {
            stopping.finished = true;
            return None;
        }
        stopping.retry.fail(now);
        warn!(pod = %self.uid, errors = errors.join("; "), "teardown left something: trying again");
        stopping.retry.pending(now)
    }

    /// So that an agent that starts meanwhile goes on with it. A drain is no deletion: what it ends may come back.
    fn note_deletion(&self) {
        let meant = self.pod.metadata.deletion_timestamp.is_some() || self.forced || self.pod.is_static();
        if !meant {
            return;
        }
        if let Err(error) = checkpoint::note_deletion(&self.shared.pods_dir, &self.uid, &self.pod) {
            warn!(pod = %self.uid, %error, "checkpoint not written: an agent that starts now would not know of the deletion");
        }
    }

    /// Gives back sandbox, addresses, write layers and volumes; statuses and logs stay.
    pub(super) async fn end_of_life(&mut self) {
        if self.released && self.sandbox.is_none() {
            return;
        }
        self.shared.allocations.release(&self.uid);
        let mut errors = self.drop_sandbox().await;
        if errors.is_empty() {
            errors.extend(self.shared.volumes.release(&self.uid).await);
            self.volumes = None;
        }
        self.released = errors.is_empty();
        if self.released {
            self.reduce();
        }
        if !errors.is_empty() {
            warn!(pod = %self.uid, errors = errors.join("; "), "ended pod not wholly taken down");
        }
    }

    /// Removes the sandbox with its containers, network and write layers; returns what could not be done.
    pub(super) async fn drop_sandbox(&mut self) -> Vec<String> {
        let mut errors = Vec::new();
        let Some(sandbox) = self.sandbox.as_mut() else { return errors };
        let id = sandbox.id.clone();
        sandbox.ready = false;
        if let Err(error) = self.shared.network.detach(&id).await {
            errors.push(error.to_string());
        }
        if let Err(error) = self.shared.runtime.remove_sandbox(&id).await {
            errors.push(error.to_string());
        }
        let shared = self.shared_memory();
        let removed = tokio::task::spawn_blocking(move || volume::remove_tree(&shared)).await;
        errors.extend(removed.unwrap_or_else(|e| vec![e.to_string()]));
        for state in self.containers.values() {
            for run in state.current.iter().chain(&state.last) {
                errors.extend(self.unmount(&run.spec.id).await.err());
            }
        }
        for id in std::mem::take(&mut self.half_made) {
            if let Err(error) = self.unmount(&id).await {
                errors.push(error);
                self.half_made.push(id);
            }
        }
        if errors.is_empty() {
            self.sandbox = None;
        }
        errors
    }

    /// Removes one ended run: state, cgroup, write layer and log.
    pub(super) async fn discard(&self, sandbox: &str, run: &ContainerInfo) {
        let id = &run.spec.id;
        if is_recalled(run) {
            return;
        }
        if let Err(error) = self.shared.runtime.remove_container(sandbox, id).await {
            warn!(container = %id, %error, "ended container not removed");
        }
        if let Err(error) = self.unmount(id).await {
            warn!(container = %id, %error, "write layer not removed");
        }
        log_links::remove(&self.shared.logs_dir, &run.spec.log_path);
        let logs = rotated_files(&run.spec.log_path);
        for file in [Some(&run.spec.log_path), run.spec.termination_log.as_ref()].into_iter().flatten().chain(&logs) {
            if let Err(error) = std::fs::remove_file(file)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                warn!(file = %file.display(), %error, "file of an ended container not removed");
            }
        }
    }

    async fn remove_logs(&self) -> Option<String> {
        let logs = self.shared.logs_dir.join(format!("{}_{}_{}", self.pod.ns(), self.pod.name(), self.uid));
        log_links::remove(&self.shared.logs_dir, &logs);
        let place = logs.clone();
        let removed = files::removal(move || files::remove_tree(&place)).await.flatten();
        removed.err().map(|error| format!("removing {}: {error}", logs.display()))
    }
}
