//! Writes a pod's status to the API server when it changes; changes during a write are coalesced, none is lost. A static
//! pod's status goes to its mirror, which is made, and made again when somebody deletes it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::PodExt;
use super::backoff::Backoff;
use crate::cluster::{self, ClusterError, Complaint, EventRecorder, Retry};

const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Where statuses wait for an API server that does not answer: one of them is tried again and again, the others follow when it
/// has gone through, so that a node of many pods neither tries without end nor is late.
#[derive(Clone, Default)]
pub struct Gate {
    first: Arc<Mutex<Retry>>,
    through: watch::Sender<()>,
}

impl Gate {
    /// Waits until it is worth trying. Who goes first keeps what is returned until it knows.
    async fn wait(&self) -> Option<OwnedMutexGuard<Retry>> {
        let mut through = self.through.subscribe();
        let turn = async {
            let mut first = self.first.clone().lock_owned().await;
            tokio::time::sleep(first.next().unwrap_or(RETRY_MAX)).await;
            first
        };
        tokio::select! {
            _ = through.changed() => None,
            first = turn => Some(first),
        }
    }

    /// The API server answers.
    fn open(&self, first: Option<OwnedMutexGuard<Retry>>) {
        if let Some(mut first) = first {
            *first = Retry::default();
        }
        self.through.send_replace(());
    }
}

/// The newest status, and how often the mirror was seen to change.
#[derive(Clone, Default)]
struct Wanted {
    pod: Option<Arc<Pod>>,
    mirror: u64,
}

/// The status writer of one pod.
pub(super) struct StatusWriter {
    client: Option<kube::Client>,
    wanted: watch::Sender<Wanted>,
    task: Option<JoinHandle<()>>,
}

impl StatusWriter {
    /// A writer; without a client statuses stay on this node.
    pub fn new(client: Option<kube::Client>, gate: Gate) -> Self {
        let (wanted, changes) = watch::channel(Wanted::default());
        let task = client.clone().map(|client| tokio::spawn(write_all(client, changes, gate)));
        Self { client, wanted, task }
    }

    /// Hands over a newer status; more of the pod is kept only where its mirror is made of it.
    pub fn put(&self, pod: Arc<Pod>) {
        let (name, namespace, uid) = (pod.name(), pod.ns(), pod.uid());
        let [name, namespace, uid] = [name, namespace, uid].map(|text| Some(text.to_owned()));
        let metadata = ObjectMeta { name, namespace, uid, ..ObjectMeta::default() };
        let small = || Arc::new(Pod { metadata, spec: None, status: pod.status.clone() });
        let pod = if pod.is_static() { pod } else { small() };
        self.wanted.send_modify(|w| w.pod = Some(pod));
    }

    /// Somebody deleted the mirror: it is made again.
    pub fn mirror_changed(&self) {
        self.wanted.send_modify(|w| w.mirror += 1);
    }

    /// Waits for the last status to be written, then deletes the pod from the API server unless it is gone already.
    /// The mirror of a static pod goes in any case. When it is given up, nothing more is written.
    pub async fn finish(self, pod: &Pod, gone: bool, events: &EventRecorder) {
        let Self { client, wanted, task } = self;
        let (Some(client), Some(task)) = (client, task) else { return };
        if gone {
            task.abort();
            if pod.is_static() {
                delete_mirror(&client, pod).await;
            }
            return;
        }
        drop(wanted);
        if AbortOnDropHandle::new(task).await.is_err() {
            warn!(pod = pod.name(), "status writer ended early");
        }
        let mut complaint = Complaint::default();
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        while let Err(error) = cluster::delete_pod(&client, pod.ns(), pod.name(), pod.uid()).await {
            if error.is_not_found() || error.is_conflict() {
                return;
            }
            if error.is_answer() && complaint.is_due(&error.to_string()) {
                warn!(pod = pod.name(), %error, "nothing of the pod is left on this node, but the API server does not let it go");
                events.pod_event(
                    pod,
                    None,
                    "Warning",
                    "FailedDelete",
                    format!("The pod has ended on its node: {error}"),
                );
            }
            tokio::time::sleep(backoff.fail(Instant::now())).await;
        }
    }
}

/// One try: a mirror that stays is deleted when the agent next sees it without its static pod.
async fn delete_mirror(client: &kube::Client, pod: &Pod) {
    if let Err(error) = cluster::delete_mirror(client, pod).await {
        debug!(pod = pod.name(), %error, "mirror pod not deleted");
    }
}

/// The uid a pod has on the API server.
async fn api_uid(client: &kube::Client, pod: &Pod, mirror: &mut Option<String>) -> Result<String, ClusterError> {
    if !pod.is_static() {
        return Ok(pod.uid().to_owned());
    }
    if mirror.is_none() {
        *mirror = Some(cluster::ensure_mirror(client, pod).await?);
    }
    Ok(mirror.clone().unwrap_or_default())
}

async fn write_all(client: kube::Client, mut changes: watch::Receiver<Wanted>, gate: Gate) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    let (mut pending, mut hurried, mut first) = (false, false, None);
    let (mut mirror, mut seen) = (None, 0);
    let mut complaint = Complaint::default();
    loop {
        if !pending && changes.changed().await.is_err() {
            return;
        }
        let wanted = changes.borrow_and_update().clone();
        if wanted.mirror != seen {
            seen = wanted.mirror;
            mirror = None;
        }
        let Some(pod) = wanted.pod else { continue };
        let written = async {
            let uid = api_uid(&client, &pod, &mut mirror).await?;
            cluster::patch_status(&client, &pod, &uid).await
        };
        match written.await {
            Ok(()) => {
                pending = false;
                backoff.reset();
                gate.open(first.take());
            }
            Err(error) if !pod.is_static() && (error.is_not_found() || error.is_conflict()) => {
                pending = false;
                gate.open(first.take());
            }
            Err(error) => {
                if error.is_answer() && complaint.is_due(&error.to_string()) {
                    warn!(pod = pod.name(), %error, "status not written: trying again");
                }
                mirror = None;
                pending = true;
                drop(first.take());
                let wait = async {
                    if error.is_answer() {
                        tokio::time::sleep(backoff.fail(Instant::now())).await;
                        return None;
                    }
                    gate.wait().await
                };
                // a pod that ends meanwhile need not wait: its last try is made at once, and only then
                let news = async {
                    if changes.changed().await.is_err() && std::mem::replace(&mut hurried, true) {
                        std::future::pending::<()>().await;
                    }
                };
                tokio::select! {
                    turn = wait => first = turn,
                    () = news => if hurried && pod.is_static() { return },
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_tries_and_the_others_follow_when_it_has_gone_through() {
        let gate = Gate::default();
        let (tx, mut turns) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..100 {
            let (gate, tx) = (gate.clone(), tx.clone());
            tokio::spawn(async move { tx.send(gate.wait().await) });
        }
        // nobody else tries while it does, nor when it has failed twice
        for _ in 0..3 {
            let first = turns.recv().await.unwrap();
            assert!(first.is_some());
            tokio::time::sleep(Duration::from_mins(1)).await;
            assert!(turns.try_recv().is_err());
            drop(first);
        }
        let first = turns.recv().await.unwrap();
        let began = tokio::time::Instant::now();
        gate.open(first);
        for _ in 0..96 {
            assert!(turns.recv().await.unwrap().is_none());
        }
        assert!(began.elapsed() < Duration::from_millis(10), "{:?}", began.elapsed());
    }
}
