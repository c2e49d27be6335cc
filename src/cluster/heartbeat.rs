//! When a Node gives signs of life (Kubernetes "Node heartbeats").

use std::time::Duration;

/// Times of the Node's status and lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// How often the status is looked at.
    pub look: Duration,
    /// How often it is written without a change.
    pub report: Duration,
    /// Seconds the lease lasts; it is renewed four times in it.
    pub lease_seconds: i32,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { look: Duration::from_secs(10), report: Duration::from_mins(5), lease_seconds: 40 }
    }
}

impl Heartbeat {
    /// How often the lease is renewed.
    pub(super) fn renewal(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.lease_seconds).unwrap_or(1)) / 4
    }
}
