//! CPU weights of the QoS classes' cgroups, so that no number of pods that request nothing outweighs one that does.
//!
//! Rules: those of the kubelet's QoS container manager. Guaranteed pods are beside these cgroups, each with its own.

use std::time::Duration;

use tracing::warn;

use super::qos;
use super::table::PodTable;
use crate::runtime::{Resources, Runtime};

/// Changes of pods come in bursts.
const PAUSE: Duration = Duration::from_secs(1);

/// Keeps the weights while pods come and go; never ends.
pub async fn keep(runtime: Runtime, table: PodTable) {
    let set = |cgroup: &str, shares: u64| {
        let resources = Resources { cpu_shares: Some(shares), ..Resources::default() };
        if let Err(error) = runtime.limit(cgroup, &resources) {
            warn!(cgroup, %error, "CPU weight not set");
        }
    };
    set("besteffort", qos::BEST_EFFORT_SHARES);
    let mut changes = table.subscribe();
    let mut last = None;
    loop {
        let shares = qos::burstable_shares(table.list().iter().map(AsRef::as_ref));
        if last.replace(shares) != Some(shares) {
            set("burstable", shares);
        }
        if changes.changed().await.is_err() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
        changes.mark_unchanged();
    }
}
