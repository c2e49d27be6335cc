//! Lifecycle hooks: postStart beside a container's run, preStop before its signal, within its grace period.
//!
//! Rules: Kubernetes "Container Lifecycle Hooks".

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod, Probe};
use nix::sys::signal::Signal;
use tracing::{debug, warn};

use super::message::Message;
use super::probe::{Check, Wrong};
use super::shared::Shared;
use super::termination;
use super::times::seconds;
use super::worker::Worker;

/// What a program has at least, also after its preStop hook has used up the grace period.
pub(super) const LEAST_GRACE: Duration = Duration::from_secs(2);
/// Longest time a postStart hook may take.
const POST_START: Duration = Duration::from_hours(1);

/// The preStop hook of a container.
pub(super) fn pre_stop(container: &Container) -> Option<&LifecycleHandler> {
    container.lifecycle.as_ref()?.pre_stop.as_ref()
}

/// A run of a container, as hooks need it.
#[derive(Clone)]
pub(super) struct Run {
    pub shared: Arc<Shared>,
    pub pod: Arc<Pod>,
    pub container: Container,
    pub sandbox: String,
    pub id: String,
    pub ip: String,
    pub stop_signal: i32,
}

impl Run {
    async fn handle(&self, handler: &LifecycleHandler, limit: Duration) -> Result<(), String> {
        if let Some(sleep) = &handler.sleep {
            tokio::time::sleep(seconds(sleep.seconds).min(limit)).await;
            return Ok(());
        }
        let probe = Probe {
            exec: handler.exec.clone(),
            http_get: handler.http_get.clone(),
            tcp_socket: handler.tcp_socket.clone(),
            ..Probe::default()
        };
        match Check::of(&probe, &self.container, &self.ip, &self.sandbox, &self.id) {
            Some(check) => {
                let looked = check?.of_hook().look(&self.shared.runtime, &self.shared.probe_clients, limit).await;
                if let Some(warning) = looked.map_err(Wrong::into_text)? {
                    self.shared.events.pod_event(&self.pod, None, "Warning", "LifecycleHTTPFallback", warning);
                }
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Writes a Warning about the container.
    pub fn event(&self, reason: &str, message: String) {
        self.shared.events.pod_event(&self.pod, Some(&self.container.name), "Warning", reason, message);
    }

    /// Runs the preStop hook, if there is one, for at most `grace`.
    pub async fn pre_stop(&self, grace: Duration) {
        let Some(hook) = pre_stop(&self.container) else { return };
        if grace.is_zero() {
            return;
        }
        if let Err(error) = self.handle(hook, grace).await {
            debug!(pod = self.pod.metadata.uid, container = self.container.name, error, "preStop hook failed");
            self.event("FailedPreStopHook", "PreStopHook failed".to_owned());
        }
    }

    /// Sends a signal to the first process, or to all.
    pub async fn signal(&self, signal: i32, all: bool) {
        let killed = self.shared.runtime.kill_container(&self.sandbox, &self.id, signal, all).await;
        if let Err(error) = killed {
            // one that was removed meanwhile needs nothing more
            warn!(pod = self.pod.metadata.uid, container = self.container.name, %error, "signal not delivered");
        }
    }

    /// preStop, the stop signal, and SIGKILL when the grace period is over.
    pub async fn end(self, grace: Duration) {
        let since = Instant::now();
        self.pre_stop(grace).await;
        self.signal(self.stop_signal, false).await;
        tokio::time::sleep(grace.saturating_sub(since.elapsed()).max(LEAST_GRACE)).await;
        self.signal(Signal::SIGKILL as i32, true).await;
    }
}

impl Worker {
    /// The present run of a container.
    pub(super) fn run_of(&self, container: &Container) -> Option<Run> {
        let sandbox = self.sandbox.as_ref()?;
        let current = self.containers.get(&container.name).filter(|s| s.running())?.current.as_ref()?;
        Some(Run {
            shared: self.shared.clone(),
            pod: self.pod.clone(),
            container: container.clone(),
            sandbox: sandbox.id.clone(),
            id: current.spec.id.clone(),
            stop_signal: termination::stop_signal_of(current),
            ip: sandbox.ips.first().map(ToString::to_string).unwrap_or_default(),
        })
    }

    /// Starts the postStart hook; the container is not ready before it has ended, and those after it wait.
    pub(super) fn post_start(&mut self, container: &Container) {
        let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.clone()) else { return };
        let Some(run) = self.run_of(container) else { return };
        self.state(&container.name).hooking = true;
        let tell = self.tx.clone();
        tokio::spawn(async move {
            let result = run.handle(&hook, POST_START).await;
            // a worker that has ended asks no more
            tell.send(Message::PostStarted { container: run.id, result });
        });
    }

    /// The postStart hook has ended: a container whose hook failed is stopped.
    pub(super) fn post_started(&mut self, id: &str, result: Result<(), String>) {
        let pod = self.pod.clone();
        let is_run = |s: &super::container::ContainerState| s.current.as_ref().is_some_and(|r| r.spec.id == id);
        let Some((name, state)) = self.containers.iter_mut().find(|(_, s)| is_run(s)) else { return };
        state.hooking = false;
        let name = name.clone();
        let Err(error) = result else {
            self.start_probes();
            return;
        };
        let Some(container) = super::containers(&pod).find(|c| c.name == name) else { return };
        debug!(pod = %self.uid, container = container.name, error, "postStart hook failed");
        self.event(Some(container), "Warning", "FailedPostStartHook", "PostStartHook failed".to_owned());
        if let Some(run) = self.run_of(container) {
            tokio::spawn(run.end(self.grace()));
        }
    }

    /// `terminationGracePeriodSeconds` of the pod.
    pub(super) fn grace(&self) -> Duration {
        seconds(self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30))
    }
}
