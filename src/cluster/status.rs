//! Writing what became of a pod: status, deletion.

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Status;
use serde_json::{Value, json};

use super::answer::{self, Api};
use super::client::ClusterError;
use crate::json;

/// What the API server answers to what it cannot take.
const INVALID: u16 = 422;

/// Replaces the status of a pod, if it is still the one with that uid (for a static pod, its mirror's).
pub async fn patch_status(client: &Client, pod: &Pod, uid: &str) -> Result<(), ClusterError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let patch = |status: Value| Patch::Merge(json!({"metadata": {"uid": uid}, "status": status}));
    let written = match json::convert(&pod.status).map(patch) {
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
    found.status.clone_from(&pod.status);
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
