//! Which pod goes first: pure rules.
//!
//! Rules: Kubernetes "Node-pressure Eviction", pod selection for kubelet eviction.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::threshold::Signal;
use crate::pod::{PodExt, qos};
use crate::quantity;

/// Priority from which a pod belongs to the system and is never evicted (`SystemCriticalPriority`).
const SYSTEM_CRITICAL: i32 = 2_000_000_000;

/// What a pod uses of a resource that runs short.
#[derive(Debug, Clone, Default)]
pub struct Candidate {
    /// The pod.
    pub pod: Arc<Pod>,
    /// All of it: bytes, inodes or processes.
    pub used: u64,
    /// Its containers.
    pub containers: BTreeMap<String, u64>,
}

/// Pods the kubelet itself keeps: static ones, their mirrors, and those of system priority.
pub fn is_critical(pod: &Pod) -> bool {
    pod.is_static() || pod.is_mirror() || priority(pod) >= SYSTEM_CRITICAL
}

/// `spec.priority`, 0 when unset.
pub fn priority(pod: &Pod) -> i32 {
    pod.pod_spec().and_then(|s| s.priority).unwrap_or(0)
}

/// What the pod requests of the resource; inodes and processes cannot be requested.
fn requested(pod: &Pod, signal: Signal) -> u64 {
    match signal {
        Signal::MemoryAvailable | Signal::NodefsAvailable | Signal::ImagefsAvailable => {
            u64::try_from(qos::pod_request(pod, signal.resource())).unwrap_or(0)
        }
        _ => 0,
    }
}

/// Sorts candidates, the one to evict first at the front.
pub fn rank(candidates: &mut [Candidate], signal: Signal) {
    let by_use = |c: &Candidate| {
        let requested = requested(&c.pod, signal);
        // more than it asked for, then the lowest priority, then the most beyond what it asked for
        let over = Reverse(c.used > requested && signal != Signal::PidAvailable);
        (over, priority(&c.pod), Reverse(i128::from(c.used) - i128::from(requested)))
    };
    candidates.sort_by(|a, b| by_use(a).cmp(&by_use(b)).then(Ordering::Equal));
}

/// The kubelet's message for a pod evicted because of a node's shortage.
pub fn message(candidate: &Candidate, signal: Signal, threshold: &str, available: u64) -> String {
    let resource = signal.resource();
    let left = quantity::binary(available);
    let blame = |container: &Container| {
        let used = *candidate.containers.get(&container.name)?;
        let request = u64::try_from(qos::request(container, resource).unwrap_or(0)).unwrap_or(0);
        let (name, over) = (&container.name, used > request && !signal.is_inodes() && signal != Signal::PidAvailable);
        let (used, request) = (quantity::binary(used), quantity::binary(request));
        over.then(|| {
            format!("Container {name} was using {used}, request is {request}, has larger consumption of {resource}. ")
        })
    };
    let blamed: String = crate::pod::containers(&candidate.pod).filter_map(blame).collect();
    format!("The node was low on resource: {resource}. Threshold quantity: {threshold}, available: {left}. {blamed}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, request: &str, priority: i32, used: u64) -> Candidate {
        let pod = serde_json::json!({"metadata": {"name": name}, "spec": {"priority": priority, "containers": [
            {"name": "c", "resources": {"requests": {"memory": request}}}]}});
        let pod = Arc::new(serde_json::from_value(pod).unwrap());
        Candidate { pod, used, containers: [("c".to_owned(), used)].into() }
    }

    #[test]
    fn use_over_requests_then_priority_then_most_goes_first() {
        let mut pods = vec![
            candidate("within", "100", 0, 90),
            candidate("most-within", "100", -5, 100),
            candidate("over-little", "100", 0, 110),
            candidate("over-most", "100", 0, 300),
            candidate("over-important", "10", 1000, 5000),
        ];
        rank(&mut pods, Signal::MemoryAvailable);
        let names: Vec<_> = pods.iter().map(|c| c.pod.name().to_owned()).collect();
        assert_eq!(names, ["over-most", "over-little", "over-important", "most-within", "within"]);
        rank(&mut pods, Signal::PidAvailable);
        assert_eq!(pods[0].pod.name(), "most-within");
        assert_eq!(pods[4].pod.name(), "over-important");
    }

    #[test]
    fn the_message_names_who_used_too_much() {
        let pod = candidate("p", "50Mi", 0, 60 << 20);
        let text = message(&pod, Signal::MemoryAvailable, "100Mi", 99 << 20);
        assert_eq!(
            text,
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 99Mi. \
             Container c was using 60Mi, request is 50Mi, has larger consumption of memory. "
        );
    }

    #[test]
    fn what_belongs_to_the_system_stays() {
        assert!(is_critical(&candidate("p", "1", SYSTEM_CRITICAL, 0).pod));
        assert!(!is_critical(&candidate("p", "1", 1000, 0).pod));
    }
}
