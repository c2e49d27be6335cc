//! Node selectors and required node affinity, as the scheduler matches them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use crate::node_selector;
use crate::pod::PodExt;

/// True when the node of that name with those labels is one the pod may run on.
pub fn matches(pod: &Pod, labels: &BTreeMap<String, String>, node: &str) -> bool {
    let Some(spec) = pod.pod_spec() else { return true };
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|required| node_selector::matches(required, labels, node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_and_terms() {
        let labels = BTreeMap::from([("disk".to_owned(), "sd".to_owned()), ("size".to_owned(), "32".to_owned())]);
        let of = |spec: serde_json::Value| {
            let pod = serde_json::json!({"metadata": {}, "spec": spec});
            matches(&serde_json::from_value(pod).unwrap(), &labels, "pi")
        };
        let expression = |key: &str, operator: &str, values: &[&str]| {
            of(serde_json::json!({"containers": [], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]}}}}))
        };
        assert!(of(serde_json::json!({"containers": [], "nodeSelector": {"disk": "sd"}})));
        assert!(!of(serde_json::json!({"containers": [], "nodeSelector": {"disk": "ssd"}})));
        assert!(expression("disk", "In", &["sd", "ssd"]) && !expression("disk", "NotIn", &["sd"]));
        assert!(expression("none", "DoesNotExist", &[]) && !expression("none", "Exists", &[]));
        assert!(expression("size", "Gt", &["16"]) && !expression("size", "Lt", &["16"]));
        let named = |name: &str| {
            of(serde_json::json!({"containers": [], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}]}}}}))
        };
        assert!(named("pi") && !named("other"));
    }
}
