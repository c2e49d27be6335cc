//! The worker of one pod: takes the newest spec and the runtime's events, and moves the pod towards it.
//!
//! Everything a worker does can be repeated: after a crash of the agent it goes on from what the runtime still holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::adopt::{Adopted, adopt, is_whole};
use super::allocation::{Allocated, Resizing, applied_before};
use super::backoff::Backoff;
use super::container::{ContainerState, Containers};
use super::ending::Ending;
use super::evict::Evicted;
use super::halt::Halt;
use super::mailbox::{Mailbox, Post};
use super::message::Message;
use super::shared::Shared;
use super::stop::Stopping;
use super::timing::Timing;
use super::{PodExt, checkpoint, ephemeral, recall, references, restart_all, status, termination, writer};
use crate::runtime::{ContainerInfo, ExitRecord, IdRange, SandboxInfo};
use crate::{metrics, volume};

/// The sandbox of a pod.
pub(super) struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub ips: Vec<IpAddr>,
    /// Its users; `None` when they are the host's.
    pub ids: Option<IdRange>,
    /// The network is attached.
    pub ready: bool,
}

/// See the module.
pub struct Worker {
    pub(super) shared: Arc<Shared>,
    /// Addresses of this node as the pod was told of them.
    pub(super) host_ips: Vec<std::net::IpAddr>,
    pub(super) pod: Arc<Pod>,
    pub(super) uid: String,
    pub(super) tx: Post,
    pub(super) mailbox: Mailbox,
    pub(super) sandbox: Option<Sandbox>,
    pub(super) next_sandbox: u32,
    pub(super) containers: Containers,
    pub(super) unstarted: Vec<ContainerInfo>,
    /// Ids of containers whose making was given up.
    pub(super) half_made: Vec<String>,
    pub(super) volumes: Option<BTreeMap<String, PathBuf>>,
    pub(super) setup_retry: Backoff,
    /// What its containers wait for: volumes, or the sandbox.
    pub(super) setup_error: Option<String>,
    pub(super) stopping: Option<Stopping>,
    /// Its containers are being ended, for the pod's own reasons or for its deletion.
    pub(super) ending: Option<Ending>,
    pub(super) removed: bool,
    /// It ends with the machine.
    pub(super) halt: Option<Halt>,
    /// The API server is to be heard of first.
    pub(super) held: bool,
    /// It was removed by force: somebody may count on it being gone.
    pub(super) forced: bool,
    /// Somebody waits for the sandbox to be removed.
    pub(super) renewal: Option<oneshot::Sender<Result<(), String>>>,
    pub(super) failed: Option<(String, String)>,
    /// Containers and the images that were pulled for their coming run.
    pub(super) pulled_fresh: Vec<(String, String)>,
    pub(super) evicted: Option<Evicted>,
    /// What the pod was given of the node; `None` until it is taken.
    pub(super) allocated: Option<Allocated>,
    /// What its newest spec asks for.
    pub(super) desired: Option<Allocated>,
    pub(super) resizing: Resizing,
    /// Ids of runs that others take the place of (`restart_all.rs`).
    pub(super) replaced: BTreeSet<String>,
    /// Uids of pods that end for this one.
    pub(super) victims: BTreeSet<String>,
    /// The volumes of the ended pod are given back.
    pub(super) released: bool,
    /// It is over, and little is kept of it (`over.rs`).
    pub(super) reduced: bool,
    pub(super) status: PodStatus,
    pub(super) timing: Timing,
    writer: writer::StatusWriter,
}

impl Worker {
    /// A worker for `pod`, going on from `found` (its newest sandbox in the runtime).
    /// `held`: nothing of it is started until the API server, or its absence, was heard of (`held.rs`).
    pub fn new(shared: Arc<Shared>, mut pod: Arc<Pod>, found: Option<SandboxInfo>, held: bool) -> (Self, Post) {
        let mailbox = Mailbox::default();
        let tx = mailbox.post();
        let uid = pod.uid().to_owned();
        let status = pod.status.clone().unwrap_or_default();
        let mut containers = Containers::new();
        let done = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let told = (!(done && found.is_none())).then(|| (status.clone(), found.clone()));
        let Adopted { mut sandbox, next_sandbox, unstarted } = adopt(&shared, found, &mut containers);
        if let Some((status, found)) = told {
            recall::recall(&status, found.as_ref(), &mut containers);
            if let (Some(sandbox), Some(found)) = (&mut sandbox, &found) {
                sandbox.ready &= is_whole(found, &pod, &containers);
            }
        }
        // of a static pod only its manifest's going away is noted so
        let removed = pod.is_static() && pod.metadata.deletion_timestamp.is_some();
        let replaced = restart_all::load(&shared.pods_dir.join(&uid));
        let allocated = Allocated::load(&shared.pods_dir.join(&uid));
        if let Some(allocated) = &allocated {
            allocated.put_into(Arc::make_mut(&mut pod));
            if !matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
                shared.allocations.keep(&pod, &allocated.devices);
            }
        }
        for state in containers.values_mut() {
            state.crash = state.crash.clone().bounded(shared.max_restart_period);
            state.applied = state.current.as_ref().and_then(|run| applied_before(allocated.as_ref(), run));
        }
        let writer = writer::StatusWriter::new(shared.client.clone(), shared.statuses.clone());
        shared.objects.hold(&uid, references::references(&pod));
        let host_ips = shared.host_ips.borrow().clone();
        let worker = Self {
            shared,
            host_ips,
            pod,
            uid,
            tx: tx.clone(),
            mailbox,
            sandbox,
            next_sandbox,
            containers,
            unstarted,
            half_made: Vec::new(),
            volumes: None,
            setup_retry: Backoff::new(Duration::from_millis(250), Duration::from_secs(5)),
            setup_error: None,
            stopping: None,
            ending: None,
            removed,
            halt: None,
            held,
            forced: false,
            renewal: None,
            failed: None,
            evicted: None,
            allocated,
            desired: None,
            resizing: Resizing::default(),
            replaced,
            victims: BTreeSet::new(),
            released: false,
            reduced: false,
            pulled_fresh: Vec::new(),
            timing: Timing::new(&status),
            status,
            writer,
        };
        (worker, tx)
    }

    /// Runs until the pod is gone and nothing of it is left.
    pub async fn run(mut self) {
        let mut network = self.shared.network_ready.clone();
        let mut objects = self.shared.objects_changed.clone();
        let (mut addresses, mut resolv_conf) = (self.shared.host_ips.clone(), self.shared.resolv_conf.clone());
        if self.sandbox.is_some() {
            // it may be another one since the agent of before
            resolv_conf.mark_changed();
        }
        Box::pin(self.remove_unstarted()).await;
        while let Some(message) = self.mailbox.try_recv() {
            self.take(message).await;
        }
        let mut cause = "create";
        loop {
            let began = Instant::now();
            // boxed, and so gone while the worker waits: it is large, and there are hundreds of workers
            let wake = Box::pin(self.sync()).await;
            let step = if self.deleted() { "kill" } else { std::mem::replace(&mut cause, "sync") };
            metrics::POD_WORKERS.observe([step.into()], began.elapsed());
            if self.halt.is_none() || self.stopping.is_some() {
                self.publish();
            }
            if self.stopping.as_ref().is_some_and(Stopping::finished) {
                break;
            }
            if self.halt == Some(Halt::Done) {
                return;
            }
            let sleep = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = self.mailbox.recv() => {
                    if let Message::Update(_) = message {
                        cause = "update";
                    }
                    self.take(message).await;
                }
                () = sleep => {}
                Ok(()) = network.changed() => {}
                Ok(()) = objects.changed() => Box::pin(self.refresh()).await,
                Ok(()) = addresses.changed() => self.take_host_ips(),
                Ok(()) = resolv_conf.changed() => self.rewrite_resolv_conf(),
            }
            while let Some(message) = self.mailbox.try_recv() {
                self.take(message).await;
            }
        }
        self.shared.objects.release(&self.uid);
        self.shared.allocations.release(&self.uid);
        self.shared.id_ranges.release(&self.uid);
        let Self { shared, pod, uid, writer, mut mailbox, removed, .. } = self;
        // the API server may be away for long, or refuse: the pod can be taken from it by others meanwhile
        let gone = async {
            loop {
                if let Message::Removed { .. } | Message::Halt = mailbox.recv().await {
                    return;
                }
            }
        };
        tokio::select! {
            () = Box::pin(writer.finish(&pod, removed, &shared.events)) => {}
            () = gone => {}
        }
        shared.table.remove(&uid);
        shared.probe_counts.remove(&uid);
    }

    async fn take(&mut self, message: Message) {
        match message {
            Message::Update(pod) => {
                self.confirmed();
                let mut pod = self.reduced(*pod);
                if self.pod.metadata.deletion_timestamp.is_some() && pod.metadata.deletion_timestamp.is_none() {
                    pod.metadata.deletion_timestamp.clone_from(&self.pod.metadata.deletion_timestamp);
                }
                self.take_resources(&mut pod);
                if !ephemeral::same(&self.pod, &pod) {
                    self.shared.objects.hold(&self.uid, references::references(&pod));
                    if volume::used(&self.pod) != volume::used(&pod) {
                        self.volumes = None;
                    }
                }
                let before = std::mem::replace(&mut self.pod, Arc::new(pod));
                self.replace_images(&before);
                let (now, then) = (&self.pod.metadata, &before.metadata);
                if now.labels != then.labels || now.annotations != then.annotations {
                    Box::pin(self.refresh_volumes()).await;
                }
            }
            Message::Removed { forced } => {
                self.removed = true;
                self.forced = forced;
            }
            Message::Halt => self.halt = self.halt.or(Some(Halt::Asked)),
            Message::Unreached => self.unreached(),
            Message::MirrorChanged => self.writer.mirror_changed(),
            Message::Exited { container, exit } => self.exited(&container, &exit),
            Message::SandboxLost { sandbox } => self.sandbox_lost(&sandbox),
            Message::Imported { container } => self.imported(&container),
            Message::Pulled(pulled) => self.pulled(*pulled),
            Message::PostStarted { container, result } => self.post_started(&container, result),
            Message::Probed { container, kind, success } => self.probed(&container, kind, success),
            Message::Stop { containers, grace } => self.stop_runs(|id| containers.iter().any(|c| c == id), grace),
            Message::Renew { grace, done } => self.renew(grace, done),
            Message::Evict { reason, message, grace } => self.evict(reason, message, grace),
            Message::Clean(done) => self.clean(done).await,
        }
    }

    fn exited(&mut self, id: &str, exit: &ExitRecord) {
        for (name, state) in &mut self.containers {
            let Some(current) = state.current.as_mut().filter(|c| c.spec.id == id && c.exit.is_none()) else {
                continue;
            };
            let ran = current.started_at.map_or(0, |s| exit.finished_at - s);
            debug!(pod = %self.uid, container = %name, code = exit.code, "container ended");
            current.exit = Some(exit.clone());
            state.message = termination::message(current);
            state.probes = None;
            state.hooking = false;
            let meant = state.changed || self.replaced.contains(id);
            let crashed = !meant && state.wants_restart(&self.pod, name);
            state.back_off(Duration::from_nanos(u64::try_from(ran).unwrap_or_default()), crashed, Instant::now());
        }
    }

    fn sandbox_lost(&mut self, id: &str) {
        if self.sandbox.as_ref().is_none_or(|s| s.id != id) {
            return;
        }
        let finished_at = now_nanos();
        for state in self.containers.values_mut().filter(|s| s.running()) {
            state.probes = None;
            if let Some(current) = state.current.as_mut() {
                current.exit = Some(ExitRecord { code: 137, signal: Some(9), oom_killed: false, finished_at });
            }
        }
        if let Some(sandbox) = self.sandbox.as_mut() {
            sandbox.ready = false;
        }
        self.shared.events.pod_event(
            &self.pod,
            None,
            "Normal",
            "SandboxChanged",
            "Pod sandbox changed, it will be killed and re-created.".to_owned(),
        );
    }

    async fn refresh(&mut self) {
        Box::pin(self.refresh_volumes()).await;
        for state in self.containers.values_mut() {
            state.retry.reset();
        }
        self.setup_retry.reset();
    }

    /// Writes anew what has changed of what volumes hold: objects, or the pod's own fields.
    async fn refresh_volumes(&self) {
        if self.volumes.is_some()
            && self.stopping.is_none()
            && let Err(error) = Box::pin(self.shared.volumes.refresh(&self.pod)).await
        {
            warn!(pod = %self.uid, %error, "volume not refreshed");
        }
    }

    /// One step towards the wanted state; returns when something is due by itself.
    async fn sync(&mut self) -> Option<Instant> {
        if self.deleted() || self.stopping.is_some() {
            return self.stop().await;
        }
        if self.halt.is_some() {
            return self.end_with_machine().await;
        }
        if self.terminal() {
            self.end_of_life().await;
            return None;
        }
        if self.held && self.failed.is_none() {
            return None;
        }
        if self.allocated.is_some() {
            self.save();
        }
        if !self.renewed().await {
            return None;
        }
        let deadline = self.keep_deadline();
        let resize = if self.allocated.is_some() && !self.decided() { self.resize() } else { None };
        let wake = if self.decided() {
            let grace = self.evicted.as_ref().map_or_else(|| self.grace(), |e| e.grace);
            self.end_containers(grace).await
        } else if let Some(at) = self.replace_all().await {
            Some(at)
        } else {
            let wake = Box::pin(self.create()).await;
            self.start_probes();
            wake
        };
        if self.ended() {
            self.publish();
            if self.sandbox.is_none() {
                self.reduce();
            }
            // so that an agent that starts with no API server does not run it again
            self.save();
            self.end_of_life().await;
        }
        [wake, deadline, resize].into_iter().flatten().min()
    }

    /// Keeps the pod with what was last told of it.
    pub(super) fn save(&self) {
        self.save_with(self.status.clone());
    }

    pub(super) fn save_with(&self, status: PodStatus) {
        let pod = Pod { status: Some(status), ..(*self.pod).clone() };
        if let Err(error) = checkpoint::save(&self.shared.pods_dir, &self.uid, &pod) {
            warn!(pod = %self.uid, %error, "checkpoint not written: the pod would not come back after a reboot with no API server");
        }
    }

    /// True when somebody wants the pod gone.
    pub(super) fn deleted(&self) -> bool {
        self.removed || self.pod.metadata.deletion_timestamp.is_some()
    }

    /// When this node began to take care of the pod (`status.startTime`).
    pub(super) fn started_at(&self) -> Option<jiff::Timestamp> {
        self.status.start_time.as_ref().map(|time| time.0)
    }

    /// True when the pod has come to its end, whether that is told yet or not.
    pub(super) fn ended(&self) -> bool {
        matches!(status::phase(&self.facts()), "Succeeded" | "Failed")
    }

    /// True when the pod's containers leave nothing to be started again: what still runs, sidecars above all, is ended.
    fn decided(&self) -> bool {
        status::outcome(&self.facts()).is_some()
    }

    /// True once the phase is final.
    fn terminal(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    pub(super) fn compute(&self) -> PodStatus {
        if self.reduced { self.status.clone() } else { status::compute(&self.facts()) }
    }

    fn facts(&self) -> status::Facts<'_> {
        status::Facts {
            pod: &self.pod,
            previous: &self.status,
            containers: &self.containers,
            sandbox_ready: self.sandbox.as_ref().is_some_and(|s| s.ready),
            pod_ips: self.sandbox.as_ref().map(|s| s.ips.as_slice()).unwrap_or_default(),
            host_ips: &self.host_ips,
            failed: self.failed.as_ref().map(|(r, m)| (r.as_str(), m.as_str())),
            refused: self.failed.is_some() && self.allocated.is_none(),
            waits_for: self.setup_error.as_deref(),
            resizing: &self.resizing,
            evicted: self.evicted.as_ref().map(|e| e.message.as_str()),
            restarting_all: self.restarting_all(),
            terminating: self.stopping.is_some() || self.pod.metadata.deletion_timestamp.is_some(),
        }
    }

    /// Makes the newest status known: to the other rooms at once, to the API server when it has changed.
    pub(super) fn publish(&mut self) {
        if self.held {
            // nothing is told, but on this node it is known that nothing of it runs
            let pod = Pod { status: Some(self.compute()), ..(*self.pod).clone() };
            self.shared.table.put(&self.uid, Arc::new(pod));
            return;
        }
        let status = self.compute();
        let mut pod = (*self.pod).clone();
        let changed = status != self.status || self.shared.table.by_uid(&self.uid).is_none();
        self.timing.look(&pod, &status);
        pod.status = Some(status.clone());
        self.status = status;
        let pod = Arc::new(pod);
        if changed || self.shared.table.by_uid(&self.uid).is_none_or(|p| p.metadata != pod.metadata) {
            self.shared.table.put(&self.uid, pod.clone());
        }
        if changed || self.pod.status.as_ref() != pod.status.as_ref() {
            self.writer.put(pod);
        }
        let lasting = self.stopping.is_none() && self.halt.is_none() && !self.deleted() && !self.terminal();
        if changed && lasting && self.allocated.is_some() {
            self.save();
        }
    }

    pub(super) fn state(&mut self, name: &str) -> &mut ContainerState {
        let period = self.shared.max_restart_period;
        self.containers.entry(name.to_owned()).or_insert_with(|| {
            let state = ContainerState::default();
            Box::new(ContainerState { crash: state.crash.clone().bounded(period), ..state })
        })
    }

    pub(super) fn event(&self, container: Option<&Container>, type_: &'static str, reason: &str, message: String) {
        self.shared.events.pod_event(&self.pod, container.map(|c| c.name.as_str()), type_, reason, message);
    }
}

/// Nanoseconds since the epoch.
pub(super) fn now_nanos() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or_default()
}
