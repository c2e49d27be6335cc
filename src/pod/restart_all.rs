//! `RestartAllContainers`: the end of a container that one of its rules names starts every container of the pod anew, init
//! containers first, in the sandbox and with the volumes that are there.
//!
//! Rules: KEP-5532. Containers end at once, without hooks. The one that asked for it waits its `CrashLoopBackOff` like any
//! other that ends again and again. Which runs are to go is kept with the pod's checkpoint: an agent that starts meanwhile
//! neither forgets one nor replaces one twice.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use nix::sys::signal::Signal;
use tracing::warn;

use super::containers;
use super::restart::{RESTART_ALL, rule_for};
use super::worker::Worker;

use crate::files::{self, Durability};

const FILE: &str = "replaced.json";

/// How often the end of the runs is looked at again, should an event be missed.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// True for a pod whose containers can ask for it.
pub(super) fn possible(pod: &Pod) -> bool {
    containers(pod).any(|c| c.restart_policy_rules.iter().flatten().any(|rule| rule.action == RESTART_ALL))
}

/// Ids of the runs that are to go, as an earlier agent wrote them.
pub(super) fn load(pod_dir: &Path) -> BTreeSet<String> {
    let text = std::fs::read(pod_dir.join(FILE)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn save(pod_dir: &Path, replaced: &BTreeSet<String>) -> std::io::Result<()> {
    let text = serde_json::to_vec(replaced).map_err(std::io::Error::other)?;
    // it need not outlive a power cut: no run does
    files::write(&pod_dir.join(FILE), &text, 0o600, Durability::Volatile)
}

impl Worker {
    /// The run of a container that is to be replaced, if it is still its newest.
    fn old_run(&self, name: &str) -> Option<&str> {
        let id = &self.containers.get(name)?.current.as_ref()?.spec.id;
        self.replaced.contains(id).then_some(id)
    }

    /// True while runs are there that are to be replaced.
    pub(super) fn restarting_all(&self) -> bool {
        !self.replaced.is_empty() && containers(&self.pod).any(|c| self.old_run(&c.name).is_some())
    }

    /// Ends all runs when a container asks for it, and sets them aside when they have ended. `None` when that is done,
    /// else when it is to be looked at again.
    pub(super) async fn replace_all(&mut self) -> Option<Instant> {
        let pod = self.pod.clone();
        let asks = containers(&pod).any(|c| {
            let exit = self.containers.get(&c.name).and_then(|s| s.exit());
            self.old_run(&c.name).is_none()
                && exit.is_some_and(|e| rule_for(c, e.code).is_some_and(|rule| rule.action == RESTART_ALL))
        });
        if asks {
            let runs = containers(&pod).filter_map(|c| self.containers.get(&c.name)?.current.as_ref());
            self.replaced = runs.map(|run| run.spec.id.clone()).collect();
            if let Err(error) = save(&self.pod_dir(), &self.replaced) {
                warn!(pod = %self.uid, %error, "not written which containers are to be replaced: an agent that starts now would not know");
            }
            self.publish();
        }
        if !self.restarting_all() {
            return None;
        }
        let mut running = false;
        for container in containers(&pod) {
            let Some(run) = self.run_of(container).filter(|run| self.replaced.contains(&run.id)) else { continue };
            running = true;
            if let Some(probes) = &mut self.state(&container.name).probes {
                probes.stop();
            }
            if asks {
                let message = format!("Stopping container {}: all containers of the pod are restarted", container.name);
                self.event(Some(container), "Normal", "Killing", message);
            }
            run.signal(Signal::SIGKILL as i32, true).await;
        }
        if running {
            return Some(Instant::now() + LOOK_AGAIN);
        }
        for container in containers(&pod) {
            if self.old_run(&container.name).is_none() {
                continue;
            }
            if let Some(sandbox) = self.sandbox.as_ref().map(|s| s.id.clone()) {
                self.forget_oldest(&container.name, &sandbox).await;
            }
            let state = self.state(&container.name);
            state.last = state.current.take();
            state.last_message = state.message.take();
            state.waiting = None;
        }
        None
    }
}
