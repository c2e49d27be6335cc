//! Which pods go so that a critical one can come: pure rules, those of the kubelet.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::fit::{Shortage, requested};
use crate::pod::eviction::ranking::{is_critical, priority};
use crate::pod::{PodExt, qos};

/// Resource and how much of it must be freed.
type Needs = Vec<(&'static str, u64)>;

fn less(needs: &Needs, pods: &[Arc<Pod>]) -> Needs {
    let freed = |resource: &str| pods.iter().map(|p| requested(p, resource)).fold(0, u64::saturating_add);
    let left = needs.iter().map(|(resource, need)| (*resource, need.saturating_sub(freed(resource))));
    left.filter(|(_, need)| *need > 0).collect()
}

/// Of each resource the share of the need that would be left, squared and summed: 0 frees all.
fn distance(needs: &Needs, pod: &Pod) -> f64 {
    let left = |(resource, need): &(&str, u64)| {
        let left = need.saturating_sub(requested(pod, resource)) as f64 / *need as f64;
        left * left
    };
    needs.iter().map(left).sum()
}

/// Pods whose end meets the needs: one after the other, that which frees most, and of those the smallest.
fn choose(mut pods: Vec<Arc<Pod>>, mut needs: Needs) -> Vec<Arc<Pod>> {
    let mut chosen = Vec::new();
    while !needs.is_empty() && !pods.is_empty() {
        let size = |pod: &Pod| ["memory", "cpu"].map(|r| requested(pod, r));
        let by = |a: &Arc<Pod>, b: &Arc<Pod>| {
            distance(&needs, a).total_cmp(&distance(&needs, b)).then(size(a).cmp(&size(b)))
        };
        let Some(at) = (0..pods.len()).min_by(|a, b| by(&pods[*a], &pods[*b])) else { break };
        let pod = pods.swap_remove(at);
        needs = less(&needs, std::slice::from_ref(&pod));
        chosen.push(pod);
    }
    chosen
}

/// The pods to end for `critical`; `None` when all together would not be enough.
pub fn victims(critical: &Pod, others: &[Arc<Pod>], shortages: &[Shortage]) -> Option<Vec<Arc<Pod>>> {
    let needs: Needs = shortages.iter().map(|s| (s.resource, s.missing())).collect();
    let yields = |pod: &Pod| !pod.is_static() && (!is_critical(pod) || priority(pod) < priority(critical));
    let of = |class: &str| -> Vec<Arc<Pod>> {
        others.iter().filter(|p| yields(p) && qos::qos_class(p) == class).cloned().collect()
    };
    let (best_effort, burstable, guaranteed) = (of("BestEffort"), of("Burstable"), of("Guaranteed"));
    if !less(&needs, &[best_effort.clone(), burstable.clone(), guaranteed.clone()].concat()).is_empty() {
        return None;
    }
    // what has asked for less goes if it can do
    let guaranteed = choose(guaranteed, less(&needs, &[best_effort.clone(), burstable.clone()].concat()));
    let burstable = choose(burstable, less(&needs, &[best_effort.clone(), guaranteed.clone()].concat()));
    let chosen = [burstable, guaranteed].concat();
    let best_effort = choose(best_effort, less(&needs, &chosen));
    Some([best_effort, chosen].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, cpu: Option<&str>, limit: bool, priority: i32) -> Arc<Pod> {
        let list = cpu.map(|cpu| serde_json::json!({"cpu": cpu, "memory": "1Mi"}));
        let limits = list.clone().filter(|_| limit);
        let pod = serde_json::json!({"metadata": {"name": name}, "spec": {"priority": priority, "containers": [
            {"name": "c", "resources": {"requests": list, "limits": limits}}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn chosen(others: &[Arc<Pod>], resource: &'static str, missing: u64) -> Option<Vec<String>> {
        let critical = pod("critical", Some("1"), false, 2_000_001_000);
        let shortage = Shortage { resource, requested: missing, used: 1000, capacity: 1000 };
        let victims = victims(&critical, others, &[shortage])?;
        Some(victims.iter().map(|p| p.name().to_owned()).collect())
    }

    #[test]
    fn the_smallest_that_is_enough_goes() {
        let others = [
            pod("guaranteed", Some("500m"), true, 0),
            pod("big", Some("400m"), false, 0),
            pod("small", Some("200m"), false, 0),
            pod("none", None, false, 0),
        ];
        assert_eq!(chosen(&others, "cpu", 150).unwrap(), ["small"]);
        assert_eq!(chosen(&others, "cpu", 300).unwrap(), ["big"]);
        assert_eq!(chosen(&others, "cpu", 700).unwrap(), ["small", "guaranteed"]);
        assert_eq!(chosen(&others, "pods", 1).unwrap(), ["none"]);
        assert_eq!(chosen(&others, "cpu", 2000), None);
        // what a user of the API server writes makes no pod one of the node's
        let mut forged = (*pod("forged", Some("1"), false, 0)).clone();
        let annotations =
            ["kubernetes.io/config.source", "kubernetes.io/config.hash"].map(|k| (k.to_owned(), "file".to_owned()));
        forged.metadata.annotations = Some(annotations.into());
        forged.metadata.resource_version = Some("7".to_owned());
        assert!(!is_critical(&forged));
        assert_eq!(chosen(&[forged.into()], "cpu", 100).unwrap(), ["forged"]);
        assert_eq!(chosen(&[pod("system", Some("1"), false, 2_000_001_000)], "cpu", 100), None);
    }
}
