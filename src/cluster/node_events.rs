//! Events about the Node: what of its status has changed, in the kubelet's words, by which people find an incident again.

use k8s_openapi::api::core::v1::Node;
use serde_json::Value;

/// Conditions, and the reasons of the Events when one becomes true and false.
const CONDITIONS: [(&str, &str, &str); 4] = [
    ("MemoryPressure", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
    ("DiskPressure", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
    ("PIDPressure", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
    ("Ready", "NodeReady", "NodeNotReady"),
];

/// Type, reason and message of an Event.
pub type Told = (&'static str, &'static str, String);

/// What is to be told where a Node that said `before` says `now`.
pub fn of(name: &str, before: &Node, now: &Value) -> Vec<Told> {
    let status = before.status.as_ref();
    let was = |kind: &str| {
        let mut conditions = status.into_iter().flat_map(|s| s.conditions.iter().flatten());
        conditions.find(|c| c.type_ == kind).map(|c| c.status.as_str())
    };
    let changed = |&(kind, yes, no): &(&str, &'static str, &'static str)| {
        let mut conditions = now["conditions"].as_array().into_iter().flatten();
        let is = conditions.find(|c| c["type"] == kind)?["status"].as_str()?;
        let reason = if is == "True" { yes } else { no };
        (was(kind) != Some(is)).then(|| ("Normal", reason, format!("Node {name} status is now: {reason}")))
    };
    let boot = status.and_then(|s| s.node_info.as_ref()).map(|i| i.boot_id.as_str()).filter(|id| !id.is_empty());
    let id = now["nodeInfo"]["bootID"].as_str().unwrap_or_default();
    let rebooted = boot.filter(|was| *was != id);
    let rebooted = rebooted.map(|_| ("Warning", "Rebooted", format!("Node {name} has been rebooted, boot id: {id}")));
    rebooted.into_iter().chain(CONDITIONS.iter().filter_map(changed)).collect()
}

/// Whether somebody has cordoned the Node, or taken that back, since it was so before.
pub fn of_schedule(name: &str, was: &mut bool, node: &Node) -> Option<Told> {
    let now = node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true));
    let reason = if now { "NodeNotSchedulable" } else { "NodeSchedulable" };
    (std::mem::replace(was, now) != now).then(|| ("Normal", reason, format!("Node {name} status is now: {reason}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cordon_is_told_of_when_it_comes_and_goes() {
        let node = |spec: Value| -> Node { serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap() };
        let mut was = false;
        let mut reason = |spec| of_schedule("n", &mut was, &node(spec)).map(|told| told.1);
        assert_eq!(reason(json!({})), None);
        assert_eq!(reason(json!({"unschedulable": true})), Some("NodeNotSchedulable"));
        assert_eq!(reason(json!({"unschedulable": true})), None);
        assert_eq!(reason(json!({})), Some("NodeSchedulable"));
    }

    #[test]
    fn what_changes_is_told_once() {
        let status = |ready: &str, boot: &str| {
            json!({"conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}],
                "nodeInfo": {"bootID": boot}})
        };
        let node =
            |status: Value| -> Node { serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap() };
        let reasons = |before: &Node, now: &Value| of("n", before, now).into_iter().map(|t| t.1).collect::<Vec<_>>();
        let fresh = reasons(&Node::default(), &status("False", "a"));
        assert_eq!(fresh, ["NodeHasSufficientMemory", "NodeNotReady"]);
        assert_eq!(reasons(&node(status("False", "a")), &status("True", "b")), ["Rebooted", "NodeReady"]);
        assert!(reasons(&node(status("True", "b")), &status("True", "b")).is_empty());
    }
}
