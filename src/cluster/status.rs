//! Writing what became of a pod: status, deletion.

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use kube::Client;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Status;
use serde_json::{Value, json};

use super::answer::{self, Api};
use super::client::ClusterError;
use crate::json;

/// What the API server answers to what it cannot take.
const INVALID: u16 = 422;

/// Conditions of a pod that its node alone says.
const OWN: [&str; 6] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled", "AllContainersRestarting"];
/// Those that go when what they tell of is over.
const PASSING: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];
/// Evictions say this one, and controllers too.
const SHARED: (&str, &str) = ("DisruptionTarget", "TerminationByKubelet");

/// Whether it is the node that says a condition, of that type and for that reason.
fn is_own(kind: &str, reason: &str) -> bool {
    OWN.contains(&kind) || PASSING.contains(&kind) || (kind, reason) == SHARED
}

/// The strategic merge patch that makes a pod's status on the API server what it is here. Conditions of others stay as they
/// are there: here they may be known as they were a moment ago.
fn patch(mut status: Value, uid: &str) -> Value {
    let text = |condition: &Value, field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    if let Some(conditions) = status["conditions"].as_array_mut() {
        conditions.retain(|c| is_own(&text(c, "type"), &text(c, "reason")));
        let over = PASSING.iter().filter(|kind| conditions.iter().all(|c| c["type"] != **kind));
        let over: Vec<_> = over.map(|kind| json!({"type": kind, "$patch": "delete"})).collect();
        conditions.extend(over);
    }
    for list in ["podIPs", "hostIPs"] {
        // merged by address those of before would stay
        if let Some(addresses) = status[list].as_array_mut() {
            addresses.push(json!({"$patch": "replace"}));
        }
    }
    if let Some(status) = status.as_object_mut() {
        // what was looked at above and is not there: a null would take it away
        status.retain(|_, value| !value.is_null());
        for list in ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"] {
            status.entry(list).or_insert(Value::Null);
        }
    }
    json!({"metadata": {"uid": uid}, "status": status})
}

/// Writes the status of a pod, if it is still the one with that uid (for a static pod, its mirror's).
pub async fn patch_status(client: &Client, pod: &Pod, uid: &str) -> Result<(), ClusterError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let written = match json::convert(&pod.status).map(|status| Patch::Strategic(patch(status, uid))) {
        Ok(patch) => api.patch_status(name, &PatchParams::default(), &patch).await,
        Err(error) => Err(kube::Error::SerdeError(error)),
    };
    let written = match written {
        Err(kube::Error::Api(answer)) if answer.code == INVALID => replace_status(&api, pod, uid).await,
        written => written.map(drop),
    };
    written.map_err(ClusterError::api(format!("writing the status of pod {namespace}/{name}")))
}

/// The same where the API server cannot patch what it has itself (a time of the year 10000 among `managedFields`).
async fn replace_status(api: &Api<Pod>, pod: &Pod, uid: &str) -> Result<(), kube::Error> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let mut found = api.get(name).await?.read()?;
    if found.metadata.uid.as_deref() != Some(uid) {
        let answer = Status::failure("the pod is another one by now", "Conflict").with_code(409);
        return Err(kube::Error::Api(answer.boxed()));
    }
    let mut status = pod.status.clone().unwrap_or_default();
    let own = |c: &PodCondition| is_own(&c.type_, c.reason.as_deref().unwrap_or_default());
    let others = found.status.iter().flat_map(|s| s.conditions.iter().flatten()).filter(|c| !own(c)).cloned();
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|c| own(c));
    conditions.extend(others);
    found.status = Some(status);
    api.replace_status(name, &PostParams::default(), &found.into()).await.map(drop)
}

/// Deletes a pod with no grace, if it is still the one with that uid: it has ended on this node.
pub async fn delete_pod(client: &Client, namespace: &str, name: &str, uid: &str) -> Result<(), ClusterError> {
    let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    let parameters =
        DeleteParams { grace_period_seconds: Some(0), preconditions: Some(preconditions), ..DeleteParams::default() };
    let deleted = answer::delete::<Pod>(client, Some(namespace), name, &parameters).await;
    deleted.map_err(ClusterError::api(format!("deleting pod {namespace}/{name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_of_others_are_left_alone() {
        let condition = |kind: &str, reason: &str| json!({"type": kind, "status": "True", "reason": reason});
        let status = json!({
            "conditions": [
                condition("Ready", ""),
                condition("example.com/open", ""),
                condition("DisruptionTarget", "PreemptionByScheduler"),
                condition("PodResizePending", "Deferred")],
            "podIPs": [{"ip": "10.0.0.2"}]});
        let of = |status: Value| patch(status, "u")["status"].clone();
        let written = of(status);
        let kinds: Vec<_> = written["conditions"].as_array().unwrap().iter().map(|c| c["type"].clone()).collect();
        assert_eq!(kinds, ["Ready", "PodResizePending", "PodResizeInProgress"]);
        assert_eq!(written["conditions"][2]["$patch"], "delete");
        assert_eq!(written["podIPs"], json!([{"ip": "10.0.0.2"}, {"$patch": "replace"}]));
        assert!(written.get("hostIPs").is_none(), "a null would take them away");
        let evicted = of(json!({"conditions": [condition("DisruptionTarget", "TerminationByKubelet")]}));
        assert_eq!(evicted["conditions"][0]["type"], "DisruptionTarget");
    }
}
