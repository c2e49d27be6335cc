//! Ephemeral containers (`kubectl debug`): added to a pod that runs, never restarted, and no part of its phase.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};
use tracing::warn;

use super::{PodExt, containers};
use crate::json;

/// The fields both kinds have are the same ones; those an ephemeral container may not have are not there.
fn as_container(ephemeral: &EphemeralContainer) -> Option<Container> {
    let converted = json::convert(ephemeral);
    converted.inspect_err(|error| warn!(container = ephemeral.name, %error, "ephemeral container not read")).ok()
}

fn listed(pod: &Pod) -> &[EphemeralContainer] {
    pod.pod_spec().and_then(|s| s.ephemeral_containers.as_deref()).unwrap_or_default()
}

/// The ephemeral containers of a pod.
pub fn ephemeral(pod: &Pod) -> Vec<Container> {
    listed(pod).iter().filter_map(as_container).collect()
}

/// True for the name of an ephemeral container.
pub fn is_ephemeral(pod: &Pod, name: &str) -> bool {
    listed(pod).iter().any(|c| c.name == name)
}

/// The container whose processes an ephemeral one is to see (`targetContainerName`).
pub fn target<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    listed(pod).iter().find(|c| c.name == name)?.target_container_name.as_deref().filter(|t| !t.is_empty())
}

/// Every container of a pod: init containers, its own, ephemeral ones.
pub fn all_containers(pod: &Pod) -> impl Iterator<Item = Cow<'_, Container>> {
    containers(pod).map(Cow::Borrowed).chain(ephemeral(pod).into_iter().map(Cow::Owned))
}

/// True when two versions of a pod list the same ephemeral containers.
pub fn same(one: &Pod, other: &Pod) -> bool {
    let names = |pod| listed(pod).iter().map(|c| c.name.as_str()).collect::<Vec<_>>();
    names(one) == names(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_containers_like_others() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {}, "spec": {
            "containers": [{"name": "c"}],
            "ephemeralContainers": [{"name": "e", "image": "i", "stdin": true, "targetContainerName": "c",
                "env": [{"name": "A", "value": "b"}]}]}}))
        .unwrap();
        let all: Vec<_> = all_containers(&pod).collect();
        assert_eq!(all.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["c", "e"]);
        assert_eq!((all[1].image.as_deref(), all[1].stdin), (Some("i"), Some(true)));
        assert_eq!((target(&pod, "e"), target(&pod, "c")), (Some("c"), None));
        assert!(is_ephemeral(&pod, "e") && !is_ephemeral(&pod, "c"));
    }
}
