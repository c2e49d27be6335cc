//! The values of a pod's own fields and resources, as volumes and environment variables refer to them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity;

/// The value of `metadata.*` at `path`; `None` when the path is not one of those.
pub fn metadata_field(pod: &Pod, path: &str) -> Option<String> {
    let meta = &pod.metadata;
    let value = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => Some(lines(meta.labels.as_ref())),
        "metadata.annotations" => Some(lines(meta.annotations.as_ref())),
        _ => {
            let (map, key) = path.strip_suffix("']")?.split_once("['")?;
            let map = match map {
                "metadata.labels" => meta.labels.as_ref(),
                "metadata.annotations" => meta.annotations.as_ref(),
                _ => return None,
            };
            map.and_then(|m| m.get(key).cloned())
        }
    };
    Some(value.unwrap_or_default())
}

/// `key="value"` lines, sorted, the value escaped.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect();
    lines.join("\n")
}

/// What pods may have of the node: cpu in thousandths, all else in bytes or numbers.
pub type Allocatable = BTreeMap<&'static str, u64>;

/// Resources that a whole pod may have limits of (`spec.resources`).
const OF_PODS: [&str; 2] = ["cpu", "memory"];

/// The value of a resource of a container, divided and rounded up as its selector says. A limit that is not set is
/// the pod's, or all that pods may have of the node.
pub fn resource_field(
    pod: &Pod,
    selector: &ResourceFieldSelector,
    own: Option<&Container>,
    allocatable: &Allocatable,
) -> Result<String, String> {
    let container = match selector.container_name.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => find_container(pod, name).ok_or_else(|| format!("container {name} not found"))?,
        None => own.ok_or("containerName is required in a volume's resourceFieldRef")?,
    };
    let (side, resource) =
        selector.resource.split_once('.').ok_or_else(|| format!("unsupported resource {:?}", selector.resource))?;
    let of = |map: Option<&BTreeMap<String, Quantity>>| map.and_then(|m| m.get(resource)).map(|q| milli(&q.0));
    let resources = container.resources.as_ref();
    let limit = of(resources.and_then(|r| r.limits.as_ref())).transpose()?;
    let request = of(resources.and_then(|r| r.requests.as_ref())).transpose()?;
    let whole = pod.spec.as_ref().and_then(|s| s.resources.as_ref()).filter(|_| OF_PODS.contains(&resource));
    let whole = of(whole.and_then(|r| r.limits.as_ref())).transpose()?.filter(|l| *l > 0);
    let value = match side {
        "limits" => limit.or(whole).unwrap_or_else(|| node_has(allocatable, resource)),
        "requests" => request.or(limit).unwrap_or(0),
        _ => return Err(format!("unsupported resource {:?}", selector.resource)),
    };
    let divisor = selector.divisor.as_ref().map(|q| milli(&q.0)).transpose()?.filter(|d| *d > 0).unwrap_or(1000);
    Ok(((value + divisor - 1) / divisor).to_string())
}

fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name)
}

/// What pods may have of a resource of the node, in thousandths; nothing of one it does not have.
fn node_has(allocatable: &Allocatable, resource: &str) -> i128 {
    let amount = allocatable.get(resource).copied().map_or(0, i128::from);
    if resource == "cpu" { amount } else { amount * 1000 }
}

/// Bytes of a quantity, rounded up.
pub fn bytes(quantity: &str) -> Result<u64, String> {
    u64::try_from((milli(quantity)? + 999) / 1000).map_err(|_| format!("quantity {quantity:?} is out of range"))
}

/// Sum of the containers' memory limits; `None` when one has none.
pub fn pod_memory_limit(pod: &Pod) -> Option<u64> {
    let containers = &pod.spec.as_ref()?.containers;
    containers.iter().map(|c| bytes(&c.resources.as_ref()?.limits.as_ref()?.get("memory")?.0).ok()).sum()
}

/// Sizes of the huge pages that containers of the pod ask for, as their resources write them (`2Mi`).
pub fn huge_page_sizes(pod: &Pod) -> BTreeSet<String> {
    let spec = pod.spec.as_ref();
    let containers = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let limits = containers.filter_map(|c| c.resources.as_ref()?.limits.as_ref()).flat_map(BTreeMap::keys);
    limits.filter_map(|name| name.strip_prefix("hugepages-").map(str::to_owned)).collect()
}

fn milli(text: &str) -> Result<i128, String> {
    quantity::milli(text).ok_or_else(|| format!("{text:?} is not a quantity such as 500m, 2 or 64Mi"))
}
