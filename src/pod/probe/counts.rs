//! How often each probe has found what, for `/metrics/probes`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;

use super::Kind;
use crate::pod::PodExt;

/// A probe of a container, over all its runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probed {
    /// Uid of the pod.
    pub pod_uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Name of the container.
    pub container: String,
    /// Which question.
    pub kind: Kind,
}

/// Answers to one probe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// It was as it should be.
    pub successful: u64,
    /// It was not.
    pub failed: u64,
}

/// The counts of all probes of the node; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Counts(Arc<Mutex<BTreeMap<Probed, Count>>>);

impl Counts {
    /// Counts an answer.
    pub fn add(&self, pod: &Pod, container: &str, kind: Kind, success: bool) {
        let probed = Probed {
            pod_uid: pod.uid().to_owned(),
            namespace: pod.ns().to_owned(),
            pod: pod.name().to_owned(),
            container: container.to_owned(),
            kind,
        };
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(probed).or_default();
        *(if success { &mut count.successful } else { &mut count.failed }) += 1;
    }

    /// Forgets a pod.
    pub fn remove(&self, pod_uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|probed, _| probed.pod_uid != pod_uid);
    }

    /// All counts.
    pub fn list(&self) -> BTreeMap<Probed, Count> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
