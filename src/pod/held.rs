//! Pods of before, after a restart of the machine: with the API server in reach they are compared with it before anything
//! of them is started, since they may have been deleted, or moved to another node, meanwhile. When it is not in reach
//! they start all the same, unless one declines that.

use tracing::info;

use super::annotation;
use super::worker::Worker;

/// A pod that says `"false"` here starts only when the API server has confirmed that it is still this node's.
pub const OFFLINE_START: &str = "pikelet.io/offline-start";

impl Worker {
    /// The API server has the pod.
    pub(super) fn confirmed(&mut self) {
        self.held = false;
    }

    /// The API server is not in reach.
    pub(super) fn unreached(&mut self) {
        if !self.held {
            return;
        }
        self.held = annotation(&self.pod, OFFLINE_START) == Some("false");
        if self.held {
            info!(pod = %self.uid, "waits for the API server, as its annotation {OFFLINE_START} says");
        }
    }
}
