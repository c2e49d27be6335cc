//! Mirror pods: the API server's copies of static pods (Kubernetes "Create static Pods"; `NodeRestriction` wants each
//! to be owned by its Node).

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PostParams;
use kube::{Client, Resource};

use super::answer::{Answer, Api};
use super::client::ClusterError;
use super::status::delete_pod;

const HASH: &str = "kubernetes.io/config.hash";
/// The annotation of a mirror pod: the hash of its static pod.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// Deletes the mirror of static pod `pod`, if there is one.
pub async fn delete_mirror(client: &Client, pod: &Pod) -> Result<(), ClusterError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    match api.get_opt(name).await.and_then(read) {
        Ok(Some(found)) if mirrored(&found).is_some() => {
            delete_pod(client, namespace, name, found.metadata.uid.as_deref().unwrap_or_default()).await
        }
        // a pod that is not there is one this node may not ask for
        Err(kube::Error::Api(answer)) if answer.code == 403 => Ok(()),
        Ok(_) => Ok(()),
        Err(error) => Err(ClusterError::api(format!("deleting the mirror of static pod {namespace}/{name}"))(error)),
    }
}

fn read(found: Option<Answer<Pod>>) -> Result<Option<Pod>, kube::Error> {
    found.map(Answer::read).transpose()
}

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
    let node_name = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default();
    let node = Api::<Node>::all(client.clone())
        .get(node_name)
        .await
        .and_then(Answer::read)
        .map_err(ClusterError::api(what()))?;
    let mut mirror = pod.clone();
    mirror.status = None;
    mirror.metadata.uid = None;
    mirror.metadata.annotations.get_or_insert_default().insert(MIRROR.to_owned(), hash.clone());
    mirror.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node_name.to_owned(),
        uid: node.metadata.uid.unwrap_or_default(),
        controller: Some(true),
        ..OwnerReference::default()
    }]);
    let mirror = Answer::from(mirror);
    // not looked for first: a node may read the pods bound to it only, and must not even ask for others
    for _ in 0..2 {
        match api.create(&PostParams::default(), &mirror).await {
            Ok(made) => return Ok(made.meta().uid.clone().unwrap_or_default()),
            Err(kube::Error::Api(answer)) if answer.code == 409 => {}
            Err(error) => return Err(ClusterError::api(what())(error)),
        }
        let Some(found) = api.get_opt(name).await.and_then(read).map_err(ClusterError::api(what()))? else { continue };
        let uid = found.metadata.uid.clone().unwrap_or_default();
        if mirrored(&found) == Some(&hash) && found.metadata.deletion_timestamp.is_none() {
            return Ok(uid);
        }
        // what is no mirror is not this node's to delete
        if mirrored(&found).is_none() {
            break;
        }
        delete_pod(client, namespace, name, &uid).await?;
    }
    let answer = kube::core::Status::failure("it exists and could not be replaced", "Conflict").with_code(409).boxed();
    Err(ClusterError::api(what())(kube::Error::Api(answer)))
}
