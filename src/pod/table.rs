//! The pods of this node with their newest status, as every other room may read them.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

/// Pods by uid; cheap to clone.
#[derive(Clone)]
pub struct PodTable {
    pods: Arc<RwLock<BTreeMap<String, Arc<Pod>>>>,
    changed: watch::Sender<u64>,
}

impl Default for PodTable {
    fn default() -> Self {
        Self { pods: Arc::default(), changed: watch::Sender::new(0) }
    }
}

impl PodTable {
    /// Every pod, with its current status.
    pub fn list(&self) -> Vec<Arc<Pod>> {
        self.read().values().cloned().collect()
    }

    /// The pod of that namespace and name.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.read()
            .values()
            .find(|p| p.metadata.namespace.as_deref() == Some(namespace) && p.metadata.name.as_deref() == Some(name))
            .cloned()
    }

    /// The pod of that uid.
    pub fn by_uid(&self, uid: &str) -> Option<Arc<Pod>> {
        self.read().get(uid).cloned()
    }

    /// Wakes after every change of any pod.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Puts a pod in or replaces it.
    pub fn put(&self, uid: &str, pod: Arc<Pod>) {
        self.write().insert(uid.to_owned(), pod);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Takes a pod out.
    pub fn remove(&self, uid: &str) {
        self.write().remove(uid);
        self.changed.send_modify(|n| *n += 1);
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Arc<Pod>>> {
        self.pods.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, Arc<Pod>>> {
        self.pods.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
