//! Node selectors as the scheduler matches them (Kubernetes `NodeSelector`): of pods' affinity, and of persistent volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};

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

/// True when the node of that name with those labels is among the selected.
pub fn matches(selector: &NodeSelector, labels: &BTreeMap<String, String>, node: &str) -> bool {
    let node = node.to_owned();
    selector.node_selector_terms.iter().any(|term| term_holds(term, labels, &node))
}
