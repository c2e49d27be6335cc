//! What the Node is told beside the board: what it runs short of, that it is going to be switched off, its images.

use std::net::IpAddr;

use tokio::sync::watch;
use tracing::warn;

use crate::cluster::NodeState;
use crate::image::{Image, ImageStore};
use crate::pod::eviction::Pressures;

/// Tells the Node what it runs short of.
pub async fn pressures(mut seen: watch::Receiver<Pressures>, state: watch::Sender<NodeState>) {
    while seen.changed().await.is_ok() {
        let names = seen.borrow_and_update().iter().map(|p| p.name()).collect();
        state.send_modify(|s| s.pressures = names);
    }
}

/// Tells the Node what addresses it has.
pub async fn addresses(mut ips: watch::Receiver<Vec<IpAddr>>, state: watch::Sender<NodeState>) {
    while ips.changed().await.is_ok() {
        let now = ips.borrow_and_update().clone();
        state.send_modify(|s| s.node_ips = now);
    }
}

/// Tells the Node that the machine is going to be switched off.
pub async fn shutdown(mut shutting_down: watch::Receiver<bool>, state: watch::Sender<NodeState>) {
    while shutting_down.changed().await.is_ok() {
        let now = *shutting_down.borrow_and_update();
        state.send_modify(|s| s.shutting_down = now);
    }
}

/// Tells the Node which images there are.
pub async fn images(store: ImageStore, state: watch::Sender<NodeState>) {
    let mut changes = store.subscribe();
    loop {
        changes.borrow_and_update();
        match store.list().await {
            Ok(mut list) => {
                list.sort_by_key(|i| std::cmp::Reverse(i.size));
                let names = |i: &Image| i.repo_digests.iter().chain(&i.repo_tags).take(5).cloned().collect();
                let list: Vec<_> = list.iter().map(|i| (names(i), i.size)).collect();
                state.send_if_modified(|s| {
                    s.images != list && {
                        s.images = list;
                        true
                    }
                });
            }
            Err(error) => warn!(%error, "images not listed for the Node"),
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}
