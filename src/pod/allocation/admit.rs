//! The worker's part in admission: a pod is taken once, or fails.

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::devices::Given;
use super::fit::{NodeView, OF_NODE};
use super::{Allocated, Answer};
use crate::cluster;
use crate::files::Durability;
use crate::pod::admission::{self, Node, Rejection};
use crate::pod::order::Order;
use crate::pod::times::seconds;
use crate::pod::worker::Worker;
use crate::pod::{PodExt, eviction, shutdown};

/// How soon one looks again for the end of pods that go, or for the Node.
const AGAIN: Duration = Duration::from_millis(200);

/// How long the API server is asked for the Node. Without an answer what was last heard of it counts.
const ASKED: Duration = Duration::from_secs(5);

impl Worker {
    /// Takes the pod, unless it is taken already or cannot be. `Err`: not now; when to ask again, if at all.
    pub(in crate::pod) async fn admit(&mut self) -> Result<(), Option<Instant>> {
        if self.allocated.is_some() {
            self.victims.retain(|uid| self.shared.allocations.holds(uid));
            return if self.victims.is_empty() { Ok(()) } else { Err(Some(Instant::now() + AGAIN)) };
        }
        // one that runs was taken by an agent before this one
        if self.sandbox.is_none() {
            if let Some(rejection) = self.unfit() {
                return self.reject(rejection);
            }
            let mut answer = self.shared.allocations.admit(&self.pod);
            if let Answer::No((reason, _)) = &answer
                && OF_NODE.contains(reason)
                && let Some(node) = self.newest_node().await
            {
                answer = self.shared.allocations.admit_to(&self.pod, &node);
            }
            match answer {
                Answer::Yes => {}
                Answer::Unknown => return Err(Some(Instant::now() + AGAIN)),
                Answer::No((reason, message)) => {
                    return self.reject((reason, format!("Pod was rejected: {message}")));
                }
                Answer::After(victims) => {
                    self.victims = victims.iter().map(|p| p.uid().to_owned()).collect();
                    for victim in victims {
                        self.preempt(&victim);
                    }
                }
            }
        } else {
            self.shared.allocations.keep(&self.pod, &Given::new());
        }
        let devices = self.shared.allocations.devices.of(&self.uid);
        self.allocated = Some(Allocated { devices, ..Allocated::of(&self.pod) });
        self.save();
        // a start waits for no disk: what a power cut takes of this is found out again at the next boot
        self.save_allocated(Durability::Volatile);
        if self.victims.is_empty() { Ok(()) } else { Err(Some(Instant::now() + AGAIN)) }
    }

    /// The Node as it is now: a pod may be bound for a label, or the end of a taint, that was not heard of here yet.
    async fn newest_node(&self) -> Option<NodeView> {
        let client = self.shared.client.as_ref()?;
        let name = &self.shared.node_name;
        match tokio::time::timeout(ASKED, cluster::see_node(client, name)).await {
            Ok(Ok(seen)) => Some(NodeView::of(name.clone(), seen)),
            Ok(Err(error)) => {
                debug!(pod = %self.uid, %error, "judged by what was last heard of the Node");
                None
            }
            Err(_) => None,
        }
    }

    fn unfit(&self) -> Option<Rejection> {
        if *self.shared.shutting_down.borrow() {
            return Some(shutdown::refused());
        }
        let node = Node { unsafe_sysctls: &self.shared.unsafe_sysctls, apparmor: &self.shared.apparmor };
        let short = eviction::refuse(&self.pod, &self.shared.pressures.borrow()).map(|message| ("Evicted", message));
        short.or_else(|| admission::refuse(&self.pod, &node))
    }

    fn reject(&mut self, (reason, message): Rejection) -> Result<(), Option<Instant>> {
        // the status says it with a prefix, the Event without, as the kubelet has it
        let told = message.strip_prefix("Pod was rejected: ").unwrap_or(&message).to_owned();
        self.event(None, "Warning", reason, told);
        self.failed = Some((reason.to_owned(), message));
        Err(None)
    }

    fn preempt(&self, victim: &k8s_openapi::api::core::v1::Pod) {
        info!(pod = %self.uid, victim = victim.name(), "a critical pod needs its place");
        let grace = seconds(victim.pod_spec().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30));
        let message = "Preempted in order to admit critical pod".to_owned();
        let order = Order::Evict { uid: victim.uid().to_owned(), reason: "Preempting", message, grace };
        let orders = self.shared.orders.clone();
        // not waited for: the manager may be waiting for this very worker
        tokio::spawn(async move {
            if orders.send(order).await.is_err() {
                warn!("pod not preempted: the agent is ending");
            }
        });
    }

    /// Writes down what the pod was given.
    pub(super) fn save_allocated(&self, durability: Durability) {
        let Some(allocated) = &self.allocated else { return };
        if let Err(error) = allocated.save(&self.pod_dir(), durability) {
            warn!(pod = %self.uid, %error, "allocation not written: after a restart of the agent the pod may be given something else");
        }
    }
}
