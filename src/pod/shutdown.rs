//! Graceful node shutdown: pods end before the machine does, group after group, those the system needs last.
//!
//! Rules: Kubernetes "Node Shutdowns" (graceful node shutdown).

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::PodExt;
use super::eviction::ranking::{is_critical, priority};
use super::order::Order;
use super::table::PodTable;
use super::times::seconds;
use crate::machine::logind::Logind;

/// Priority from which pods are critical (`SystemCriticalPriority`).
pub const CRITICAL: i32 = 2_000_000_000;
/// The kubelet's words in the status of a pod that was ended ...
const TERMINATED: (&str, &str) = ("Terminated", "Pod was terminated in response to imminent node shutdown.");
/// ... and of one that is not taken any more.
const REFUSED: (&str, &str) = ("NodeShutdown", "Pod was rejected: Pod was rejected as the node is shutting down.");
/// Pause after the connection to logind broke.
const AGAIN: Duration = Duration::from_secs(5);
/// What the newest statuses have to reach the API server, after the last pod has ended.
const WRITTEN: Duration = Duration::from_millis(500);

/// Pods that end together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Least priority of its pods.
    pub priority: i32,
    /// What they have to end.
    pub time: Duration,
}

/// Why a pod is not taken while the node is shutting down.
pub fn refused() -> (&'static str, String) {
    (REFUSED.0, REFUSED.1.to_owned())
}

/// Ends pods before a shutdown.
pub struct Shutdown {
    /// The least priority first; not empty.
    pub groups: Vec<Group>,
    /// The pods.
    pub table: PodTable,
    /// To the manager.
    pub orders: mpsc::Sender<Order>,
    /// True while the node is shutting down.
    pub state: watch::Sender<bool>,
}

impl Shutdown {
    /// Waits for shutdowns for ever.
    pub async fn keep(self) {
        loop {
            if let Err(error) = self.follow().await {
                warn!(error, "a shutdown of this machine will not wait for pods: trying again");
            }
            // a bus that is started anew
            self.state.send_replace(false);
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// As long as logind is there.
    async fn follow(&self) -> Result<(), String> {
        let logind = Logind::connect().await?;
        logind.allow(self.groups.iter().map(|g| g.time).sum()).await?;
        let mut announced = logind.announcements().await?;
        let mut lock = Some(logind.inhibit().await?);
        info!("a shutdown of this machine will wait for pods");
        while let Some(begins) = announced.next().await {
            self.state.send_replace(begins);
            if begins {
                info!("the machine is shutting down: ending pods");
                tokio::select! {
                    () = self.end() => {}
                    // what was ended has ended, but nothing more does
                    Some(false) = announced.next() => {
                        self.state.send_replace(false);
                        continue;
                    }
                }
                info!("pods have ended, or had their time: the shutdown goes on");
                lock = None;
            } else {
                info!("the shutdown was called off: the node takes pods again");
                if lock.is_none() {
                    lock = Some(logind.inhibit().await?);
                }
            }
        }
        Ok(())
    }

    async fn end(&self) {
        for (at, group) in self.groups.iter().enumerate() {
            let pods: Vec<_> = self.table.list().into_iter().filter(|p| place(p, &self.groups) == at).collect();
            for pod in &pods {
                let own = seconds(pod.pod_spec().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30));
                let (reason, message) = (TERMINATED.0, TERMINATED.1.to_owned());
                let order = Order::Evict { uid: pod.uid().to_owned(), reason, message, grace: own.min(group.time) };
                if self.orders.send(order).await.is_err() {
                    return;
                }
            }
            let ended = self.ended(&pods);
            if !pods.is_empty() && tokio::time::timeout(group.time, ended).await.is_err() {
                warn!(priority = group.priority, "pods did not end in the time of their group");
            }
        }
        tokio::time::sleep(WRITTEN).await;
    }

    /// Returns when nothing of `pods` runs.
    async fn ended(&self, pods: &[Arc<Pod>]) {
        let mut changes = self.table.subscribe();
        loop {
            changes.borrow_and_update();
            let runs = |pod: &Arc<Pod>| self.table.by_uid(pod.uid()).is_some_and(|p| runs(&p));
            if !pods.iter().any(runs) || changes.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Which group a pod is in: the last one whose priority it has; the first when it has none of them.
fn place(pod: &Pod, groups: &[Group]) -> usize {
    let priority = if is_critical(pod) { priority(pod).max(CRITICAL) } else { priority(pod) };
    groups.iter().rposition(|g| g.priority <= priority).unwrap_or(0)
}

fn runs(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    // while it is not said yet that it failed, its containers may not be told either
    let over = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let mut all = lists.into_iter().flatten().flatten();
    !over || all.any(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn critical_pods_end_last() {
        let pod = |priority: i32, annotations: serde_json::Value| -> Pod {
            serde_json::from_value(
                serde_json::json!({"metadata": {"annotations": annotations}, "spec": {"containers": [],
                "priority": priority}}),
            )
            .unwrap()
        };
        let group = |priority| Group { priority, time: Duration::from_secs(1) };
        let groups = [group(0), group(100), group(CRITICAL)];
        let at = |priority| place(&pod(priority, serde_json::json!({})), &groups);
        assert_eq!([-5, 0, 99, 100, CRITICAL - 1, CRITICAL, i32::MAX].map(at), [0, 0, 0, 1, 1, 2, 2]);
        let fixed = pod(0, serde_json::json!({"kubernetes.io/config.source": "file"}));
        assert_eq!(place(&fixed, &groups), 2);
    }
}
