//! The manager: which pods this node should have, one worker for each, and the runtime's events to the right one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::backoff::Backoff;
use super::checkpoint::Checkpoints;
use super::mailbox::Post;
use super::message::Message;
use super::order::Order;
use super::shared::Shared;
use super::source::{self, StaticUpdate};
use super::worker::Worker;
use super::{PodExt, checkpoint, log_links};
use crate::cluster::{self, PodUpdate, Unreadable};
use crate::runtime::{RuntimeEvent, SandboxInfo};

/// Where pods and orders come from.
pub struct Inputs {
    /// Pods bound to this node; `None` without a control plane.
    pub cluster: Option<mpsc::Receiver<PodUpdate>>,
    /// Static pods.
    pub manifests: mpsc::Receiver<StaticUpdate>,
    /// What the runtime has to say.
    pub runtime: mpsc::UnboundedReceiver<RuntimeEvent>,
    /// What a person on the machine orders.
    pub orders: mpsc::Receiver<Order>,
    /// Who asks whether the manager still turns.
    pub pings: mpsc::Receiver<oneshot::Sender<()>>,
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
    workers: BTreeMap<String, Post>,
    /// Static pods that run, by uid.
    statics: BTreeMap<String, StaticPod>,
    /// Static pods of the manifests, by their source.
    manifests: BTreeMap<&'static str, Vec<Arc<Pod>>>,
    tasks: JoinSet<String>,
    found: BTreeMap<String, SandboxInfo>,
    /// Uids of pods that wait until what is left of them is gone, and those that are wanted.
    orphans: BTreeMap<String, Option<Arc<Pod>>>,
    removals: JoinSet<Option<String>>,
    /// Mirror pods on the API server by their uid.
    mirrors: BTreeMap<String, Mirror>,
    /// Uids of the API server's pods that cannot be read.
    unreadable: BTreeSet<String>,
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
            orphans: BTreeMap::new(),
            removals: JoinSet::new(),
            mirrors: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            listed: false,
            draining: None,
        }
    }

    /// Takes over what an earlier agent left: pods with a checkpoint go on. What an agent left half-made or half-removed
    /// when it was cut off goes, as do sandboxes no pod claims; none of a pod whose sandbox is not gone starts again.
    pub async fn recover(&mut self, sandboxes: Vec<SandboxInfo>) {
        let known = sandboxes.iter().flat_map(|s| &s.containers).map(|c| c.spec.id.clone()).collect();
        self.sweep(&known).await;
        let mut newest: BTreeMap<String, SandboxInfo> = BTreeMap::new();
        for sandbox in sandboxes {
            let old = newest.remove(&sandbox.spec.pod_uid);
            let (keep, drop) = match old {
                Some(old) if old.spec.attempt > sandbox.spec.attempt => (old, Some(sandbox)),
                old => (sandbox, old),
            };
            newest.insert(keep.spec.pod_uid.clone(), keep);
            if let Some(stale) = drop {
                self.remove_orphan(stale, false);
            }
        }
        self.found = newest;
        let Checkpoints { pods, unreadable } = checkpoint::load_all(&self.shared.pods_dir);
        for pod in pods {
            let uid = pod.uid().to_owned();
            if pod.is_static() {
                self.statics.insert(uid, StaticPod::of(&pod));
            }
            self.start(Arc::new(pod), true);
        }
        self.shared.objects.sweep();
        // what runs of a pod whose checkpoint cannot be read goes on until its source has told of it
        let gone: Vec<_> = self.found.extract_if(.., |uid, _| !unreadable.contains(uid)).map(|(_, s)| s).collect();
        for sandbox in gone {
            self.remove_orphan(sandbox, true);
        }
    }

    /// Once all sources were read, what no pod has claimed goes.
    fn remove_unclaimed(&mut self) {
        if self.all_read() {
            let unread = &self.unreadable;
            let unclaimed: Vec<_> = self.found.extract_if(.., |uid, _| !unread.contains(uid)).map(|(_, s)| s).collect();
            for sandbox in unclaimed {
                self.remove_orphan(sandbox, true);
            }
        }
    }

    /// Whether all sources of pods were read.
    fn all_read(&self) -> bool {
        let manifests = source::KINDS.iter().all(|kind| self.manifests.contains_key(kind));
        manifests && (self.listed || self.shared.client.is_none())
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

    /// Removes a sandbox no pod claims, again and again until it is gone, beside all else; its pod waits for that.
    fn remove_orphan(&mut self, sandbox: SandboxInfo, whole_pod: bool) {
        info!(sandbox = %sandbox.spec.id, pod = %sandbox.spec.pod_name, "removing a sandbox no pod claims");
        let (shared, uid) = (self.shared.clone(), sandbox.spec.pod_uid.clone());
        if whole_pod {
            self.orphans.insert(uid.clone(), None);
        }
        self.removals.spawn(async move {
            let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
            loop {
                let errors = remove_sandbox(&shared, &sandbox, whole_pod).await;
                if errors.is_empty() {
                    return whole_pod.then_some(uid);
                }
                warn!(sandbox = %sandbox.spec.id, errors = errors.join("; "), "orphaned sandbox not wholly removed");
                tokio::time::sleep(backoff.fail(Instant::now())).await;
            }
        });
    }

    /// What is left of a pod is gone: it may start again, if it is wanted.
    fn orphan_removed(&mut self, removed: Result<Option<String>, tokio::task::JoinError>) {
        match removed {
            Ok(None) => {}
            Ok(Some(uid)) => {
                if let Some(pod) = self.orphans.remove(&uid).flatten() {
                    self.upsert(pod);
                }
            }
            Err(error) => warn!(%error, "the removal of a sandbox ended abnormally"),
        }
    }

    /// Runs until drained or every source of events is gone; pods outlive it otherwise.
    pub async fn run(mut self, mut inputs: Inputs) {
        loop {
            tokio::select! {
                Some(event) = inputs.runtime.recv() => self.runtime_event(event),
                Some(update) = next(&mut inputs.cluster) => self.cluster_update(update),
                Some(update) = inputs.manifests.recv() => self.static_update(update),
                Some(order) = inputs.orders.recv() => self.order(order),
                Some(ended) = self.tasks.join_next() => self.worker_ended(ended),
                Some(removed) = self.removals.join_next() => self.orphan_removed(removed),
                Some(asked) = inputs.pings.recv() => drop(asked.send(())),
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

    fn cluster_update(&mut self, update: PodUpdate) {
        match update {
            PodUpdate::Upsert(pod) if pod.is_mirror() => self.mirror_update(&pod),
            PodUpdate::Upsert(pod) => {
                let uid = pod.uid().to_owned();
                self.unreadable.remove(&uid);
                if self.workers.contains_key(&uid) {
                    self.tell(&uid, Message::Update(pod));
                } else {
                    self.upsert(Arc::from(pod));
                }
            }
            PodUpdate::Unreadable(it) => self.leave_alone(it),
            PodUpdate::Removed { uid } => {
                self.unreadable.remove(&uid);
                if let Some(mirror) = self.mirrors.remove(&uid) {
                    self.tell(&mirror.static_uid, Message::MirrorChanged);
                } else {
                    self.orphans.entry(uid.clone()).and_modify(|waiting| *waiting = None);
                    self.tell(&uid, Message::Removed { forced: true });
                    self.remove_unclaimed();
                }
            }
            PodUpdate::Synced(uids) => {
                let uids: BTreeSet<_> = uids.into_iter().collect();
                let gone: Vec<_> = self
                    .workers
                    .keys()
                    .filter(|u| !uids.contains(*u) && !self.statics.contains_key(*u))
                    .cloned()
                    .collect();
                for uid in gone {
                    self.tell(&uid, Message::Removed { forced: true });
                }
                self.mirrors.retain(|uid, _| uids.contains(uid));
                self.unreadable.retain(|uid| uids.contains(uid));
                for (uid, waiting) in &mut self.orphans {
                    if waiting.as_ref().is_some_and(|pod| !pod.is_static() && !uids.contains(uid)) {
                        *waiting = None;
                    }
                }
                self.listed = true;
                self.delete_lone_mirrors();
                self.remove_unclaimed();
            }
            PodUpdate::Unreached => {
                info!("the API server is not in reach: pods of before go on without it");
                for worker in self.workers.values() {
                    worker.send(Message::Unreached);
                }
            }
        }
    }

    /// A pod that cannot be read: it is said so, once, and what runs of it goes on.
    fn leave_alone(&mut self, it: Unreadable) {
        if self.unreadable.insert(it.metadata.uid.clone().unwrap_or_default()) {
            let message = format!("{}: what runs of the pod goes on as it is", it.why);
            let pod = Pod { metadata: *it.metadata, ..Pod::default() };
            self.shared.events.pod_event(&pod, None, "Warning", "Unreadable", message);
        }
    }

    fn mirror_update(&mut self, pod: &Pod) {
        let static_uid = cluster::mirrored(pod).unwrap_or_default().to_owned();
        if pod.metadata.deletion_timestamp.is_some() {
            self.tell(&static_uid, Message::MirrorChanged);
        }
        let mirror = Mirror { static_uid, namespace: pod.ns().to_owned(), name: pod.name().to_owned() };
        self.mirrors.insert(pod.uid().to_owned(), mirror);
        self.delete_lone_mirrors();
    }

    /// Mirrors whose manifest went away while no agent ran.
    fn delete_lone_mirrors(&mut self) {
        // until all sources were read one cannot tell
        let known = self.listed && self.all_read();
        let Some(client) = self.shared.client.clone().filter(|_| known) else { return };
        let lone = |_: &String, m: &mut Mirror| {
            // anybody may copy the annotation
            !self.statics.get(&m.static_uid).is_some_and(|s| s.name.0 == m.namespace && s.name.1 == m.name)
        };
        for (uid, mirror) in self.mirrors.extract_if(.., lone) {
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

    fn static_update(&mut self, StaticUpdate { source, pods }: StaticUpdate) {
        let wanted: BTreeSet<String> = pods.iter().map(|p| p.uid().to_owned()).collect();
        let of_source = self.statics.iter().filter(|(_, pod)| pod.source == source);
        let gone: Vec<_> = of_source.map(|(uid, _)| uid).filter(|u| !wanted.contains(*u)).cloned().collect();
        for uid in gone {
            self.tell(&uid, Message::Removed { forced: false });
        }
        self.manifests.insert(source, pods);
        self.start_statics();
        self.delete_lone_mirrors();
        self.remove_unclaimed();
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

    fn runtime_event(&mut self, event: RuntimeEvent) {
        match event {
            RuntimeEvent::ContainerExited { pod_uid, container, exit, .. } => {
                self.tell(&pod_uid, Message::Exited { container, exit });
            }
            RuntimeEvent::SandboxLost { sandbox, pod_uid } => {
                self.tell(&pod_uid, Message::SandboxLost { sandbox });
            }
        }
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Drain { for_restart, done } => {
                self.draining = Some(done);
                let uids: Vec<_> = self.workers.keys().cloned().collect();
                for uid in uids {
                    let message = if for_restart { Message::Halt } else { Message::Removed { forced: false } };
                    self.tell(&uid, message);
                }
            }
            Order::Stop { uid, containers, grace } => self.tell(&uid, Message::Stop { containers, grace }),
            Order::Evict { uid, reason, message, grace } => {
                self.tell(&uid, Message::Evict { reason, message, grace });
            }
            Order::Clean(done) => {
                let (each, mut all) = mpsc::channel(1);
                for worker in self.workers.values() {
                    worker.send(Message::Clean(each.clone()));
                }
                tokio::spawn(async move {
                    drop(each);
                    all.recv().await;
                    // the one who asked may have gone away
                    let _ = done.send(());
                });
            }
            Order::Renew { uid, grace, done } => self.tell(&uid, Message::Renew { grace, done }),
        }
    }

    fn tell(&self, uid: &str, message: Message) {
        if let Some(worker) = self.workers.get(uid) {
            worker.send(message);
        }
    }

    /// Starts a worker, unless this agent is draining.
    fn upsert(&mut self, pod: Arc<Pod>) {
        self.start(pod, false);
    }

    /// The same; `before`: the pod is one that an earlier agent has accepted.
    fn start(&mut self, pod: Arc<Pod>, before: bool) {
        let uid = pod.uid().to_owned();
        if self.draining.is_some() || self.workers.contains_key(&uid) {
            return;
        }
        if let Some(waiting) = self.orphans.get_mut(&uid) {
            *waiting = Some(pod);
            return;
        }
        let found = self.found.remove(&uid);
        // what runs goes on
        let runs = found.as_ref().is_some_and(|sandbox| sandbox.alive);
        let held = before && !runs && !pod.is_static() && self.shared.client.is_some();
        let (worker, tx) = Worker::new(self.shared.clone(), pod, found, held);
        self.workers.insert(uid.clone(), tx);
        self.tasks.spawn(async move {
            worker.run().await;
            uid
        });
    }
}

/// Removes a sandbox that has no worker, with the rest of its pod if that is `whole_pod`; returns what could not be done.
async fn remove_sandbox(shared: &Shared, sandbox: &SandboxInfo, whole_pod: bool) -> Vec<String> {
    let id = &sandbox.spec.id;
    let mut errors = Vec::new();
    errors.extend(shared.network.detach(id).await.err().map(|e| e.to_string()));
    errors.extend(shared.runtime.remove_sandbox(id).await.err().map(|e| e.to_string()));
    for container in &sandbox.containers {
        let dir = shared.containers_dir.join(&container.spec.id);
        errors.extend(shared.images.unmount(&dir).await.err().map(|e| e.to_string()));
    }
    if whole_pod && errors.is_empty() {
        errors.extend(shared.volumes.teardown(&sandbox.spec.pod_uid).await);
    }
    errors
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
