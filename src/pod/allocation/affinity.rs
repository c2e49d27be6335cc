//! Node selectors and required node affinity, as the scheduler matches them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod};

use crate::pod::PodExt;

fn holds(requirement: &NodeSelectorRequirement, value: Option<&String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: &String| text.parse::<i64>().ok();
    let compare = |by: fn(&i64, &i64) -> bool| {
        let bound = values.first().and_then(number);
        value.and_then(number).zip(bound).is_some_and(|(value, bound)| by(&value, &bound))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| values.contains(v)),
        "NotIn" => value.is_none_or(|v| !values.contains(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

fn term_holds(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, node: &String) -> bool {
    let (expressions, fields) = (term.match_expressions.as_deref(), term.match_fields.as_deref());
    if expressions.is_none_or(<[_]>::is_empty) && fields.is_none_or(<[_]>::is_empty) {
        return false;
    }
    let field = |key: &str| (key == "metadata.name").then_some(node);
    expressions.into_iter().flatten().all(|r| holds(r, labels.get(&r.key)))
        && fields.into_iter().flatten().all(|r| holds(r, field(&r.key)))
}

/// True when the node of that name with those labels is one the pod may run on.
pub fn matches(pod: &Pod, labels: &BTreeMap<String, String>, node: &str) -> bool {
    let Some(spec) = pod.pod_spec() else { return true };
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let node = node.to_owned();
    selected && required.is_none_or(|r| r.node_selector_terms.iter().any(|t| term_holds(t, labels, &node)))
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
