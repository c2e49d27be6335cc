//! What a node takes back when it leaves its cluster: its pods go elsewhere, and its Node with them if it may delete it.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams};
use kube::{Client, Resource};
use serde_json::json;

use super::answer::{self, Answer, Api};
use super::client::{ClusterError, connect, said};
use super::join::{Join, Node, was_k3s};
use super::mirror::mirrored;

/// Pause between two looks at what is left.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A client for the member that `node` is; `None`: it never became one.
pub async fn member(how: &Join, node: &Node) -> Result<Option<Client>, String> {
    crate::crypto::install();
    match how {
        Join::Kubeconfig(file) => connect(file).await.map(Some).map_err(|e| e.to_string()),
        Join::Bootstrap { source, kubeconfig } => node.bootstrap(source, kubeconfig).client().await,
        Join::K3s { server, token } => node.k3s(server, token.as_ref()).client().await,
        Join::Ask { k3s, bootstrap } => {
            let Join::K3s { server, .. } = &**k3s else { return Ok(None) };
            match was_k3s(server, node) {
                Some(k3s_server) => Box::pin(member(if k3s_server { k3s } else { bootstrap }, node)).await,
                None => Ok(None),
            }
        }
    }
}

/// A member that is about to leave.
pub struct Leaver {
    /// As the node itself.
    pub client: Client,
    /// Name of the Node.
    pub node: String,
}

impl Leaver {
    /// No new pods are scheduled here.
    pub async fn cordon(&self) -> Result<(), ClusterError> {
        let api: Api<NodeObject> = Api::all(self.client.clone());
        let patch = Patch::Merge(json!({"spec": {"unschedulable": true}}));
        let done = api.patch(&self.node, &PatchParams::default(), &patch).await;
        done.map(drop).map_err(ClusterError::api(format!("cordoning the Node {}", self.node)))
    }

    /// Evicts the pods of this node, as far as their disruption budgets allow, but those of daemon sets, which would come
    /// back. Returns what has not gone after `patience`, one line each.
    pub async fn evict(&self, patience: Duration) -> Vec<String> {
        let deadline = Instant::now() + patience;
        let all: Api<Pod> = Api::all(self.client.clone());
        let here = ListParams::default().fields(&format!("spec.nodeName={}", self.node));
        loop {
            let pods = match all.list(&here).await.map_err(ClusterError::api("listing the pods of this node")) {
                Ok(list) => list.items.into_iter().filter(movable).collect::<Vec<_>>(),
                Err(error) => return vec![error.to_string()],
            };
            let mut left = Vec::new();
            for pod in pods {
                let (namespace, name) =
                    (pod.meta().namespace.clone().unwrap_or_default(), pod.meta().name.clone().unwrap_or_default());
                let mut why = Ok("it has not ended yet".to_owned());
                if pod.meta().deletion_timestamp.is_none() {
                    let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
                    why = api.evict(&name, &EvictParams::default()).await.and(why);
                }
                match why {
                    Err(kube::Error::Api(answer)) if answer.code == 404 => {}
                    why => {
                        let why = why.unwrap_or_else(|e| said(&e));
                        left.push(format!("pod {namespace}/{name} was not evicted: {why}"));
                    }
                }
            }
            if left.is_empty() || Instant::now() >= deadline {
                return left;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Deletes the Node. Clusters allow that to nodes only if somebody gave them the right. One that is gone is no error.
    pub async fn delete_node(&self) -> Result<(), String> {
        match answer::delete::<NodeObject>(&self.client, None, &self.node, &DeleteParams::default()).await {
            Ok(()) => Ok(()),
            Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
            Err(error) => Err(format!(
                "the Node {0} was not deleted: {1}; where you may: kubectl delete node {0}",
                self.node,
                said(&error)
            )),
        }
    }
}

/// A pod that runs, and that something else may run elsewhere; one that cannot be read may be.
fn movable(pod: &Answer<Pod>) -> bool {
    let Answer::Read(pod) = pod else { return true };
    let owners = pod.metadata.owner_references.iter().flatten();
    let ended = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    mirrored(pod).is_none()
        && !matches!(ended, Some("Succeeded" | "Failed"))
        && !owners.clone().any(|o| o.kind == "DaemonSet" && o.controller == Some(true))
}
