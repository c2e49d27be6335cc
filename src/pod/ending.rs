//! The containers of a pod brought to an end: hooks first, then stop signals in turn, SIGKILL when the grace period is over.
//!
//! Rules: Kubernetes "Pod Lifecycle" (termination of Pods), "Sidecar Containers" (they end last, in reverse order).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use nix::sys::signal::Signal;
use tokio::sync::watch;

use super::ephemeral::all_containers;
use super::hook::{LEAST_GRACE, Run, pre_stop};
use super::worker::Worker;
use super::{PodExt, is_sidecar};

/// How long killed containers may take to end. Then their sandbox is given up, with its shim, which may be stuck.
const KILLED: Duration = Duration::from_secs(3);
/// Poll interval for the exits of containers, in case an event is lost.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// How far the end of a pod's containers has come.
#[derive(Debug)]
pub(super) struct Ending {
    since: Instant,
    grace: Duration,
    killed: Option<Instant>,
    abandoned: bool,
    /// Names of containers that still run, for those whose turn comes after them.
    running: watch::Sender<BTreeSet<String>>,
}

/// The containers that must have ended before `name` is asked to: of a sidecar, what uses it.
fn before(pod: &Pod, name: &str) -> Vec<String> {
    let sidecars = || pod.init_containers().iter().filter(|c| is_sidecar(c));
    let Some(place) = sidecars().position(|c| c.name == name) else { return Vec::new() };
    pod.app_containers().iter().chain(sidecars().skip(place + 1)).map(|c| c.name.clone()).collect()
}

/// preStop, the wait for its turn, and the stop signal.
async fn ask_in_turn(run: Run, grace: Duration, mut running: watch::Receiver<BTreeSet<String>>, before: Vec<String>) {
    let since = Instant::now();
    run.pre_stop(grace).await;
    let turn = running.wait_for(|names| !before.iter().any(|b| names.contains(b)));
    // when the time is over it is asked all the same
    let _ = tokio::time::timeout(grace.saturating_sub(since.elapsed()), turn).await;
    run.signal(run.stop_signal, false).await;
}

impl Worker {
    /// One step of ending all containers within `grace`; a shorter one than before shortens the time.
    /// `None` when none runs any more, else when the next step is due by itself.
    pub(super) async fn end_containers(&mut self, grace: Duration) -> Option<Instant> {
        let running = self.containers.iter().filter(|(_, s)| s.running()).map(|(name, _)| name.clone()).collect();
        if let Some(ending) = &mut self.ending {
            ending.grace = ending.grace.min(grace);
            ending.running.send_replace(running);
        } else {
            let ending = Ending {
                since: Instant::now(),
                grace,
                killed: None,
                abandoned: false,
                running: watch::Sender::new(running),
            };
            self.ask_all(&ending).await;
            self.ending = Some(ending);
            // whoever was asked by an agent before this one
            self.start_probes();
        }
        let ending = self.ending.as_mut().filter(|_| self.containers.values().any(|s| s.running()))?;
        let deadline = ending.since + time_of(&self.pod, ending.grace);
        if Instant::now() < deadline {
            return Some(deadline);
        }
        let Some(killed) = ending.killed else {
            let pod = self.pod.clone();
            let runs: Vec<_> = all_containers(&pod).filter_map(|c| self.run_of(&c)).collect();
            join_all(runs.iter().map(|run| run.signal(Signal::SIGKILL as i32, true))).await;
            let now = Instant::now();
            self.ending.as_mut()?.killed = Some(now);
            return Some(now + KILLED);
        };
        if killed.elapsed() < KILLED {
            return Some(killed + KILLED);
        }
        if !std::mem::replace(&mut ending.abandoned, true)
            && let Some(sandbox) = &self.sandbox
        {
            self.shared.runtime.abandon(&sandbox.id).await;
        }
        Some(Instant::now() + LOOK_AGAIN)
    }

    async fn ask_all(&mut self, ending: &Ending) {
        for probes in self.containers.values_mut().filter_map(|c| c.probes.as_mut()) {
            probes.end();
        }
        let pod = self.pod.clone();
        let mut at_once = Vec::new();
        for container in all_containers(&pod) {
            let Some(run) = self.run_of(&container) else { continue };
            let message = format!("Stopping container {}", container.name);
            self.shared.events.pod_event(&pod, Some(&container.name), "Normal", "Killing", message);
            let before = before(&pod, &container.name);
            if pre_stop(&container).is_some() || !before.is_empty() {
                tokio::spawn(ask_in_turn(run, ending.grace, ending.running.subscribe(), before));
            } else {
                at_once.push(run);
            }
        }
        join_all(at_once.iter().map(|run| run.signal(run.stop_signal, false))).await;
    }
}

/// How long programs have from being asked to end: a moment at least, and more where a hook, or the turn of another, may have
/// used it up.
fn time_of(pod: &Pod, grace: Duration) -> Duration {
    let late = |c| pre_stop(c).is_some() || is_sidecar(c);
    let more = if !grace.is_zero() && super::containers(pod).any(late) { LEAST_GRACE } else { Duration::ZERO };
    (grace + more).max(LEAST_GRACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sidecars_end_after_what_uses_them() {
        let pod = serde_json::json!({"metadata": {}, "spec": {
            "initContainers": [
                {"name": "one", "restartPolicy": "Always"}, {"name": "init"}, {"name": "two", "restartPolicy": "Always"}],
            "containers": [{"name": "a"}, {"name": "b"}]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        assert_eq!(before(&pod, "one"), ["a", "b", "two"]);
        assert_eq!(before(&pod, "two"), ["a", "b"]);
        assert!(before(&pod, "a").is_empty() && before(&pod, "init").is_empty());
    }
}
