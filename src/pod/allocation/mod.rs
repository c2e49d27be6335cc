//! What pods were given of this node, and whether another one fits beside them.

mod admit;
mod affinity;
pub mod devices;
pub mod fit;
mod preempt;
mod record;
mod resize;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use super::PodExt;
use super::admission::Rejection;
use super::eviction::ranking::is_critical;
use crate::machine::devices::Devices;
use devices::DevicePool;
use fit::{Allocatable, NodeView, Shortage};

pub use record::Allocated;
pub use resize::{Resizing, applied_before};

/// The label of a container with the resources it began with.
pub const LABEL_RESOURCES: &str = "resources";

/// The pods that were taken; cheap to clone.
#[derive(Clone)]
pub struct Allocations {
    /// What pods may have of the node.
    pub allocatable: Arc<Allocatable>,
    pods: Arc<Mutex<BTreeMap<String, Arc<Pod>>>>,
    /// The Node as the API server has it; `None` until it was read.
    node: watch::Receiver<Option<NodeView>>,
    /// What is known of the node without an API server.
    own: Arc<NodeView>,
    /// Devices that pods have.
    pub devices: DevicePool,
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
        Self { allocatable: Arc::new(allocatable), pods: Arc::default(), node, own: Arc::new(own), devices }
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Pod>>> {
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
        let mut pods = self.pods();
        let others: Vec<_> = pods.iter().filter(|(uid, _)| *uid != pod.uid()).map(|(_, p)| p.clone()).collect();
        let shortages = fit::shortages(pod, &others, &self.allocatable);
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
            pods.insert(pod.uid().to_owned(), pod.clone());
        }
        answer
    }

    /// Counts a pod that was taken before, which has these devices.
    pub fn keep(&self, pod: &Arc<Pod>, devices: &devices::Given) {
        self.devices.keep(pod.uid(), devices);
        self.pods().insert(pod.uid().to_owned(), pod.clone());
    }

    /// The pod needs nothing any more.
    pub fn release(&self, uid: &str) {
        self.devices.release(uid);
        self.pods().remove(uid);
    }

    /// True while the pod has something.
    pub fn holds(&self, uid: &str) -> bool {
        self.pods().contains_key(uid)
    }

    /// Gives the pod what its new spec asks for, if that fits.
    pub fn resize(&self, pod: &Arc<Pod>) -> Result<(), Unfit> {
        let alone = fit::shortages(pod, &[], &self.allocatable);
        if let Some(Shortage { resource, requested, capacity, .. }) = alone.first() {
            let message =
                format!("Node didn't have enough capacity: {resource}, requested: {requested}, capacity: {capacity}");
            return Err(Unfit::Infeasible(message));
        }
        let mut pods = self.pods();
        let others: Vec<_> = pods.iter().filter(|(uid, _)| *uid != pod.uid()).map(|(_, p)| p.clone()).collect();
        if let Some(shortage) = fit::shortages(pod, &others, &self.allocatable).first() {
            return Err(Unfit::Deferred(shortage.message()));
        }
        pods.insert(pod.uid().to_owned(), pod.clone());
        Ok(())
    }
}
