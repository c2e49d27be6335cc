//! What probes mean for a pod: they begin with a container's run, and one that is not alive is stopped.

use std::time::Duration;

use tracing::debug;

use super::probe::{self, Kind};
use super::times::seconds;
use super::worker::{Worker, now_nanos};

impl Worker {
    /// Starts the probes of containers that run and have none yet. Until a postStart hook has ended nothing is asked.
    pub(super) fn start_probes(&mut self) {
        let ending = self.ending.is_some();
        if !self.sandbox.as_ref().is_some_and(|s| s.ready) {
            return;
        }
        let pod = self.pod.clone();
        for container in super::containers(&pod) {
            let mut probes =
                [&container.startup_probe, &container.readiness_probe, &container.liveness_probe].into_iter();
            let state = self.containers.get(&container.name).filter(|s| s.probes.is_none() && !s.hooking);
            let (true, Some(state), Some(run)) = (probes.any(Option::is_some), state, self.run_of(container)) else {
                continue;
            };
            let started = state.current.as_ref().and_then(|c| c.started_at).unwrap_or_default();
            let age = Duration::from_nanos(u64::try_from(now_nanos().saturating_sub(started)).unwrap_or(0));
            let before = self.reported(&container.name, &run.id);
            let probes = probe::start(&run, age, before, ending, &self.tx);
            self.state(&container.name).probes = Some(probes);
        }
    }

    /// What an earlier agent has reported of this very run: started, ready.
    fn reported(&self, name: &str, id: &str) -> Option<(bool, bool)> {
        let status = self.pod.status.as_ref()?;
        let statuses = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        let full = format!("pikelet://{id}");
        let found = statuses.into_iter().find(|s| s.name == name && s.container_id.as_ref() == Some(&full))?;
        Some((found.started.unwrap_or(false), found.ready))
    }

    /// Takes the answer of a probe.
    pub(super) fn probed(&mut self, id: &str, kind: Kind, success: bool) {
        let pod = self.pod.clone();
        let Some(container) = super::containers(&pod).find(|c| {
            let state = self.containers.get(&c.name);
            state.is_some_and(|s| s.running() && s.current.as_ref().is_some_and(|r| r.spec.id == id))
        }) else {
            return;
        };
        debug!(pod = %self.uid, container = container.name, probe = kind.name(), success, "probed");
        if let Some(probes) = &mut self.state(&container.name).probes {
            probes.found(kind, success, container.readiness_probe.is_some());
        }
        let probe = match kind {
            Kind::Startup => container.startup_probe.as_ref(),
            Kind::Liveness => container.liveness_probe.as_ref(),
            Kind::Readiness => None,
        };
        let (Some(probe), false) = (probe, success) else { return };
        let message =
            format!("Container {} failed {} probe, will be restarted", container.name, kind.name().to_lowercase());
        self.event(Some(container), "Normal", "Killing", message);
        let own = probe.termination_grace_period_seconds;
        let grace = own.map_or_else(|| self.grace(), seconds);
        if let Some(run) = self.run_of(container) {
            tokio::spawn(run.end(grace));
        }
    }
}
