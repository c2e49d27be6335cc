//! Node-pressure eviction: before the node runs out of memory, disk or processes, pods go; and pods that use more local
//! storage than they may go too.
//!
//! Rules: Kubernetes "Node-pressure Eviction". Signals are read as soon as a threshold could be reached, every 10 s at
//! the latest; nothing is written.

mod admission;
pub mod ranking;
mod readings;
pub mod storage;
pub mod threshold;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use super::PodExt;
use super::order::Order;
use super::table::PodTable;
use super::times::seconds;
use crate::cluster::EventRecorder;
use crate::image::{GcPolicy, ImageStore};
use crate::metrics;
use crate::runtime::Runtime;
pub use admission::refuse;
use ranking::Candidate;
use storage::Places;
use threshold::{Judge, Policy, Pressure, Readings, Signal, Threshold};

/// Longest pause between two looks (the kubelet's own).
const MOST: Duration = Duration::from_secs(10);
/// Shortest pause between two looks.
const LEAST: Duration = Duration::from_millis(500);
/// How often pods are held against their local storage limits (the kubelet's own).
const STORAGE: Duration = Duration::from_secs(10);
/// How long an evicted pod may take to be gone before another one goes (the kubelet's own).
const CLEANUP: Duration = Duration::from_secs(30);
/// What an evicted pod has between SIGTERM and SIGKILL, in a hard eviction (the kubelet's own).
const IMMEDIATE: Duration = Duration::from_secs(1);

/// Conditions the node has for want of something.
pub type Pressures = BTreeSet<Pressure>;

/// What evicts; see the module.
pub struct Evictions {
    /// Thresholds.
    pub policy: Policy,
    /// The pods.
    pub table: PodTable,
    /// Their use of memory.
    pub runtime: Runtime,
    /// Unused images go before pods.
    pub images: ImageStore,
    /// Which images are too young to go.
    pub image_gc: GcPolicy,
    /// The agent's folder.
    pub root: PathBuf,
    /// What pods have on disk.
    pub places: Places,
    /// To the manager.
    pub orders: mpsc::Sender<Order>,
    /// Conditions for the Node and for admission.
    pub pressures: watch::Sender<Pressures>,
    /// Events of the node.
    pub events: EventRecorder,
}

impl Evictions {
    /// Watches for ever.
    pub async fn keep(self) {
        for signal in Signal::ALL.map(Signal::name).into_iter().chain(storage::SIGNALS) {
            metrics::EVICTIONS.expect([signal.into()]);
        }
        let evictions = Arc::new(self);
        tokio::join!(evictions.clone().keep_node(), evictions.keep_limits());
    }

    fn read(&self) -> Readings {
        readings::read(&self.root, &self.root.join("images"))
    }

    async fn keep_node(self: Arc<Self>) {
        let mut judge = Judge::new(self.policy.clone());
        let mut going: Option<(String, Instant)> = None;
        loop {
            // looked at first: what is read after it knows what the pod has given back
            let waits = going.as_ref().is_some_and(|(uid, since)| since.elapsed() < CLEANUP && !self.is_gone(uid));
            let readings = self.read();
            let verdict = judge.judge(&readings, Instant::now());
            let pressures = verdict.pressures.clone();
            self.pressures.send_if_modified(|now| {
                *now != pressures && {
                    *now = pressures;
                    true
                }
            });
            let mut pause = judge.pause(&readings, LEAST, MOST);
            if !waits {
                going = None;
                if let Some(threshold) = verdict.reclaim.first() {
                    match self.reclaim(threshold, &readings).await {
                        Some(uid) => going = Some((uid, Instant::now())),
                        // nothing can be done now: pods may come that can go
                        None => pause = MOST.min(CLEANUP),
                    }
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// True once the pod has ended and its volumes, which may be memory, are given back.
    fn is_gone(&self, uid: &str) -> bool {
        self.active(uid).is_none() && !self.places.pods.join(uid).join("volumes").exists()
    }

    fn active(&self, uid: &str) -> Option<Arc<Pod>> {
        self.table.by_uid(uid).filter(|p| !p.is_done())
    }

    /// Frees what can be freed otherwise, then evicts one pod; returns its uid.
    async fn reclaim(&self, threshold: &Threshold, readings: &Readings) -> Option<String> {
        let signal = threshold.signal;
        let message = format!("Attempting to reclaim {}", signal.resource());
        warn!(signal = signal.name(), threshold = %threshold.amount, ?readings, "eviction threshold met");
        self.events.node_event("Warning", "EvictionThresholdMet", message);
        if signal.pressure() == Pressure::Disk {
            self.clean().await;
            if Judge::resolved(threshold, &self.read()) {
                info!(signal = signal.name(), "enough was freed without evicting a pod");
                return None;
            }
        }
        let mut candidates = self.candidates(signal).await;
        ranking::rank(&mut candidates, signal);
        let Some(first) = candidates.into_iter().find(|c| !ranking::is_critical(&c.pod)) else {
            warn!(signal = signal.name(), "no pod can be evicted");
            return None;
        };
        let available = readings.get(&signal).map_or(0, |r| r.available);
        let message = ranking::message(&first, signal, &threshold.amount.to_string(), available);
        let grace = if threshold.grace.is_none() {
            IMMEDIATE
        } else {
            let own = first.pod.pod_spec().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
            self.policy.max_pod_grace.min(seconds(own))
        };
        let uid = first.pod.uid().to_owned();
        self.evict(&uid, signal.name(), message, grace).await;
        Some(uid)
    }

    async fn evict(&self, uid: &str, signal: &'static str, message: String, grace: Duration) {
        metrics::EVICTIONS.add([signal.into()]);
        let order = Order::Evict { uid: uid.to_owned(), reason: "Evicted", message, grace };
        if self.orders.send(order).await.is_err() {
            warn!(pod = uid, "not evicted: the agent is ending");
        }
    }

    /// Removes what ended containers have written, and images nobody uses.
    async fn clean(&self) {
        let (done, cleaned) = oneshot::channel();
        if self.orders.send(Order::Clean(done)).await.is_ok() {
            // a manager that is ending has nothing to clean any more
            let _ = tokio::time::timeout(CLEANUP, cleaned).await;
        }
        match self.images.remove_unused(&self.image_gc).await {
            Ok(bytes) => info!(bytes, "unused images removed"),
            Err(error) => warn!(%error, "unused images not removed"),
        }
    }

    async fn candidates(&self, signal: Signal) -> Vec<Candidate> {
        let pods: Vec<_> = self.table.list().into_iter().filter(|p| !p.is_done()).collect();
        let (runtime, places) = (self.runtime.clone(), self.places.clone());
        let measured = tokio::task::spawn_blocking(move || {
            pods.into_iter().filter_map(|pod| candidate(pod, signal, &runtime, &places)).collect()
        });
        measured.await.unwrap_or_default()
    }

    async fn keep_limits(self: Arc<Self>) {
        let mut watch = storage::Watch::default();
        let mut tick = tokio::time::interval(STORAGE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let mine = self.clone();
            let looked = tokio::task::spawn_blocking(move || {
                let pods = mine.table.list();
                let over = watch.over(pods.iter().map(AsRef::as_ref).filter(|p| !p.is_done()), &mine.places);
                (watch, over)
            });
            let Ok((again, over)) = looked.await else { return };
            watch = again;
            for (uid, signal, message) in over {
                if self.active(&uid).is_some_and(|p| !ranking::is_critical(&p)) {
                    self.evict(&uid, signal, message, IMMEDIATE).await;
                }
            }
        }
    }
}

/// What a pod uses of what `signal` watches; `None` when nothing of it runs.
fn candidate(pod: Arc<Pod>, signal: Signal, runtime: &Runtime, places: &Places) -> Option<Candidate> {
    if signal.pressure() == Pressure::Disk {
        return Some(storage::measure(&pod, places).candidate(pod, signal));
    }
    let cgroup = super::qos::pod_cgroup(&pod);
    let of = |usage: crate::runtime::Usage| match signal {
        Signal::MemoryAvailable => usage.working_set,
        _ => usage.processes,
    };
    let used = of(runtime.usage(&cgroup)?);
    let containers = storage::runs(&pod)
        .filter_map(|(name, id)| Some((name.to_owned(), of(runtime.usage(&format!("{cgroup}/{id}"))?))))
        .collect();
    Some(Candidate { pod, used, containers })
}
