//! The pods bound to this node, watched.

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};

use super::retry::patient;

/// A change of the pods bound to this node.
#[derive(Debug)]
pub enum PodUpdate {
    /// New or changed.
    Upsert(Box<Pod>),
    /// Gone from the API server.
    Removed {
        /// Its uid.
        uid: String,
    },
    /// After a (re)list: the uids of all pods there are.
    Synced(Vec<String>),
}

/// Updates that may wait for the manager.
const QUEUE: usize = 256;

/// Watches pods with `spec.nodeName=<node>`, from when this machine is the Node; reconnects with backoff for ever.
pub fn watch_pods(client: Client, node: &str, mut ours: watch::Receiver<bool>) -> mpsc::Receiver<PodUpdate> {
    let (tx, rx) = mpsc::channel(QUEUE);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    tokio::spawn(async move {
        if ours.wait_for(|ours| *ours).await.is_err() {
            return;
        }
        let mut events = patient(Some("pods"), watcher(Api::<Pod>::all(client), config)).boxed();
        let mut listed = Vec::new();
        while let Some(event) = events.next().await {
            let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
            let update = match event {
                Ok(watcher::Event::Init) => {
                    listed.clear();
                    continue;
                }
                Ok(watcher::Event::InitApply(pod)) => {
                    listed.push(uid(&pod));
                    PodUpdate::Upsert(Box::new(pod))
                }
                Ok(watcher::Event::InitDone) => PodUpdate::Synced(std::mem::take(&mut listed)),
                Ok(watcher::Event::Apply(pod)) => PodUpdate::Upsert(Box::new(pod)),
                Ok(watcher::Event::Delete(pod)) => PodUpdate::Removed { uid: uid(&pod) },
                Err(_) => continue,
            };
            if tx.send(update).await.is_err() {
                return;
            }
        }
    });
    rx
}
