//! Startup, readiness and liveness probes: a task for each, which tells its worker when an answer changes.
//!
//! Rules: Kubernetes "Configure Liveness, Readiness and Startup Probes".

mod check;
mod counts;

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;
use tokio::sync::watch;
use tokio::task::AbortHandle;

pub use check::{Check, Clients, Wrong};
pub use counts::Counts;

use super::hook::Run;
use super::mailbox::Post;
use super::message::Message;

/// The three questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Has it come up? The others wait for it.
    Startup,
    /// Can it serve?
    Readiness,
    /// Should it be started again?
    Liveness,
}

impl Kind {
    /// As Events say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// The probes of one run of a container, and what they have found. They end when this is dropped.
#[derive(Debug)]
pub struct Probes {
    /// It has come up.
    pub started: bool,
    /// It can serve.
    pub ready: bool,
    come_up: watch::Sender<bool>,
    tasks: Vec<(Kind, AbortHandle)>,
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts the probes of a container that has run for `age`; only the one of readiness when its pod is `ending`. `before`:
/// whether it had started and was ready when an earlier agent last looked.
pub(super) fn start(run: &Run, age: Duration, before: Option<(bool, bool)>, ending: bool, tell: &Post) -> Probes {
    let container = &run.container;
    let (had_started, was_ready) = before.unwrap_or((false, false));
    let started = container.startup_probe.is_none() || had_started;
    let ready = if container.readiness_probe.is_none() { started } else { was_ready };
    let come_up = watch::Sender::new(started);
    let mut tasks = Vec::new();
    let anew = run.shared.begun.elapsed();
    for (kind, probe) in [
        (Kind::Startup, container.startup_probe.as_ref().filter(|_| !started)),
        (Kind::Readiness, container.readiness_probe.as_ref()),
        (Kind::Liveness, container.liveness_probe.as_ref()),
    ] {
        let Some(probe) = probe.filter(|_| !ending || kind == Kind::Readiness) else { continue };
        let Some(check) = Check::of(probe, container, &run.ip, &run.sandbox, &run.id) else { continue };
        let check = check.and_then(|check| check.of_probe(container));
        let prober = Prober { run: run.clone(), kind, check, tell: tell.clone(), come_up: come_up.subscribe() };
        let (probe, pause) = (probe.clone(), first_pause(probe, age, anew));
        let asking = async move {
            tokio::time::sleep(pause).await;
            Box::pin(prober.ask(probe, age + pause)).await;
        };
        tasks.push((kind, tokio::spawn(asking).abort_handle()));
    }
    Probes { started, ready, come_up, tasks }
}

impl Probes {
    /// Takes an answer.
    pub fn found(&mut self, kind: Kind, success: bool, has_readiness: bool) {
        match kind {
            Kind::Startup if success => {
                self.started = true;
                self.ready |= !has_readiness;
                self.come_up.send_replace(true);
            }
            Kind::Readiness => self.ready = success,
            Kind::Startup | Kind::Liveness => {}
        }
    }

    /// Asks no more; what was found stays.
    pub fn stop(&mut self) {
        self.tasks.drain(..).for_each(|(_, task)| task.abort());
    }

    /// Asks no more but whether it can serve: what ends says so itself.
    pub fn end(&mut self) {
        self.tasks.retain(|(kind, task)| {
            let stays = *kind == Kind::Readiness;
            if !stays {
                task.abort();
            }
            stays
        });
    }
}

struct Prober {
    run: Run,
    kind: Kind,
    check: Result<Check, String>,
    tell: Post,
    come_up: watch::Receiver<bool>,
}

fn seconds(value: Option<i32>, default: u64) -> u64 {
    value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
}

fn period(probe: &Probe) -> Duration {
    Duration::from_secs(seconds(probe.period_seconds, 10))
}

/// How long the first look at a container of that `age` waits. An agent that was started anew, so long ago, begins with all
/// probes of its node at once: each waits for a part of its period, as the kubelet's do.
fn first_pause(probe: &Probe, age: Duration, anew: Duration) -> Duration {
    let period = period(probe);
    if age > anew && anew < period { period.mul_f64(rand::random::<f64>()) } else { Duration::ZERO }
}

/// How often one tries to ask at all.
const TRIES: usize = 3;

impl Prober {
    async fn look(&self, limit: Duration) -> Result<Option<String>, Wrong> {
        match &self.check {
            Ok(check) => check.look(&self.run.shared.runtime, &self.run.shared.probe_clients, limit).await,
            Err(error) => Err(Wrong::NotAsked(error.clone())),
        }
    }

    async fn ask(mut self, probe: Probe, age: Duration) {
        let begun = tokio::time::Instant::now();
        if self.kind != Kind::Startup && self.come_up.wait_for(|up| *up).await.is_err() {
            return;
        }
        // counted from the container's start, however long it took to come up
        let delay = Duration::from_secs(seconds(probe.initial_delay_seconds, 0)).saturating_sub(age + begun.elapsed());
        tokio::time::sleep(delay).await;
        let mut tick = tokio::time::interval(period(&probe));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let limit = Duration::from_secs(seconds(probe.timeout_seconds, 1));
        let (needed, allowed) = (seconds(probe.success_threshold, 1), seconds(probe.failure_threshold, 3));
        let (mut row, mut last, mut told) = (0, None, None);
        loop {
            tick.tick().await;
            let mut looked = self.look(limit).await;
            for _ in 1..TRIES {
                if matches!(looked, Err(Wrong::NotAsked(_))) {
                    looked = self.look(limit).await;
                }
            }
            if let Err(Wrong::NotAsked(error)) = looked {
                let probe = self.kind.name();
                self.run.event("Unhealthy", format!("{probe} probe errored and resulted in unknown state: {error}"));
                continue;
            }
            let success = looked.is_ok();
            self.run.shared.probe_counts.add(&self.run.pod, &self.run.container.name, self.kind, success);
            row = if last == Some(success) { row + 1 } else { 1 };
            last = Some(success);
            match looked {
                Ok(None) => {}
                Ok(Some(warning)) => {
                    self.run.event("ProbeWarning", format!("{} probe warning: {warning}", self.kind.name()));
                }
                Err(wrong) => {
                    let (probe, error) = (self.kind.name(), wrong.into_text());
                    self.run.event("Unhealthy", format!("{probe} probe failed: {error}"));
                }
            }
            if row < if success { needed } else { allowed } || told == Some(success) {
                continue;
            }
            told = Some(success);
            let message = Message::Probed { container: self.run.id.clone(), kind: self.kind, success };
            let final_word = self.kind == Kind::Startup || (self.kind == Kind::Liveness && !success);
            // a worker that has ended asks no more
            if !self.tell.send(message) || final_word {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_of_an_agent_that_was_started_anew_begin_apart() {
        let probe = Probe { period_seconds: Some(20), ..Probe::default() };
        let of = |age, anew| first_pause(&probe, Duration::from_secs(age), Duration::from_secs(anew));
        assert_eq!(
            [of(1, 2), of(100, 20)],
            [Duration::ZERO; 2],
            "it began after the agent; the agent has run for long"
        );
        let pauses: Vec<_> = (0..100).map(|_| of(3, 2)).collect();
        assert!(pauses.iter().all(|pause| *pause < Duration::from_secs(20)));
        let before = |seconds| pauses.iter().filter(|pause| **pause < Duration::from_secs(seconds)).count();
        assert!((1..100).contains(&before(10)), "{pauses:?}");
    }
}
