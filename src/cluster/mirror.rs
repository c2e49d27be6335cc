//! Mirror pods: the API server's copies of static pods (Kubernetes "Create static Pods"; `NodeRestriction` wants each
//! to be owned by its Node).

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PostParams;
use kube::{Api, Client};

use super::client::ClusterError;
use super::status::delete_pod;

const HASH: &str = "kubernetes.io/config.hash";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The hash of the static pod a mirror stands for; `None` for any other pod.
pub fn mirrored(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(MIRROR).map(String::as_str)
}

/// Makes sure that the mirror of static pod `pod` exists and returns its uid. One of an older manifest, or one that is
/// being deleted, is replaced.
pub async fn ensure_mirror(client: &Client, pod: &Pod) -> Result<String, ClusterError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let what = || format!("creating the mirror of static pod {namespace}/{name}");
    let hash = pod.metadata.annotations.as_ref().and_then(|a| a.get(HASH)).cloned().unwrap_or_default();
    if let Some(found) = api.get_opt(name).await.map_err(ClusterError::api(what()))? {
        let uid = found.metadata.uid.clone().unwrap_or_default();
        if mirrored(&found) == Some(&hash) && found.metadata.deletion_timestamp.is_none() {
            return Ok(uid);
        }
        delete_pod(client, namespace, name, &uid).await?;
    }
    let node_name = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default();
    let node = Api::<Node>::all(client.clone()).get(node_name).await.map_err(ClusterError::api(what()))?;
    let mut mirror = pod.clone();
    mirror.status = None;
    mirror.metadata.uid = None;
    mirror.metadata.resource_version = None;
    mirror.metadata.annotations.get_or_insert_default().insert(MIRROR.to_owned(), hash);
    mirror.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node_name.to_owned(),
        uid: node.metadata.uid.unwrap_or_default(),
        controller: Some(true),
        ..OwnerReference::default()
    }]);
    let made = api.create(&PostParams::default(), &mirror).await.map_err(ClusterError::api(what()))?;
    Ok(made.metadata.uid.unwrap_or_default())
}
