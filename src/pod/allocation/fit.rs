//! Whether a pod fits on this node beside the others: resources, host ports, name, labels, taints.
//!
//! Rules: those of the kubelet's predicates, which are the scheduler's.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Taint};

use super::affinity;
use crate::cluster::NodeSeen;
use crate::machine::HUGE_PAGES;
use crate::network::HostPort;
use crate::pod::admission::Rejection;
use crate::pod::host_ports::host_ports;
use crate::pod::{PodExt, qos, taints};

pub use crate::volume::fields::Allocatable;

/// What of the node decides.
#[derive(Debug, Clone, Default)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
}

impl NodeView {
    /// What was seen of the Node of that name.
    pub fn of(name: String, seen: NodeSeen) -> Self {
        Self { name, labels: seen.labels, taints: seen.taints }
    }
}

/// Reasons of a refusal that another version of the Node may not give.
pub const OF_NODE: [&str; 2] = ["NodeAffinity", "TaintToleration"];

/// A resource that is not enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// Such as `cpu`.
    pub resource: &'static str,
    /// What the pod asks for.
    pub requested: u64,
    /// What others have.
    pub used: u64,
    /// What there is.
    pub capacity: u64,
}

impl Shortage {
    /// How much is missing.
    pub fn missing(&self) -> u64 {
        (self.requested + self.used).saturating_sub(self.capacity)
    }

    /// The kubelet's message.
    pub fn message(&self) -> String {
        let Self { resource, requested, used, capacity } = self;
        format!(
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        )
    }

    /// The kubelet's reason and message.
    pub fn rejection(&self) -> Rejection {
        let reason = match self.resource {
            "cpu" => "OutOfcpu",
            "memory" => "OutOfmemory",
            "pods" => "OutOfpods",
            "ephemeral-storage" => "OutOfephemeral-storage",
            other => HUGE_PAGES.iter().find(|p| p.name == other).map_or("UnexpectedAdmissionError", |p| p.out_of),
        };
        (reason, self.message())
    }
}

/// What a pod asks of a resource.
pub fn requested(pod: &Pod, resource: &str) -> u64 {
    if resource == "pods" { 1 } else { u64::try_from(qos::pod_request(pod, resource)).unwrap_or(0) }
}

/// Of each resource there is, in their order, how much.
#[derive(Debug, Clone)]
pub struct Amounts(Vec<u64>);

impl Amounts {
    /// What the pod asks for.
    pub fn of(pod: &Pod, allocatable: &Allocatable) -> Self {
        Self(allocatable.keys().map(|resource| requested(pod, resource)).collect())
    }

    /// All of them together.
    pub fn sum<'a>(all: impl Iterator<Item = &'a Self>, allocatable: &Allocatable) -> Self {
        all.fold(Self(vec![0; allocatable.len()]), |sum, one| sum.plus(one))
    }

    fn with(&self, other: &Self, both: fn(u64, u64) -> u64) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(one, other)| both(*one, *other)).collect())
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// Without those.
    #[must_use]
    pub fn less(&self, other: &Self) -> Self {
        self.with(other, u64::saturating_sub)
    }

    /// More of anything than those.
    pub fn exceed(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(one, other)| one > other)
    }

    /// The resources of which these, beside what is used, are beyond what there is.
    pub fn shortages(&self, used: &Self, allocatable: &Allocatable) -> Vec<Shortage> {
        let each = allocatable.iter().zip(self.0.iter().zip(&used.0));
        let short =
            each.filter(|((_, capacity), (wants, used))| **wants > 0 && wants.saturating_add(**used) > **capacity);
        let of = |((resource, capacity), (requested, used)): ((&&'static str, &u64), (&u64, &u64))| Shortage {
            resource,
            requested: *requested,
            used: *used,
            capacity: *capacity,
        };
        short.map(of).collect()
    }
}

/// A pod and what it asks for, which is read once: quantities are text.
#[derive(Debug, Clone)]
pub struct Weighed {
    /// The pod.
    pub pod: Arc<Pod>,
    /// What it asks for.
    pub asks: Amounts,
}

impl Weighed {
    /// Reads it.
    pub fn of(pod: &Arc<Pod>, allocatable: &Allocatable) -> Self {
        Self { pod: pod.clone(), asks: Amounts::of(pod, allocatable) }
    }
}

fn port_taken(pod: &Pod, others: &[Arc<Pod>]) -> bool {
    // what cannot be read takes nothing: the pod does not start
    let ports = |pod: &Pod| host_ports(pod).unwrap_or_default();
    let taken: Vec<_> = others.iter().flat_map(|p| ports(p)).collect();
    let any = |ip: Option<IpAddr>| ip.is_none_or(|ip| ip.is_unspecified());
    let clash = |a: &HostPort, b: &HostPort| {
        a.port == b.port && a.protocol == b.protocol && (any(a.ip) || any(b.ip) || a.ip == b.ip)
    };
    ports(pod).iter().any(|port| taken.iter().any(|other| clash(port, other)))
}

/// Why the pod may not be here, whatever others use; what it would have to ask for is not looked at.
pub fn refuse(pod: &Pod, others: &[Arc<Pod>], node: &NodeView) -> Option<Rejection> {
    let failed = |name: &'static str, why: &str| Some((name, format!("Predicate {name} failed: {why}")));
    let named = pod.pod_spec().and_then(|s| s.node_name.as_deref()).unwrap_or_default();
    if !affinity::matches(pod, &node.labels, &node.name) {
        return failed("NodeAffinity", "node(s) didn't match Pod's node affinity/selector");
    }
    if !named.is_empty() && named != node.name {
        return failed("NodeName", "node(s) didn't match the requested node name");
    }
    if port_taken(pod, others) {
        return failed("NodePorts", "node(s) didn't have free ports for the requested pod ports");
    }
    let stays = |taint: &Taint| taint.effect != "NoExecute" || taints::tolerates(pod, taint);
    if !pod.is_static() && !node.taints.iter().all(stays) {
        return failed("TaintToleration", "node(s) had taints that the pod didn't tolerate");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(serde_json::json!({"metadata": {}, "spec": spec})).unwrap())
    }

    fn asks(cpu: &str) -> Arc<Pod> {
        pod(serde_json::json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}))
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let shortages = |pod: &Pod, others: &[Arc<Pod>], there: &Allocatable| {
            let others: Vec<_> = others.iter().map(|pod| Amounts::of(pod, there)).collect();
            Amounts::of(pod, there).shortages(&Amounts::sum(others.iter(), there), there)
        };
        let allocatable = Allocatable::from([("cpu", 1000), ("memory", 1 << 30), ("pods", 3)]);
        assert!(shortages(&asks("400m"), &[asks("600m")], &allocatable).is_empty());
        let found = shortages(&asks("500m"), &[asks("600m")], &allocatable);
        assert_eq!(found[0].missing(), 100);
        assert_eq!(
            found[0].rejection(),
            ("OutOfcpu", "Node didn't have enough resource: cpu, requested: 500, used: 600, capacity: 1000".to_owned())
        );
        let many = [asks("1m"), asks("1m"), asks("1m")];
        assert_eq!(shortages(&asks("0"), &many, &allocatable)[0].rejection().0, "OutOfpods");
        let huge = pod(serde_json::json!({"containers": [{"name": "c", "resources": {
            "limits": {"hugepages-2Mi": "4Mi", "memory": "1Mi"}}}]}));
        let few = Allocatable::from([("hugepages-2Mi", 2 << 20)]);
        assert_eq!(shortages(&huge, &[], &few)[0].rejection().0, "OutOfhugepages-2Mi");
        assert!(shortages(&asks("0"), &[asks("2")], &allocatable).is_empty(), "who asks for nothing fits");
    }

    #[test]
    fn ports_names_and_taints_decide() {
        let on = |ip: &str, protocol: &str| {
            pod(serde_json::json!({"containers": [{"name": "c", "ports": [
                {"containerPort": 80, "hostPort": 80, "hostIP": ip, "protocol": protocol}]}]}))
        };
        let node = NodeView { name: "pi".to_owned(), ..NodeView::default() };
        let reason = |pod: &Pod, others: &[Arc<Pod>], node: &NodeView| refuse(pod, others, node).map(|r| r.0);
        assert_eq!(reason(&on("", "TCP"), &[on("10.0.0.1", "TCP")], &node), Some("NodePorts"));
        assert_eq!(reason(&on("10.0.0.2", "TCP"), &[on("10.0.0.1", "TCP")], &node), None);
        assert_eq!(reason(&on("", "UDP"), &[on("", "TCP")], &node), None);
        assert_eq!(reason(&on("", "SCTP"), &[on("", "TCP"), on("", "UDP")], &node), None);
        assert_eq!(reason(&on("10.0.0.1", "SCTP"), &[on("0.0.0.0", "SCTP")], &node), Some("NodePorts"));
        let elsewhere = pod(serde_json::json!({"containers": [], "nodeName": "other"}));
        assert_eq!(reason(&elsewhere, &[], &node), Some("NodeName"));
        let taint = Taint { key: "k".into(), effect: "NoExecute".into(), ..Taint::default() };
        let node = NodeView { taints: vec![taint], ..node };
        assert_eq!(reason(&asks("1"), &[], &node), Some("TaintToleration"));
    }
}
