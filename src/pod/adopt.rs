//! What an earlier agent left of a pod: its sandbox with the runs in it.

use super::container::Containers;
use super::shared::Shared;
use super::termination;
use super::worker::{Sandbox, now_nanos};
use crate::runtime::{ExitRecord, SandboxInfo};

/// Takes over what an earlier agent left in the runtime.
pub(super) fn adopt(
    shared: &Shared,
    found: Option<SandboxInfo>,
    containers: &mut Containers,
) -> (Option<Sandbox>, u32) {
    let Some(found) = found else { return (None, 0) };
    for mut info in found.containers {
        if !found.alive && info.exit.is_none() && info.started_at.is_some() {
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
    let ips = if spec.host_network { shared.host_ips.clone() } else { addresses.unwrap_or_default() };
    let ready = found.alive && !ips.is_empty();
    let ids = spec.user_namespace;
    (Some(Sandbox { id: spec.id, attempt: spec.attempt, ips, ids, ready }), spec.attempt + 1)
}
