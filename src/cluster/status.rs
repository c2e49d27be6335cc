//! Writing what became of a pod: status, deletion.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;

use super::client::ClusterError;

/// Replaces the status of a pod, if it is still the one with that uid (for a static pod, its mirror's).
pub async fn patch_status(client: &Client, pod: &Pod, uid: &str) -> Result<Pod, ClusterError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let patch = json!({"metadata": {"uid": uid}, "status": pod.status});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map_err(ClusterError::api(format!("writing the status of pod {namespace}/{name}")))
}

/// Deletes a pod with no grace, if it is still the one with that uid: it has ended on this node.
pub async fn delete_pod(client: &Client, namespace: &str, name: &str, uid: &str) -> Result<(), ClusterError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    let parameters =
        DeleteParams { grace_period_seconds: Some(0), preconditions: Some(preconditions), ..DeleteParams::default() };
    api.delete(name, &parameters).await.map(drop).map_err(ClusterError::api(format!("deleting pod {namespace}/{name}")))
}
