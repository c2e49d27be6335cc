//! Writing what became of a pod: status, deletion, mirror pods.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;

use super::client::ClusterError;

/// Replaces the status of a pod, if it is still the one with that uid.
pub async fn patch_status(client: &Client, pod: &Pod) -> Result<Pod, ClusterError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": pod.status});
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

/// Makes the API server's copy of a static pod, or returns the one there is.
pub async fn create_mirror(client: &Client, pod: &Pod) -> Result<Pod, ClusterError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let what = || format!("creating the mirror of static pod {namespace}/{name}");
    if let Some(found) = api.get_opt(name).await.map_err(ClusterError::api(what()))? {
        return Ok(found);
    }
    let mut mirror = pod.clone();
    mirror.status = None;
    mirror.metadata.uid = None;
    let hash = mirror.metadata.annotations.as_ref().and_then(|a| a.get("kubernetes.io/config.hash")).cloned();
    if let Some(hash) = hash {
        mirror.metadata.annotations.get_or_insert_default().insert("kubernetes.io/config.mirror".to_owned(), hash);
    }
    api.create(&PostParams::default(), &mirror).await.map_err(ClusterError::api(what()))
}
