//! Writes a pod's status to the API server when it changes; changes during a write are coalesced, none is lost.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::PodExt;
use super::backoff::Backoff;
use crate::cluster;

const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// The status writer of one pod.
pub(super) struct StatusWriter {
    client: Option<kube::Client>,
    newest: watch::Sender<Option<Arc<Pod>>>,
    task: Option<JoinHandle<()>>,
}

impl StatusWriter {
    /// A writer; without a client statuses stay on this node.
    pub fn new(client: Option<kube::Client>) -> Self {
        let (newest, changes) = watch::channel(None);
        let task = client.clone().map(|client| tokio::spawn(write_all(client, changes)));
        Self { client, newest, task }
    }

    /// Hands over a newer status.
    pub fn put(&self, pod: Arc<Pod>) {
        self.newest.send_replace(Some(pod));
    }

    /// Waits for the last status to be written, then deletes the pod from the API server unless it is gone already.
    pub async fn finish(self, pod: &Pod, gone: bool) {
        let Self { client, newest, task } = self;
        let (Some(client), Some(task)) = (client, task) else { return };
        if gone {
            task.abort();
            return;
        }
        drop(newest);
        if task.await.is_err() {
            warn!(pod = pod.name(), "status writer ended early");
        }
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        while let Err(error) = cluster::delete_pod(&client, pod.ns(), pod.name(), pod.uid()).await {
            if error.is_not_found() || error.is_conflict() {
                return;
            }
            debug!(pod = pod.name(), %error, "pod not deleted yet");
            tokio::time::sleep(backoff.fail(std::time::Instant::now())).await;
        }
    }
}

async fn write_all(client: kube::Client, mut changes: watch::Receiver<Option<Arc<Pod>>>) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    let mut pending = false;
    loop {
        if !pending && changes.changed().await.is_err() {
            return;
        }
        let Some(pod) = changes.borrow_and_update().clone() else { continue };
        match cluster::patch_status(&client, &pod).await {
            Ok(_) => {
                pending = false;
                backoff.reset();
            }
            Err(error) if error.is_not_found() || error.is_conflict() => pending = false,
            Err(error) => {
                debug!(pod = pod.name(), %error, "status not written yet");
                pending = true;
                let delay = backoff.fail(std::time::Instant::now());
                tokio::time::sleep(delay).await;
            }
        }
    }
}
