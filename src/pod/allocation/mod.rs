//! What pods were given of this node, and whether another one fits beside them.

mod admit;
mod affinity;
pub mod devices;
pub mod fit;
mod preempt;
mod record;
mod resize;
mod waiting;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use super::PodExt;
use super::admission::Rejection;
use super::eviction::ranking::is_critical;
use crate::machine::devices::Devices;
use devices::DevicePool;
use fit::{Allocatable, Amounts, NodeView, Shortage, Weighed};
use waiting::Waiting;

pub use record::Allocated;
pub use resize::{Resizing, applied_before};

/// The label of a container with the resources it began with.
pub const LABEL_RESOURCES: &str = "resources";

/// The pods that were taken; cheap to clone.
#[derive(Clone)]
pub struct Allocations {
    /// What pods may have of the node.
    pub allocatable: Arc<Allocatable>,
    pods: Arc<Mutex<BTreeMap<String, Weighed>>>,
    /// The Node as the API server has it; `None` until it was read.
    node: watch::Receiver<Option<NodeView>>,
    /// What is known of the node without an API server.
    own: Arc<NodeView>,
    /// Devices that pods have.
    pub devices: DevicePool,
    waiting: Arc<Mutex<Waiting>>,
}

/// Whether a pod is taken.
#[derive(Debug)]
pub enum Answer {
    /// It is.
    Yes,
    /// It is, once these have ended.
    After(Vec<Arc<Pod>>),
    /// The Node is not known yet.
    Unknown,
    /// It is not.
    No(Rejection),
}

/// Why a resize is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// It never can be.
    Infeasible(String),
    /// Not now.
    Deferred(String),
}

impl Allocations {
    /// None taken yet.
    pub fn new(
        allocatable: Allocatable,
        node: watch::Receiver<Option<NodeView>>,
        own: NodeView,
        devices: Arc<Devices>,
    ) -> Self {
        let devices = DevicePool::new(devices);
        Self {
            allocatable: Arc::new(allocatable),
            pods: Arc::default(),
            node,
            own: Arc::new(own),
            devices,
            waiting: Arc::default(),
        }
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Weighed>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the pod if it fits; a critical one also where others have to go for it.
    pub fn admit(&self, pod: &Arc<Pod>) -> Answer {
        let node = match &*self.node.borrow() {
            Some(node) => node.clone(),
            None if pod.is_static() => (*self.own).clone(),
            None => return Answer::Unknown,
        };
        self.admit_to(pod, &node)
    }

    /// The same by what is known of the Node.
    pub fn admit_to(&self, pod: &Arc<Pod>, node: &NodeView) -> Answer {
        let own = Weighed::of(pod, &self.allocatable);
        let mut pods = self.pods();
        let others = || pods.iter().filter(|(uid, _)| *uid != pod.uid()).map(|(_, p)| p);
        let used = Amounts::sum(others().map(|p| &p.asks), &self.allocatable);
        let shortages = own.asks.shortages(&used, &self.allocatable);
        let others: Vec<_> = others().map(|p| p.pod.clone()).collect();
        let refused = fit::refuse(pod, &others, node);
        let answer = match (shortages.first(), refused) {
            (None, None) => Answer::Yes,
            (Some(first), None) if is_critical(pod) => match preempt::victims(pod, &others, &shortages) {
                Some(victims) => Answer::After(victims),
                None => Answer::No(first.rejection()),
            },
            (Some(first), _) => Answer::No(first.rejection()),
            (None, Some(refused)) => Answer::No(refused),
        };
        if matches!(answer, Answer::Yes | Answer::After(_)) {
            if let Err(rejection) = self.devices.allocate(pod) {
                return Answer::No(rejection);
            }
            pods.insert(pod.uid().to_owned(), own);
        }
        answer
    }

    /// Counts a pod that was taken before, which has these devices.
    pub fn keep(&self, pod: &Arc<Pod>, devices: &devices::Given) {
        self.devices.keep(pod.uid(), devices);
        self.pods().insert(pod.uid().to_owned(), Weighed::of(pod, &self.allocatable));
    }

    /// The pod needs nothing any more.
    pub fn release(&self, uid: &str) {
        self.devices.release(uid);
        self.pods().remove(uid);
        self.settled(uid);
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod waits for no resize.
    pub fn settled(&self, uid: &str) {
        self.waiting().end(uid);
    }

    /// True while the pod has something.
    pub fn holds(&self, uid: &str) -> bool {
        self.pods().contains_key(uid)
    }

    /// Gives the pod what its new spec asks for, if that fits, and nobody who comes first has waited for the room.
    pub fn resize(&self, pod: &Arc<Pod>) -> Result<(), Unfit> {
        let (own, there) = (Weighed::of(pod, &self.allocatable), &*self.allocatable);
        let alone = own.asks.shortages(&Amounts::sum(std::iter::empty(), there), there);
        if let Some(Shortage { resource, requested, capacity, .. }) = alone.first() {
            let message =
                format!("Node didn't have enough capacity: {resource}, requested: {requested}, capacity: {capacity}");
            self.settled(pod.uid());
            return Err(Unfit::Infeasible(message));
        }
        let (mut pods, mut waiting, now) = (self.pods(), self.waiting(), Instant::now());
        let mut used = Amounts::sum(pods.values().map(|p| &p.asks), there);
        let old = pods.get(pod.uid()).map(|old| &old.asks);
        // what asks for no more than it has always fits
        let more = old.is_none_or(|old| own.asks.exceed(old));
        for first in if more { waiting.before(pod, now) } else { Vec::new() } {
            let Some(old) = pods.get(first.pod.uid()) else { continue };
            let others = used.less(&old.asks);
            if first.asks.shortages(&others, there).is_empty() {
                used = others.plus(&first.asks);
            }
        }
        let others = old.map_or_else(|| used.clone(), |old| used.less(old));
        if let Some(message) = own.asks.shortages(&others, there).first().map(Shortage::message) {
            waiting.add(own, now);
            return Err(Unfit::Deferred(message));
        }
        waiting.end(pod.uid());
        pods.insert(pod.uid().to_owned(), own);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, cpu: &str, priority: i32) -> Arc<Pod> {
        let pod = json!({"metadata": {"uid": uid}, "spec": {"priority": priority,
            "containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn node(allocatable: Allocatable) -> Allocations {
        let (_, node) = watch::channel(Some(NodeView::default()));
        Allocations::new(allocatable, node, NodeView::default(), Arc::new(Devices::new(&[])))
    }

    #[test]
    fn room_goes_to_who_comes_first() {
        let node = node([("cpu", 1000), ("pods", 10)].into());
        for uid in ["low", "high", "huge", "other"] {
            assert!(matches!(node.admit(&pod(uid, "250m", 0)), Answer::Yes));
        }
        let deferred = |pod: &Arc<Pod>| matches!(node.resize(pod), Err(Unfit::Deferred(_)));
        let (low, high, huge) = (pod("low", "400m", 0), pod("high", "400m", 5), pod("huge", "900m", 9));
        assert!(deferred(&low) && deferred(&high) && deferred(&huge));
        // room for one of them, and not for who comes first of all
        node.release("other");
        assert!(deferred(&low), "another one comes first");
        assert!(node.resize(&pod("low", "200m", 0)).is_ok(), "less is always given");
        assert!(deferred(&low) && node.resize(&high).is_ok());
        // what is left is less than that
        assert!(node.resize(&pod("low", "250m", 0)).is_ok() && deferred(&low));
        assert!(deferred(&huge));
        node.settled("huge");
        node.release("high");
        assert!(node.resize(&low).is_ok());
    }

    #[test]
    fn a_resize_that_waits_reads_no_other_pod() {
        let node = node([("cpu", 1000), ("pods", 100)].into());
        let uids: Vec<_> = (0..100).map(|n| n.to_string()).collect();
        assert!(uids.iter().all(|uid| matches!(node.admit(&pod(uid, "5m", 0)), Answer::Yes)));
        let larger: Vec<_> = uids.iter().map(|uid| pod(uid, "900m", 0)).collect();
        let ask = |pods: &[Arc<Pod>]| {
            let before = crate::quantity::reads();
            assert!(pods.iter().all(|pod| matches!(node.resize(pod), Err(Unfit::Deferred(_)))));
            crate::quantity::reads() - before
        };
        let one = ask(&larger[..1]);
        ask(&larger);
        assert!(one > 0 && ask(&larger) <= one * larger.len(), "beside 99 that wait it reads as much as alone");
    }
}
