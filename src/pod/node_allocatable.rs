//! Node Allocatable as the kernel keeps it: all pods together have no more of the machine than what is not reserved.
//!
//! Rules: the kubelet's node container manager. The limit of memory is capacity less what is reserved; what evictions keep
//! free is not taken off, so that they come before the kernel's OOM killer.

use std::time::Duration;

use tracing::warn;

use super::qos;
use crate::cluster::EventRecorder;
use crate::runtime::{Resources, Runtime};

/// How long until limits the kernel refuses are tried again: it does while pods use more already.
const AGAIN: Duration = Duration::from_mins(1);

/// What all pods together may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeAllocatable {
    /// Thousandths of a CPU.
    pub cpu: u64,
    /// Bytes.
    pub memory: u64,
    /// Processes; `None` where the machine does not say how many it can have.
    pub pids: Option<u64>,
}

/// Most processes that are kept from pods.
const MOST_KEPT_PIDS: u64 = 4096;

impl NodeAllocatable {
    fn resources(self) -> Resources {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Resources {
            cpu_shares: Some(qos::shares(signed(self.cpu))),
            memory_limit: Some(signed(self.memory)),
            pids_limit: self.pids.map(signed),
            ..Resources::default()
        }
    }
}

/// How many processes all pods may have: those the machine can have, but for a tenth that nobody gives them. Without it no limit
/// would bite before the machine is full, and then the agent makes no pod, and nobody logs in.
pub fn max_pids() -> Option<u64> {
    let read = |name: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?.trim().parse().ok()
    };
    [read("pid_max"), read("threads-max")].into_iter().flatten().min().map(pids_of_pods)
}

/// Of so many.
fn pids_of_pods(all: u64) -> u64 {
    all - (all / 10).min(MOST_KEPT_PIDS)
}

/// Sets the limits on the cgroup of all pods; tried again until the kernel takes them.
pub async fn enforce(runtime: Runtime, events: EventRecorder, allocatable: NodeAllocatable) {
    let mut told = false;
    while let Err(error) = runtime.limit("", &allocatable.resources()) {
        if !std::mem::replace(&mut told, true) {
            warn!(%error, "Node Allocatable is not enforced");
            let message = format!("Failed to update Node Allocatable Limits: {error}");
            events.node_event("Warning", "FailedNodeAllocatableEnforcement", message);
        }
        tokio::time::sleep(AGAIN).await;
    }
    events.node_event("Normal", "NodeAllocatableEnforced", "Updated Node Allocatable limit across pods".to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_reserved_is_the_limit() {
        let resources = NodeAllocatable { cpu: 3500, memory: 900 << 20, pids: Some(32_768) }.resources();
        assert_eq!((resources.cpu_shares, resources.memory_limit), (Some(3584), Some(900 << 20)));
        assert_eq!((resources.pids_limit, resources.cpu_quota), (Some(32_768), None));
        assert_eq!([32_768, 1200, 4 << 20].map(pids_of_pods), [29_492, 1080, (4 << 20) - 4096]);
    }
}
