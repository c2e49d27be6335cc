//! Taking a pod down: signals, grace, removal of all it had. Teardown collects errors, goes on, and is repeated until it is whole.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tracing::warn;

use super::backoff::Backoff;
use super::ephemeral::all_containers;
use super::hook::{LEAST_GRACE, pre_stop, seconds};
use super::worker::Worker;
use super::{PodExt, log_links};
use crate::runtime::{ContainerInfo, rotated_files};

/// Longest wait between two tries of a teardown that left something.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// How far the stopping of a pod has come.
#[derive(Debug)]
pub(super) struct Stopping {
    since: Instant,
    grace: Duration,
    killed: bool,
    retry: Backoff,
    finished: bool,
}

impl Stopping {
    fn new(grace: Duration) -> Self {
        let retry = Backoff::new(Duration::from_millis(100), RETRY_MAX);
        Self { since: Instant::now(), grace, killed: false, retry, finished: false }
    }

    /// Nothing of the pod is left on this node.
    pub fn finished(&self) -> bool {
        self.finished
    }
}

impl Worker {
    /// One step of stopping; returns when the next is due by itself.
    pub(super) async fn stop(&mut self) -> Option<Instant> {
        let grace = if self.removed && self.pod.metadata.deletion_timestamp.is_none() {
            self.grace()
        } else {
            seconds(self.pod.grace_seconds())
        };
        if self.stopping.is_none() {
            self.stopping = Some(Stopping::new(grace));
            for probes in self.containers.values_mut().filter_map(|c| c.probes.as_mut()) {
                probes.stop();
            }
            self.ask_to_end(grace).await;
        }
        let stopping = self.stopping.get_or_insert_with(|| Stopping::new(grace));
        // a second delete may only shorten the time
        stopping.grace = stopping.grace.min(grace);
        let deadline = stopping.since + stopping.grace + self.hook_allowance();
        if self.containers.values().any(super::container::ContainerState::running) {
            if Instant::now() < deadline {
                return Some(deadline);
            }
            if let Some(stopping) = self.stopping.as_mut().filter(|s| !s.killed) {
                stopping.killed = true;
                self.kill_all().await;
            }
            // the exit events wake the worker; look again should one be missed
            return Some(Instant::now() + RETRY_MAX);
        }
        if let Some(at) = self.stopping.as_ref().and_then(|s| s.retry.pending(Instant::now())) {
            return Some(at);
        }
        let mut errors = self.drop_sandbox().await;
        errors.extend(self.shared.volumes.teardown(&self.uid).await);
        self.volumes = None;
        if errors.is_empty() {
            errors.extend(self.remove_pod_dir());
        }
        let now = Instant::now();
        let stopping = self.stopping.get_or_insert_with(|| Stopping::new(grace));
        if errors.is_empty() {
            stopping.finished = true;
            return None;
        }
        stopping.retry.fail(now);
        warn!(pod = %self.uid, errors = errors.join("; "), "teardown left something: trying again");
        stopping.retry.pending(now)
    }

    /// preStop hooks, then the stop signal: to every running container at once.
    async fn ask_to_end(&self, grace: Duration) {
        let pod = self.pod.clone();
        for container in all_containers(&pod) {
            let Some(run) = self.run_of(&container) else { continue };
            let message = format!("Stopping container {}", container.name);
            self.shared.events.pod_event(&pod, Some(&container.name), "Normal", "Killing", message);
            if pre_stop(&container).is_some() {
                tokio::spawn(run.ask_to_end(grace));
            } else {
                run.ask_to_end(grace).await;
            }
        }
    }

    /// What is added to the grace period for programs whose preStop hook may have used it up.
    fn hook_allowance(&self) -> Duration {
        if super::containers(&self.pod).any(|c| pre_stop(c).is_some()) { LEAST_GRACE } else { Duration::ZERO }
    }

    async fn kill_all(&self) {
        let pod = self.pod.clone();
        for run in all_containers(&pod).filter_map(|c| self.run_of(&c)) {
            run.signal(Signal::SIGKILL as i32, true).await;
        }
    }

    /// Stops what may still run, and gives back sandbox, addresses and write layers; statuses and logs stay.
    pub(super) async fn end_of_life(&mut self) {
        if self.sandbox.is_some() {
            let errors = self.drop_sandbox().await;
            if !errors.is_empty() {
                warn!(pod = %self.uid, errors = errors.join("; "), "ended pod not wholly taken down");
            }
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
        for state in self.containers.values() {
            for run in state.current.iter().chain(&state.last) {
                let dir = self.shared.containers_dir.join(&run.spec.id);
                if let Err(error) = self.shared.images.unmount(&dir).await {
                    errors.push(error.to_string());
                }
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
        if let Err(error) = self.shared.runtime.remove_container(sandbox, id).await {
            warn!(container = %id, %error, "ended container not removed");
        }
        if let Err(error) = self.shared.images.unmount(&self.shared.containers_dir.join(id)).await {
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

    fn remove_pod_dir(&self) -> Option<String> {
        let logs = self.shared.logs_dir.join(format!("{}_{}_{}", self.pod.ns(), self.pod.name(), self.uid));
        let dir = self.shared.pods_dir.join(&self.uid);
        log_links::remove(&self.shared.logs_dir, &logs);
        for path in [logs, dir] {
            match std::fs::remove_dir_all(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Some(format!("removing {}: {error}", path.display()));
                }
                _ => {}
            }
        }
        None
    }
}
