//! What an earlier agent left of a pod: its sandbox with the runs in it.

use k8s_openapi::api::core::v1::Pod;
use tracing::warn;

use super::container::Containers;
use super::create::spent;
use super::shared::Shared;
use super::termination;
use super::worker::{Sandbox, Worker, now_nanos};
use crate::runtime::{ContainerInfo, ExitRecord, SandboxInfo};

/// What is taken over but for the containers.
#[derive(Default)]
pub(super) struct Adopted {
    pub sandbox: Option<Sandbox>,
    /// Number of the sandbox after that one.
    pub next_sandbox: u32,
    /// Made by an agent that was cut off before it started them.
    pub unstarted: Vec<ContainerInfo>,
}

/// Takes over what an earlier agent left in the runtime.
pub(super) fn adopt(shared: &Shared, found: Option<SandboxInfo>, containers: &mut Containers) -> Adopted {
    let Some(found) = found else { return Adopted::default() };
    let mut unstarted = Vec::new();
    for mut info in found.containers {
        if info.started_at.is_none() && info.exit.is_none() {
            // no run yet: the next one has its number
            containers.entry(info.spec.name.clone()).or_default().next_attempt = info.spec.attempt;
            unstarted.push(info);
            continue;
        }
        if !found.alive && info.exit.is_none() {
            info.exit = Some(ExitRecord { code: 137, signal: Some(9), oom_killed: false, finished_at: now_nanos() });
        }
        let state = containers.entry(info.spec.name.clone()).or_default();
        state.last = state.current.take();
        state.last_message = state.message.take();
        state.message = termination::message(&info);
        state.next_attempt = info.spec.attempt + 1;
        state.current = Some(info);
    }
    let spec = found.spec;
    let addresses = shared.network.addresses(&spec.id).map(|a| a.ips);
    let ips = if spec.host_network { shared.host_ips.borrow().clone() } else { addresses.unwrap_or_default() };
    // in the host's network there is always one, even if the machine has no address in this moment
    let ready = found.alive && (spec.host_network || !ips.is_empty());
    let ids = spec.user_namespace;
    let next_sandbox = spec.attempt + 1;
    Adopted { sandbox: Some(Sandbox { id: spec.id, attempt: spec.attempt, ips, ids, ready }), next_sandbox, unstarted }
}

/// False for a sandbox whose making an earlier agent may not have finished: its link, a limit or a file may be missing. No
/// container is made before that, so that one without any loses nothing when it is made anew. A pod that is to have no other
/// one has got its own.
pub(super) fn is_whole(found: &SandboxInfo, pod: &Pod, containers: &Containers) -> bool {
    !found.containers.is_empty() || spent(pod, containers)
}

impl Worker {
    /// Removes what was made, but never started.
    pub(super) async fn remove_unstarted(&mut self) {
        for run in std::mem::take(&mut self.unstarted) {
            match &self.sandbox {
                Some(sandbox) if sandbox.ready => self.discard(&sandbox.id, &run).await,
                // the rest goes with the sandbox
                _ => {
                    if let Err(error) = self.unmount(&run.spec.id).await {
                        warn!(container = %run.spec.id, %error, "write layer not removed");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::runtime::{ContainerSpec, SandboxSpec};

    #[test]
    fn a_sandbox_in_which_nothing_was_made_may_lack_something() {
        let pod = |policy: &str| -> Pod {
            serde_json::from_value(json!({"spec": {"restartPolicy": policy, "containers": [{"name": "a"}]}})).unwrap()
        };
        let run =
            |exit| ContainerInfo { spec: ContainerSpec::default(), pid: 1, started_at: Some(1), created_at: 1, exit };
        let ended = run(Some(ExitRecord { code: 128, signal: None, oom_killed: false, finished_at: 2 }));
        let found = |containers| SandboxInfo { spec: SandboxSpec::default(), alive: true, created_at: 1, containers };
        let (none, mut told) = (Containers::new(), Containers::new());
        told.entry("a".to_owned()).or_default().current = Some(ended.clone());
        for policy in ["Always", "Never"] {
            assert!(!is_whole(&found(Vec::new()), &pod(policy), &none), "{policy}");
            for made in [run(None), ContainerInfo { started_at: None, ..run(None) }, ended.clone()] {
                assert!(is_whole(&found(vec![made]), &pod(policy), &none), "{policy}");
            }
        }
        assert!(!is_whole(&found(Vec::new()), &pod("Always"), &told), "what ran in another sandbox says nothing");
        assert!(is_whole(&found(Vec::new()), &pod("Never"), &told), "it gets no other one");
    }
}
