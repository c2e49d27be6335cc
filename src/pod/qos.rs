//! QoS class, cgroup path and limits of a pod and its containers.
//!
//! Rules: Kubernetes "Pod Quality of Service Classes" and "Resource Management for Pods and Containers".

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::limit_policy::{LimitPolicy, Memory};
use super::{PodExt, is_sidecar};
use crate::quantity;
use crate::runtime::Resources;

/// Smallest CFS quota in microseconds.
const MIN_QUOTA: i64 = 1_000;
/// Smallest number of CPU shares.
const MIN_SHARES: u64 = 2;
/// Largest number of CPU shares.
const MAX_SHARES: u64 = 262_144;

fn amount(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i64> {
    let text = &list?.get(name)?.0;
    let amount = if name == "cpu" { quantity::milli(text) } else { quantity::whole(text) };
    amount.and_then(|n| i64::try_from(n).ok()).filter(|n| *n > 0)
}

/// Request of a container (its limit where no request is set): milli CPU or bytes.
pub fn request(container: &Container, name: &str) -> Option<i64> {
    let resources = container.resources.as_ref()?;
    amount(resources.requests.as_ref(), name).or_else(|| amount(resources.limits.as_ref(), name))
}

/// Limit of a container: milli CPU or bytes.
pub fn limit(container: &Container, name: &str) -> Option<i64> {
    amount(container.resources.as_ref()?.limits.as_ref(), name)
}

/// `spec.resources`, where the pod states any: it counts instead of what its containers state.
pub fn of_whole_pod(pod: &Pod) -> Option<&ResourceRequirements> {
    let stated = |list: &Option<BTreeMap<String, Quantity>>| list.as_ref().is_some_and(|l| !l.is_empty());
    pod.pod_spec()?.resources.as_ref().filter(|r| stated(&r.requests) || stated(&r.limits))
}

fn whole_limit(pod: &Pod, name: &str) -> Option<i64> {
    amount(of_whole_pod(pod)?.limits.as_ref(), name)
}

fn whole_request(pod: &Pod, name: &str) -> Option<i64> {
    amount(of_whole_pod(pod)?.requests.as_ref(), name).or_else(|| whole_limit(pod, name))
}

/// The limit of a container where it has one, else of its pod, whose it may use all alone.
fn limit_within(pod: &Pod, container: &Container, name: &str) -> Option<i64> {
    limit(container, name).or_else(|| whole_limit(pod, name))
}

/// Whether limits of the whole pod are those of the container too.
pub fn shares_limits(pod: &Pod, container: &Container) -> bool {
    ["cpu", "memory"].iter().any(|name| limit(container, name).is_none() && whole_limit(pod, name).is_some())
}

/// What the sandbox of the pod's runtime class takes (`spec.overhead`).
fn overhead(pod: &Pod, name: &str) -> i64 {
    pod.pod_spec().and_then(|s| amount(s.overhead.as_ref(), name)).unwrap_or(0)
}

/// Limit of a pod with its overhead; only when it, or every container of it, has one.
fn pod_limit(pod: &Pod, name: &str) -> Option<i64> {
    let limit = whole_limit(pod, name).or_else(|| pod_sum(pod, name, limit, true));
    limit.map(|limit| limit.saturating_add(overhead(pod, name)))
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn qos_class(pod: &Pod) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    let mut look = |own: [Option<i64>; 2]| {
        any |= own[0].is_some() || own[1].is_some();
        guaranteed &= own[1].is_some() && own[0] == own[1];
    };
    for name in ["cpu", "memory"] {
        if of_whole_pod(pod).is_some() {
            look([whole_request(pod, name), whole_limit(pod, name)]);
        } else {
            super::containers(pod).for_each(|c| look([request(c, name), limit(c, name)]));
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Pod cgroup relative to the agent's root: Guaranteed pods are directly below it.
pub fn pod_cgroup(pod: &Pod) -> String {
    match qos_class(pod) {
        "Guaranteed" => format!("pod{}", pod.uid()),
        "Burstable" => format!("burstable/pod{}", pod.uid()),
        _ => format!("besteffort/pod{}", pod.uid()),
    }
}

/// CPU shares of so many thousandths of a CPU.
pub fn shares(milli: i64) -> u64 {
    ((milli.max(0) as u64) * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

fn resources(
    cpu_request: Option<i64>,
    cpu_limit: Option<i64>,
    memory_limit: Option<i64>,
    policy: &LimitPolicy,
) -> Resources {
    let cpu_limit = cpu_limit.filter(|_| policy.cpu_quota);
    Resources {
        cpu_shares: Some(cpu_request.map_or(MIN_SHARES, shares)),
        cpu_quota: cpu_limit.map(|milli| (milli.saturating_mul(policy.cpu_period as i64) / 1000).max(MIN_QUOTA)),
        cpu_period: cpu_limit.map(|_| policy.cpu_period),
        memory_limit,
        ..Resources::default()
    }
}

/// Limits of one container of the pod.
pub fn container_resources(pod: &Pod, container: &Container, policy: &LimitPolicy, machine: Memory) -> Resources {
    let hugepages = hugepage_sizes(std::iter::once(container));
    let hugepages = hugepages.filter_map(|(name, size)| Some((size, limit(container, name)?)));
    Resources {
        swap_limit: Some(policy.swap(pod, container, machine)),
        oom_group: !policy.single_process_oom_kill,
        hugepage_limits: Some(hugepages.collect()),
        ..resources(
            request(container, "cpu"),
            limit_within(pod, container, "cpu"),
            limit_within(pod, container, "memory"),
            policy,
        )
    }
}

/// Names of the huge page resources that containers ask for, such as `hugepages-2Mi`, and their page sizes in bytes.
fn hugepage_sizes<'a>(containers: impl Iterator<Item = &'a Container>) -> impl Iterator<Item = (&'a str, u64)> {
    let limits = containers.filter_map(|c| c.resources.as_ref()?.limits.as_ref()).flat_map(BTreeMap::keys);
    limits.filter_map(|name| {
        let size = quantity::whole(name.strip_prefix("hugepages-")?)?;
        Some((name.as_str(), u64::try_from(size).ok()?))
    })
}

/// The pod's sum: app containers and sidecars together, or the largest init container if that is more.
/// `None` when `needs_all` and a container states nothing.
fn pod_sum(pod: &Pod, name: &str, of: fn(&Container, &str) -> Option<i64>, needs_all: bool) -> Option<i64> {
    let mut running = 0_i64;
    let mut init_peak = 0;
    let mut any = false;
    for container in pod.init_containers() {
        match of(container, name) {
            Some(n) if is_sidecar(container) => running = running.saturating_add(n),
            Some(n) => init_peak = init_peak.max(running.saturating_add(n)),
            None if needs_all => return None,
            None => continue,
        }
        any = true;
    }
    for container in pod.app_containers() {
        match of(container, name) {
            Some(n) => running = running.saturating_add(n),
            None if needs_all => return None,
            None => continue,
        }
        any = true;
    }
    any.then(|| running.max(init_peak))
}

/// What the pod requests of a resource (milli CPU or bytes), as the scheduler counts it.
pub fn pod_request(pod: &Pod, name: &str) -> i64 {
    let request = whole_request(pod, name).or_else(|| pod_sum(pod, name, request, false));
    request.unwrap_or(0) + overhead(pod, name)
}

/// Limits of the pod cgroup; of memory and CPU only when every container has one.
pub fn pod_resources(pod: &Pod, policy: &LimitPolicy) -> Resources {
    let hugepages = hugepage_sizes(super::containers(pod));
    let hugepages = hugepages.filter_map(|(name, size)| Some((size, pod_sum(pod, name, limit, false)?)));
    Resources {
        pids_limit: policy.pids,
        hugepage_limits: Some(hugepages.collect()),
        ..resources(
            Some(pod_request(pod, "cpu")).filter(|n| *n > 0),
            pod_limit(pod, "cpu"),
            pod_limit(pod, "memory"),
            policy,
        )
    }
}

/// CPU shares of the cgroup of all `BestEffort` pods: what others leave.
pub const BEST_EFFORT_SHARES: u64 = MIN_SHARES;

/// CPU shares of the cgroup of all Burstable pods: what those request together.
pub fn burstable_shares<'a>(pods: impl Iterator<Item = &'a Pod>) -> u64 {
    let burstable = pods.filter(|p| qos_class(p) == "Burstable" && !p.is_done());
    shares(burstable.map(|pod| pod_request(pod, "cpu")).fold(0, i64::saturating_add))
}

/// The class of pods without which the node is none.
const NODE_CRITICAL: &str = "system-node-critical";

/// `oom_score_adj` by QoS (the kubelet's `qos/policy.go`): Guaranteed and node-critical pods -997, `BestEffort` 1000,
/// Burstable by its share of the machine's memory; a sidecar goes no sooner than any of the app containers.
pub fn oom_score_adj(pod: &Pod, container: &Container, machine_memory: u64) -> i32 {
    let class = pod.pod_spec().and_then(|s| s.priority_class_name.as_deref());
    match qos_class(pod) {
        _ if class == Some(NODE_CRITICAL) => -997,
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let containers = i64::try_from(super::containers(pod).count().max(1)).unwrap_or(1);
            // of what the whole pod requests each has its part
            let part = || whole_request(pod, "memory").map(|whole| whole / containers);
            let of = |container: &Container| request(container, "memory").or_else(part).unwrap_or(0);
            let sidecar = pod.init_containers().iter().any(|c| c.name == container.name && is_sidecar(c));
            let least = pod.app_containers().iter().map(of).min().filter(|_| sidecar).unwrap_or(0);
            let request = of(container).max(least);
            let share = 1000 * request / (machine_memory.max(1) as i64);
            (1000 - share).clamp(3, 999) as i32
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"uid": "u"}, "spec": json})).unwrap()
    }

    #[test]
    fn classes_and_limits() {
        let none = pod(serde_json::json!({"containers": [{"name": "a"}]}));
        assert_eq!(qos_class(&none), "BestEffort");
        assert_eq!(pod_cgroup(&none), "besteffort/podu");
        assert_eq!(pod_resources(&none, &LimitPolicy::default()).cpu_shares, Some(2));
        let full = pod(serde_json::json!({"containers": [
            {"name": "a", "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}}}]}));
        assert_eq!(qos_class(&full), "Guaranteed");
        let r = pod_resources(&full, &LimitPolicy::default());
        assert_eq!((r.cpu_shares, r.cpu_quota, r.memory_limit), (Some(512), Some(50_000), Some(67_108_864)));
        assert_eq!(oom_score_adj(&full, &full.app_containers()[0], 1 << 30), -997);
        let some = pod(serde_json::json!({"containers": [
            {"name": "a", "resources": {"requests": {"memory": "512Mi"}}}, {"name": "b"}]}));
        assert_eq!(qos_class(&some), "Burstable");
        assert_eq!(pod_resources(&some, &LimitPolicy::default()).memory_limit, None);
        assert_eq!(oom_score_adj(&some, &some.app_containers()[0], 1 << 30), 500);
    }

    #[test]
    fn the_kernel_takes_critical_pods_last_and_sidecars_no_sooner_than_what_they_serve() {
        let critical =
            pod(serde_json::json!({"priorityClassName": "system-node-critical", "containers": [{"name": "a"}]}));
        assert_eq!(oom_score_adj(&critical, &critical.app_containers()[0], 1 << 30), -997);
        let cluster =
            pod(serde_json::json!({"priorityClassName": "system-cluster-critical", "containers": [{"name": "a"}]}));
        assert_eq!(oom_score_adj(&cluster, &cluster.app_containers()[0], 1 << 30), 1000);
        let served = pod(serde_json::json!({
            "initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "i"}],
            "containers": [{"name": "a", "resources": {"requests": {"memory": "512Mi"}}},
                {"name": "b", "resources": {"requests": {"memory": "256Mi"}}}]}));
        let of = |c: &Container| oom_score_adj(&served, c, 1 << 30);
        assert_eq!((of(&served.init_containers()[0]), of(&served.init_containers()[1])), (750, 999));
        assert_eq!((of(&served.app_containers()[0]), of(&served.app_containers()[1])), (500, 750));
    }

    #[test]
    fn what_the_whole_pod_states_counts() {
        let whole = |resources: serde_json::Value| {
            pod(serde_json::json!({"resources": resources, "overhead": {"cpu": "100m", "memory": "10Mi"},
                "containers": [{"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "100m"}}}]}))
        };
        let full = whole(serde_json::json!({"limits": {"cpu": "1", "memory": "64Mi"}}));
        assert_eq!(qos_class(&full), "Guaranteed");
        let r = pod_resources(&full, &LimitPolicy::default());
        assert_eq!((r.cpu_quota, r.memory_limit), (Some(110_000), Some(74 << 20)));
        assert_eq!(pod_request(&full, "cpu"), 1100);
        let one = container_resources(&full, &full.app_containers()[0], &LimitPolicy::default(), Memory::default());
        assert_eq!((one.cpu_shares, one.cpu_quota, one.memory_limit), (Some(2), Some(100_000), Some(64 << 20)));
        let some = whole(serde_json::json!({"requests": {"cpu": "1"}}));
        assert_eq!((qos_class(&some), pod_request(&some, "cpu")), ("Burstable", 1100));
        let none = whole(serde_json::json!({}));
        assert_eq!((qos_class(&none), pod_request(&none, "cpu")), ("Burstable", 200));
    }

    #[test]
    fn burstable_pods_share_what_they_request() {
        let requests = |cpu: &str, phase: &str| {
            let mut pod =
                pod(serde_json::json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}}]}));
            pod.status = Some(serde_json::from_value(serde_json::json!({"phase": phase})).unwrap());
            pod
        };
        let none = pod(serde_json::json!({"containers": [{"name": "a"}]}));
        assert_eq!(burstable_shares([&none].into_iter()), 2);
        let pods = [none, requests("250m", "Running"), requests("1", "Pending"), requests("4", "Succeeded")];
        assert_eq!(burstable_shares(pods.iter()), 1280);
    }

    #[test]
    fn containers_have_no_swap_and_only_their_huge_pages() {
        let pod = pod(serde_json::json!({"containers": [
            {"name": "a", "resources": {"limits": {"hugepages-2Mi": "4Mi", "memory": "8Mi"}}},
            {"name": "b", "resources": {"limits": {"hugepages-2Mi": "2Mi"}}}, {"name": "c"}]}));
        let resources = |c: &Container| container_resources(&pod, c, &LimitPolicy::default(), Memory::default());
        let containers: Vec<_> = pod.app_containers().iter().map(resources).collect();
        assert!(containers.iter().all(|r| r.swap_limit == Some(0) && r.oom_group));
        assert_eq!(containers[0].hugepage_limits, Some([(2 << 20, 4 << 20)].into()));
        assert_eq!(containers[2].hugepage_limits, Some([].into()));
        let all = pod_resources(&pod, &LimitPolicy::default());
        assert_eq!(all.hugepage_limits, Some([(2 << 20, 6 << 20)].into()));
        assert_eq!((all.swap_limit, all.oom_group), (None, false));
    }
}
