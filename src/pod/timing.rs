//! How long a pod took to start, and what of that was its own matter: told once, when it runs.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ContainerState, Pod, PodStatus};

use super::PodExt;
use crate::metrics;

/// The start of one pod, as far as this agent has seen it.
#[derive(Debug)]
pub(super) struct Timing {
    seen: Instant,
    /// It has run before this agent saw it, or its start is told.
    runs: bool,
    started: bool,
    pulls: u32,
    pulling: Option<Instant>,
    pulled: Duration,
}

impl Timing {
    /// Of a pod that is seen now, with the status it had then.
    pub fn new(status: &PodStatus) -> Self {
        let before = status.start_time.is_some();
        let runs = !matches!(status.phase.as_deref(), None | Some("Pending"));
        let (seen, pulling, pulled) = (Instant::now(), None, Duration::ZERO);
        Self { seen, runs, started: before || runs, pulls: 0, pulling, pulled }
    }

    /// A pull begins, maybe beside others.
    pub fn pull(&mut self) {
        self.pulls += 1;
        self.pulling.get_or_insert_with(Instant::now);
    }

    /// A pull has ended.
    pub fn pulled(&mut self) {
        self.pulls = self.pulls.saturating_sub(1);
        if self.pulls == 0 {
            self.pulled += self.pulling.take().map(|since| since.elapsed()).unwrap_or_default();
        }
    }

    /// Looks at the newest status.
    pub fn look(&mut self, pod: &Pod, status: &PodStatus) {
        if status.phase.as_deref() != Some("Running") {
            return;
        }
        if !std::mem::replace(&mut self.runs, true) {
            metrics::POD_STARTS.observe([], self.seen.elapsed());
        }
        let mut containers = status.container_statuses.iter().flatten();
        let all = containers.all(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()));
        if self.started || !all {
            return;
        }
        self.started = true;
        // of a manifest nobody knows when it was made
        let Some(made) = pod.metadata.creation_timestamp.as_ref().filter(|_| !pod.is_static()) else { return };
        let Ok(took) = Duration::try_from(jiff::Timestamp::now().duration_since(made.0)) else { return };
        metrics::POD_STARTS_IN_ALL.observe([], took);
        if !keeps_state(pod) {
            let own = self.pulled + init_time(status);
            metrics::POD_STARTS_OF_NODE.observe([], took.saturating_sub(own));
        }
    }
}

/// Whether a volume of it may be more than a folder of its own, as the kubelet asks it.
fn keeps_state(pod: &Pod) -> bool {
    pod.pod_spec().into_iter().flat_map(|s| s.volumes.iter().flatten()).any(|v| {
        let own = v.secret.is_some() || v.config_map.is_some() || v.downward_api.is_some();
        !(own || v.empty_dir.is_some() || v.projected.is_some())
    })
}

/// How long init containers ran that have ended.
fn init_time(status: &PodStatus) -> Duration {
    let states = status.init_container_statuses.iter().flatten().filter_map(|c| c.state.as_ref());
    let time = |state: &ContainerState| {
        let ended = state.terminated.as_ref()?;
        Duration::try_from(ended.finished_at.as_ref()?.0.duration_since(ended.started_at.as_ref()?.0)).ok()
    };
    states.filter_map(time).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::metrics::Family;

    #[test]
    fn a_start_is_told_once_and_only_if_it_was_seen() {
        let count = |family: &dyn Family| family.samples().last().unwrap().value;
        let now = jiff::Timestamp::now().to_string();
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"creationTimestamp": now}, "spec": {"containers": []}}))
                .unwrap();
        let status = |phase: &str, running: bool| -> PodStatus {
            let state = if running { json!({"running": {}}) } else { json!({"waiting": {}}) };
            let container =
                json!({"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": state});
            serde_json::from_value(json!({"phase": phase, "containerStatuses": [container]})).unwrap()
        };
        let families: [&dyn Family; 3] =
            [&metrics::POD_STARTS, &metrics::POD_STARTS_IN_ALL, &metrics::POD_STARTS_OF_NODE];
        let before = families.map(count);
        let mut timing = Timing::new(&PodStatus::default());
        timing.pull();
        timing.look(&pod, &status("Pending", false));
        timing.pulled();
        assert_eq!(families.map(count), before);
        timing.look(&pod, &status("Running", false));
        assert_eq!(count(families[0]) - before[0], 1.0);
        assert_eq!(count(families[1]), before[1], "one of its containers does not run");
        timing.look(&pod, &status("Running", true));
        timing.look(&pod, &status("Running", true));
        let mut adopted = Timing::new(&status("Running", true));
        adopted.look(&pod, &status("Running", true));
        assert_eq!(families.map(count), before.map(|n| n + 1.0));
    }

    #[test]
    fn what_is_the_pods_own_matter_is_left_out() {
        let init = json!({"name": "i", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"terminated":
            {"exitCode": 0, "startedAt": "2030-01-01T00:00:00Z", "finishedAt": "2030-01-01T00:00:07Z"}}});
        let status: PodStatus = serde_json::from_value(json!({"initContainerStatuses": [init]})).unwrap();
        assert_eq!(init_time(&status), Duration::from_secs(7));
        let with = |volume| -> Pod {
            serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [], "volumes": [volume]}})).unwrap()
        };
        assert!(!keeps_state(&with(json!({"name": "v", "emptyDir": {}}))));
        assert!(keeps_state(&with(json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}))));
    }
}
