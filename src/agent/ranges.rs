//! The ranges of addresses this node's pods have, and the pod network that follows them.

use std::time::Duration;

use tokio::sync::watch;
use tracing::warn;

use crate::cluster::{Kept, NodeState, Slot};
use crate::network::Network;

/// Where the ranges are kept.
const CIDRS: Slot = Slot("node", "", "podcidrs");
/// How long the Node is waited for before the ranges it had count.
const NODE_READ: Duration = Duration::from_millis(300);

/// Where the API server does not say what ranges this node has, it has those it had before.
pub async fn recall(kept: Kept, cidrs: watch::Sender<Vec<String>>) {
    let Some(known) = kept.get::<Vec<String>>(CIDRS) else { return };
    tokio::time::sleep(NODE_READ).await;
    cidrs.send_if_modified(|now| {
        now.is_empty() && {
            *now = known;
            true
        }
    });
}

/// Makes the pod network follow the ranges of this node.
pub async fn keep(
    network: Network,
    mut cidrs: watch::Receiver<Vec<String>>,
    ready: watch::Sender<bool>,
    state: watch::Sender<NodeState>,
    kept: Kept,
) {
    loop {
        let wanted: Vec<ipnet::IpNet> = cidrs.borrow_and_update().iter().filter_map(|c| c.parse().ok()).collect();
        if !wanted.is_empty() {
            match network.set_pod_cidrs(&wanted).await {
                Ok(()) => {
                    ready.send_replace(true);
                    state.send_modify(|s| s.network_ready = true);
                    kept.put(CIDRS, &wanted).await;
                }
                Err(error) => warn!(%error, "pod network not set up"),
            }
        }
        if cidrs.changed().await.is_err() {
            return;
        }
    }
}
