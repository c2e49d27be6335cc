//! The pods bound to this node, watched.

use std::error::Error;
use std::io;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher;
use kube::{Client, Resource};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::answer::{Answer, Api, Reader, Unreadable};
use super::retry::patient;

/// A change of the pods bound to this node.
#[derive(Debug)]
pub enum PodUpdate {
    /// New or changed.
    Upsert(Box<Pod>),
    /// New or changed, and not to be read: what runs of it goes on.
    Unreadable(Unreadable),
    /// Gone from the API server.
    Removed {
        /// Its uid.
        uid: String,
    },
    /// After a (re)list: the uids of all pods there are.
    Synced(Vec<String>),
    /// The API server does not answer, or not in time: what an earlier agent has kept has to do.
    Unreached,
}

/// The annotation that says where a pod came from.
pub const SOURCE: &str = "kubernetes.io/config.source";

/// How long an API server may take to answer at all before pods of before start without it.
const REACH: Duration = Duration::from_secs(3);
/// How long one that answers may take to list the pods.
const FIRST_LIST: Duration = Duration::from_secs(30);
/// Between two tries to reach it.
const PAUSE: Duration = Duration::from_millis(200);
/// Updates that may wait for the manager.
const QUEUE: usize = 16;
/// Pods in one answer of a list: one may have more than a megabyte.
const PAGE: u32 = 20;

/// Watches pods with `spec.nodeName=<node>`, from when this machine is the Node; reconnects with backoff for ever.
pub fn watch_pods(client: Client, node: &str, mut ours: watch::Receiver<bool>) -> mpsc::Receiver<PodUpdate> {
    let (tx, rx) = mpsc::channel(QUEUE);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}")).page_size(PAGE);
    let (listed_tx, listed_once) = watch::channel(false);
    tokio::spawn(tell_unreached(client.clone(), listed_once, tx.clone()));
    tokio::spawn(async move {
        if ours.wait_for(|ours| *ours).await.is_err() {
            return;
        }
        let mut events = patient(Some("pods"), watcher(Api::<Pod>::all(client), config)).boxed();
        let (mut listed, mut reader) = (Vec::new(), Reader::default());
        while let Some(event) = events.next().await {
            let uid = |pod: &Answer<Pod>| pod.meta().uid.clone().unwrap_or_default();
            let mut read = |pod| match reader.read(pod) {
                Ok(pod) => PodUpdate::Upsert(Box::new(of_api(pod))),
                Err(it) => PodUpdate::Unreadable(it),
            };
            let update = match event {
                Ok(watcher::Event::Init) => {
                    listed.clear();
                    continue;
                }
                Ok(watcher::Event::InitApply(pod)) => {
                    listed.push(uid(&pod));
                    read(pod)
                }
                Ok(watcher::Event::InitDone) => PodUpdate::Synced(std::mem::take(&mut listed)),
                Ok(watcher::Event::Apply(pod)) => read(pod),
                Ok(watcher::Event::Delete(pod)) => PodUpdate::Removed { uid: uid(&pod) },
                Err(_) => continue,
            };
            let synced = matches!(update, PodUpdate::Synced(_));
            if tx.send(update).await.is_err() {
                return;
            }
            if synced {
                listed_tx.send_replace(true);
            }
        }
    });
    rx
}

/// The pod with its true source, whatever whoever made it has written there (the kubelet's `config.go` does so too).
fn of_api(mut pod: Pod) -> Pod {
    pod.metadata.annotations.get_or_insert_default().insert(SOURCE.to_owned(), "api".to_owned());
    pod
}

/// Says so when the API server is not in reach, or does not list the pods.
async fn tell_unreached(client: Client, mut listed: watch::Receiver<bool>, tx: mpsc::Sender<PodUpdate>) {
    let answers = timeout(REACH, answers(&client)).await.unwrap_or(false);
    if answers && timeout(FIRST_LIST, listed.wait_for(|l| *l)).await.is_ok_and(|l| l.is_ok()) {
        return;
    }
    // no receiver: the agent is ending
    let _ = tx.send(PodUpdate::Unreached).await;
}

/// Whether the API server answers anything at all. A machine that is there and serves nothing is an answer too: no.
async fn answers(client: &Client) -> bool {
    loop {
        match client.apiserver_version().await {
            Ok(_) | Err(kube::Error::Api(_)) => return true,
            Err(error) if refused(&error) => return false,
            // the network may not be up yet
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

fn refused(error: &kube::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_of_a_pod_is_not_what_its_maker_says() {
        let forged = serde_json::json!({"metadata": {"annotations": {SOURCE: "file", "mine": "stays"}}});
        for pod in [serde_json::json!({}), forged] {
            let stays = pod["metadata"]["annotations"].as_object().map_or(1, |a| a.len());
            let annotations = of_api(serde_json::from_value(pod).unwrap()).metadata.annotations.unwrap();
            assert_eq!((annotations[SOURCE].as_str(), annotations.len()), ("api", stays));
        }
    }
}
