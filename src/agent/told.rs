//! What the Node is told beside the board: what it runs short of, that it is going to be switched off, its images, and
//! which processes it has lost for want of memory.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use tokio::sync::watch;
use tracing::warn;

use crate::cluster::{EventRecorder, NodeState};
use crate::image::{Image, ImageStore};
use crate::machine::oom;
use crate::network;
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

/// Tells of what a resolv.conf has that pods do not get, whenever it changes. `set`: the file a person named.
pub async fn resolv_conf(set: Option<PathBuf>, mut text: watch::Receiver<String>, events: EventRecorder) {
    let mut before = None;
    loop {
        text.mark_unchanged();
        let wrong = network::resolv_conf_limits(set.as_deref());
        if let Some(wrong) = wrong.clone().filter(|_| wrong != before) {
            events.node_event("Warning", "CheckLimitsForResolvConf", wrong);
        }
        before = wrong;
        if text.changed().await.is_err() {
            return;
        }
    }
}

/// Tells the Node that the machine is going to be switched off, and by an Event in the kubelet's words.
pub async fn shutdown(
    mut shutting_down: watch::Receiver<bool>,
    state: watch::Sender<NodeState>,
    events: EventRecorder,
) {
    while shutting_down.changed().await.is_ok() {
        let now = *shutting_down.borrow_and_update();
        let new = state.send_if_modified(|s| std::mem::replace(&mut s.shutting_down, now) != now);
        if new {
            let what = if now { "event" } else { "cancellation" };
            events.node_event("Normal", "Shutdown", format!("Shutdown manager detected shutdown {what}"));
        }
    }
}

/// Tells by Events which processes the kernel ended as the machine was out of memory, in the kubelet's words.
pub async fn system_oom(events: EventRecorder, seen: &Path) {
    let tell = |oom::Victim { name, pid }| {
        let message = format!("System OOM encountered, victim process: {name}, pid: {pid}");
        events.node_event("Warning", "SystemOOM", message);
    };
    oom::watch(seen, tell).await;
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
