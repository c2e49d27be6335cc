//! What the node's settings make of the limits of pods and containers (`KubeletConfiguration`).

use k8s_openapi::api::core::v1::{Container, Pod};

use super::PodExt;
use super::qos::{limit, qos_class, request};

/// Pods of this priority and above are critical, and get no swap (Kubernetes: `system-cluster-critical`).
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// The settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitPolicy {
    /// `podPidsLimit`: processes of a pod; `None` for any number.
    pub pids: Option<i64>,
    /// `cpuCFSQuota`: CPU limits are enforced.
    pub cpu_quota: bool,
    /// `cpuCFSQuotaPeriod` in microseconds.
    pub cpu_period: u64,
    /// `memorySwap.swapBehavior: LimitedSwap` rather than `NoSwap`.
    pub limited_swap: bool,
    /// `singleProcessOOMKill`: when memory runs out one process ends rather than the container (cgroup version 2).
    pub single_process_oom_kill: bool,
}

impl Default for LimitPolicy {
    fn default() -> Self {
        Self { pids: None, cpu_quota: true, cpu_period: 100_000, limited_swap: false, single_process_oom_kill: false }
    }
}

/// Bytes of memory and of swap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// RAM.
    pub memory: u64,
    /// Swap space.
    pub swap: u64,
}

impl LimitPolicy {
    /// Bytes of swap a container may use. With `LimitedSwap` those of Burstable pods have as large a share of the
    /// machine's swap as they request of its memory (Kubernetes "Swap memory management").
    pub fn swap(&self, pod: &Pod, container: &Container, machine: Memory) -> i64 {
        let priority = pod.pod_spec().and_then(|s| s.priority);
        let critical = pod.is_static() || priority.is_some_and(|p| p >= CRITICAL_PRIORITY);
        if !self.limited_swap || critical || qos_class(pod) != "Burstable" || machine.memory == 0 {
            return 0;
        }
        match request(container, "memory") {
            Some(requested) if limit(container, "memory") != Some(requested) => {
                (requested as f64 / machine.memory as f64 * machine.swap as f64) as i64
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn swap(policy: &LimitPolicy, spec: Value) -> Vec<i64> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": spec})).unwrap();
        let containers = &pod.spec.as_ref().unwrap().containers;
        let machine = Memory { memory: 1 << 30, swap: 512 << 20 };
        containers.iter().map(|c| policy.swap(&pod, c, machine)).collect()
    }

    #[test]
    fn burstable_containers_share_the_swap_by_their_requests() {
        let of = |request: &str, limit: &str| {
            let mut resources = json!({"requests": {"memory": request}});
            if !limit.is_empty() {
                resources["limits"] = json!({"memory": limit});
            }
            json!({"name": request, "resources": resources})
        };
        let limited = LimitPolicy { limited_swap: true, ..LimitPolicy::default() };
        let burstable =
            json!({"containers": [of("256Mi", ""), of("128Mi", "512Mi"), of("64Mi", "64Mi"), {"name": "a"}]});
        assert_eq!(swap(&limited, burstable.clone()), [128 << 20, 64 << 20, 0, 0]);
        assert_eq!(swap(&LimitPolicy::default(), burstable.clone()), [0; 4]);
        let mut critical = burstable;
        critical["priority"] = json!(2_000_001_000);
        assert_eq!(swap(&limited, critical), [0; 4]);
        assert_eq!(swap(&limited, json!({"containers": [{"name": "a"}]})), [0]);
    }
}
