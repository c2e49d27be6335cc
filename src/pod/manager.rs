//! The manager: which pods this node should have, one worker for each, and the runtime's events to the right one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::message::Message;
use super::order::Order;
use super::shared::Shared;
use super::source::{self, StaticUpdate};
use super::worker::Worker;
use super::{PodExt, checkpoint, log_links};
use crate::cluster::{self, PodUpdate};
use crate::runtime::{RuntimeEvent, SandboxInfo};

/// Where pods and orders come from.
pub struct Inputs {
    /// Pods bound to this node; `None` without a control plane.
    pub cluster: Option<mpsc::Receiver<PodUpdate>>,
    /// Static pods.
    pub manifests: mpsc::Receiver<StaticUpdate>,
    /// What the runtime has to say.
    pub runtime: mpsc::Receiver<RuntimeEvent>,
    /// What a person on the machine orders.
    pub orders: mpsc::Receiver<Order>,
}

/// The API server's copy of a static pod.
struct Mirror {
    static_uid: String,
    namespace: String,
    name: String,
}

/// A static pod that runs.
struct StaticPod {
    name: (String, String),
    source: String,
}

impl StaticPod {
    fn of(pod: &Pod) -> Self {
        Self { name: full_name(pod), source: source::source_of(pod).to_owned() }
    }
}

/// See the module.
pub struct Manager {
    shared: Arc<Shared>,
    workers: BTreeMap<String, mpsc::Sender<Message>>,
    /// Static pods that run, by uid.
    statics: BTreeMap<String, StaticPod>,
    /// Static pods of the manifests, by their source.
    manifests: BTreeMap<&'static str, Vec<Arc<Pod>>>,
    tasks: JoinSet<String>,
    found: BTreeMap<String, SandboxInfo>,
    /// Mirror pods on the API server by their uid.
    mirrors: BTreeMap<String, Mirror>,
    /// The API server's pods were listed.
    listed: bool,
    draining: Option<oneshot::Sender<()>>,
}

impl Manager {
    /// A manager that knows nothing yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            workers: BTreeMap::new(),
            statics: BTreeMap::new(),
            manifests: BTreeMap::new(),
            tasks: JoinSet::new(),
            found: BTreeMap::new(),
            mirrors: BTreeMap::new(),
            listed: false,
            draining: None,
        }
    }

    /// Takes over what an earlier agent left: pods with a checkpoint go on, sandboxes with none are removed.
    /// What an agent left half-made or half-removed when it was cut off goes.
    pub async fn recover(&mut self, sandboxes: Vec<SandboxInfo>) {
        let known = sandboxes.iter().flat_map(|s| &s.containers).map(|c| c.spec.id.clone()).collect();
        self.sweep(&known).await;
        let mut newest: BTreeMap<String, SandboxInfo> = BTreeMap::new();
        let mut stale = Vec::new();
        for sandbox in sandboxes {
            let old = newest.remove(&sandbox.spec.pod_uid);
            let (keep, drop) = match old {
                Some(old) if old.spec.attempt > sandbox.spec.attempt => (old, Some(sandbox)),
                old => (sandbox, old),
            };
            stale.extend(drop);
            newest.insert(keep.spec.pod_uid.clone(), keep);
        }
        self.found = newest;
        for pod in checkpoint::load_all(&self.shared.pods_dir) {
            let uid = pod.uid().to_owned();
            if pod.is_static() {
                self.statics.insert(uid, StaticPod::of(&pod));
            }
            self.upsert(Arc::new(pod));
        }
        self.shared.objects.sweep();
        stale.extend(std::mem::take(&mut self.found).into_values());
        for sandbox in stale {
            info!(sandbox = %sandbox.spec.id, pod = %sandbox.spec.pod_name, "removing a sandbox no pod claims");
            self.remove_orphan(&sandbox).await;
        }
    }

    /// Removes write layers no container has, and folders of pods that have no checkpoint.
    async fn sweep(&self, known: &BTreeSet<String>) {
        let entries = |dir: &Path| {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|e| e.path()).collect::<Vec<_>>()
        };
        log_links::sweep(&self.shared.logs_dir);
        let mut errors = Vec::new();
        for dir in entries(&self.shared.containers_dir) {
            if !dir.file_name().and_then(|n| n.to_str()).is_some_and(|n| known.contains(n)) {
                errors.extend(self.shared.images.unmount(&dir).await.err().map(|e| e.to_string()));
            }
        }
        for dir in entries(&self.shared.pods_dir).into_iter().filter(|d| !checkpoint::exists(d)) {
            let Some(uid) = dir.file_name().and_then(|n| n.to_str()) else { continue };
            errors.extend(self.shared.volumes.teardown(uid).await);
        }
        if !errors.is_empty() {
            warn!(errors = errors.join("; "), "left over from an earlier agent");
        }
    }

    async fn remove_orphan(&self, sandbox: &SandboxInfo) {
        let id = &sandbox.spec.id;
        let mut errors = Vec::new();
        errors.extend(self.shared.network.detach(id).await.err().map(|e| e.to_string()));
        errors.extend(self.shared.runtime.remove_sandbox(id).await.err().map(|e| e.to_string()));
        for container in &sandbox.containers {
            let dir = self.shared.containers_dir.join(&container.spec.id);
            errors.extend(self.shared.images.unmount(&dir).await.err().map(|e| e.to_string()));
        }
        errors.extend(self.shared.volumes.teardown(&sandbox.spec.pod_uid).await);
        if !errors.is_empty() {
            warn!(sandbox = %id, errors = errors.join("; "), "orphaned sandbox not wholly removed");
        }
    }

    /// Runs until drained or every source of events is gone; pods outlive it otherwise.
    pub async fn run(mut self, mut inputs: Inputs) {
        loop {
            tokio::select! {
                Some(event) = inputs.runtime.recv() => self.runtime_event(event).await,
                Some(update) = next(&mut inputs.cluster) => self.cluster_update(update).await,
                Some(update) = inputs.manifests.recv() => self.static_update(update).await,
                Some(order) = inputs.orders.recv() => self.order(order).await,
                Some(ended) = self.tasks.join_next() => self.worker_ended(ended),
                else => return,
            }
            if self.workers.is_empty()
                && let Some(done) = self.draining.take()
            {
                // the one who asked may have gone away
                let _ = done.send(());
                return;
            }
        }
    }

    fn worker_ended(&mut self, ended: Result<String, tokio::task::JoinError>) {
        match ended {
            Ok(uid) => {
                self.workers.remove(&uid);
                if self.statics.remove(&uid).is_some() {
                    self.start_statics();
                }
                crate::allocator::trim_soon();
            }
            Err(error) => warn!(%error, "a pod worker ended abnormally"),
        }
    }

    async fn cluster_update(&mut self, update: PodUpdate) {
        match update {
            PodUpdate::Upsert(pod) if pod.is_mirror() => self.mirror_update(&pod).await,
            PodUpdate::Upsert(pod) => {
                let uid = pod.uid().to_owned();
                if self.workers.contains_key(&uid) {
                    self.tell(&uid, Message::Update(pod)).await;
                } else {
                    self.upsert(Arc::from(pod));
                }
            }
            PodUpdate::Removed { uid } => match self.mirrors.remove(&uid) {
                Some(mirror) => self.tell(&mirror.static_uid, Message::MirrorChanged).await,
                None => self.tell(&uid, Message::Removed { forced: true }).await,
            },
            PodUpdate::Synced(uids) => {
                let uids: BTreeSet<_> = uids.into_iter().collect();
                let gone: Vec<_> = self
                    .workers
                    .keys()
                    .filter(|u| !uids.contains(*u) && !self.statics.contains_key(*u))
                    .cloned()
                    .collect();
                for uid in gone {
                    self.tell(&uid, Message::Removed { forced: true }).await;
                }
                self.mirrors.retain(|uid, _| uids.contains(uid));
                self.listed = true;
                self.delete_lone_mirrors();
            }
        }
    }

    async fn mirror_update(&mut self, pod: &Pod) {
        let static_uid = cluster::mirrored(pod).unwrap_or_default().to_owned();
        if pod.metadata.deletion_timestamp.is_some() {
            self.tell(&static_uid, Message::MirrorChanged).await;
        }
        let mirror = Mirror { static_uid, namespace: pod.ns().to_owned(), name: pod.name().to_owned() };
        self.mirrors.insert(pod.uid().to_owned(), mirror);
        self.delete_lone_mirrors();
    }

    /// Mirrors whose manifest went away while no agent ran.
    fn delete_lone_mirrors(&mut self) {
        // until all sources were read one cannot tell
        let known = self.listed && source::KINDS.iter().all(|kind| self.manifests.contains_key(kind));
        let Some(client) = self.shared.client.clone().filter(|_| known) else { return };
        for (uid, mirror) in self.mirrors.extract_if(.., |_, m| !self.statics.contains_key(&m.static_uid)) {
            let client = client.clone();
            tokio::spawn(async move {
                let Mirror { namespace, name, .. } = mirror;
                match cluster::delete_pod(&client, &namespace, &name, &uid).await {
                    Err(error) if !error.is_not_found() => warn!(%error, "mirror pod of no manifest not deleted"),
                    _ => {}
                }
            });
        }
    }

    async fn static_update(&mut self, StaticUpdate { source, pods }: StaticUpdate) {
        let wanted: BTreeSet<String> = pods.iter().map(|p| p.uid().to_owned()).collect();
        let of_source = self.statics.iter().filter(|(_, pod)| pod.source == source);
        let gone: Vec<_> = of_source.map(|(uid, _)| uid).filter(|u| !wanted.contains(*u)).cloned().collect();
        for uid in gone {
            self.tell(&uid, Message::Removed { forced: false }).await;
        }
        self.manifests.insert(source, pods);
        self.start_statics();
        self.delete_lone_mirrors();
    }

    /// Starts static pods that do not run: not before an older one of the same name has ended.
    fn start_statics(&mut self) {
        let waiting = self.manifests.values().flatten().filter(|p| !self.workers.contains_key(p.uid()));
        for pod in waiting.cloned().collect::<Vec<_>>() {
            if !self.statics.values().any(|found| found.name == full_name(&pod)) {
                self.statics.insert(pod.uid().to_owned(), StaticPod::of(&pod));
                self.upsert(pod);
            }
        }
    }

    async fn runtime_event(&mut self, event: RuntimeEvent) {
        match event {
            RuntimeEvent::ContainerExited { pod_uid, container, exit, .. } => {
                self.tell(&pod_uid, Message::Exited { container, exit }).await;
            }
            RuntimeEvent::SandboxLost { sandbox, pod_uid } => {
                self.tell(&pod_uid, Message::SandboxLost { sandbox }).await;
            }
        }
    }

    async fn order(&mut self, order: Order) {
        match order {
            Order::Drain { for_restart, done } => {
                self.draining = Some(done);
                let uids: Vec<_> = self.workers.keys().cloned().collect();
                for uid in uids {
                    let message = if for_restart { Message::Halt } else { Message::Removed { forced: false } };
                    self.tell(&uid, message).await;
                }
            }
            Order::Stop { uid, containers, grace } => self.tell(&uid, Message::Stop { containers, grace }).await,
            Order::Evict { uid, reason, message, grace } => {
                self.tell(&uid, Message::Evict { reason, message, grace }).await;
            }
            Order::Clean(done) => {
                let (each, mut all) = mpsc::channel(1);
                for worker in self.workers.values() {
                    // one that just ended has nothing to remove
                    let _ = worker.send(Message::Clean(each.clone())).await;
                }
                tokio::spawn(async move {
                    drop(each);
                    all.recv().await;
                    // the one who asked may have gone away
                    let _ = done.send(());
                });
            }
            Order::Renew { uid, grace, done } => self.tell(&uid, Message::Renew { grace, done }).await,
        }
    }

    async fn tell(&mut self, uid: &str, message: Message) {
        // a worker that just ended needs to hear nothing more
        if let Some(worker) = self.workers.get(uid) {
            let _ = worker.send(message).await;
        }
    }

    /// Starts a worker, unless this agent is draining.
    fn upsert(&mut self, pod: Arc<Pod>) {
        let uid = pod.uid().to_owned();
        if self.draining.is_some() || self.workers.contains_key(&uid) {
            return;
        }
        let found = self.found.remove(&uid);
        let (worker, tx) = Worker::new(self.shared.clone(), pod, found);
        self.workers.insert(uid.clone(), tx);
        self.tasks.spawn(async move {
            worker.run().await;
            uid
        });
    }
}

fn full_name(pod: &Pod) -> (String, String) {
    (pod.ns().to_owned(), pod.name().to_owned())
}

/// The next item of a source that may not exist.
async fn next<T>(source: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match source {
        Some(source) => source.recv().await,
        None => std::future::pending().await,
    }
}
