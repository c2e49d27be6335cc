//! Desired state to actual: manager, worker, status, backoff, environment, static pods.
//!
//! The manager keeps one worker per pod. A worker owns everything of its pod: it alone decides what is started,
//! stopped and reported. Knows nothing of libcontainer, netlink or HTTP.

mod admission;
pub mod allocation;
pub mod backoff;
mod bandwidth;
pub mod container;
pub mod env;
mod env_file;
pub mod ephemeral;
pub mod eviction;
pub mod manager;
pub mod node_allocatable;
pub mod order;
pub mod probe;
pub mod qos;
pub mod references;
pub mod shared;
pub mod shutdown;
pub mod source;
pub mod status;
pub mod table;
mod taints;
mod termination;
pub mod times;
pub mod weights;
pub mod worker;

mod adopt;
mod checkpoint;
mod container_mounts;
mod container_spec;
mod container_status;
mod create;
mod deadline;
mod ending;
mod evict;
mod halt;
mod health;
mod held;
mod hook;
mod host_ports;
mod identity;
mod images;
mod limit_policy;
mod log_links;
mod mailbox;
mod message;
mod names;
mod over;
mod pull_secret;
pub mod pulse;
mod recall;
pub mod restart;
mod restart_all;
mod runtime_class;
mod sandbox;
mod stop;
mod timing;
mod user_namespace;
mod writer;

pub use limit_policy::{LimitPolicy, Memory};
pub use user_namespace::IdRanges;
pub use writer::Gate;

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, PodSpec};

use crate::cluster::mirrored;

/// Read-only views of a Pod that every file of this room needs.
pub trait PodExt {
    /// `metadata.uid`; for a mirror pod's static twin the static uid.
    fn uid(&self) -> &str;
    /// `metadata.namespace`.
    fn ns(&self) -> &str;
    /// `metadata.name`.
    fn name(&self) -> &str;
    /// True for pods that came from a manifest. What the API server gave has a resource version, which nobody can take
    /// from it, and which no manifest has (`source::complete`): annotations are for users to write.
    fn is_static(&self) -> bool;
    /// True for the API server's copy of a static pod.
    fn is_mirror(&self) -> bool;
    /// True when its status says that all of it has ended for good.
    fn is_done(&self) -> bool;
    /// `spec.restartPolicy`, `Always` when unset.
    fn restart_policy(&self) -> &str;
    /// Seconds a container has between its stop signal and SIGKILL.
    fn grace_seconds(&self) -> i64;
    /// True when the pod shares the host's network.
    fn host_network(&self) -> bool;
    /// Whether an address is one of the pod: any port of its own, declared ports of the host's.
    fn listens_at(&self, address: SocketAddr) -> bool;
    /// The spec, if there is one.
    fn pod_spec(&self) -> Option<&PodSpec>;
    /// Init containers.
    fn init_containers(&self) -> &[Container];
    /// App containers.
    fn app_containers(&self) -> &[Container];
}

impl PodExt for Pod {
    fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }
    fn ns(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or("default")
    }
    fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }
    fn is_static(&self) -> bool {
        self.metadata.resource_version.is_none() && source::KINDS.contains(&source::source_of(self))
    }
    fn is_mirror(&self) -> bool {
        mirrored(self).is_some()
    }
    fn is_done(&self) -> bool {
        let phase = self.status.as_ref().and_then(|s| s.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }
    fn restart_policy(&self) -> &str {
        self.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always")
    }
    fn grace_seconds(&self) -> i64 {
        self.metadata
            .deletion_grace_period_seconds
            .or_else(|| self.spec.as_ref().and_then(|s| s.termination_grace_period_seconds))
            .unwrap_or(30)
    }
    fn host_network(&self) -> bool {
        self.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false)
    }
    fn listens_at(&self, address: SocketAddr) -> bool {
        let ips = self.status.iter().flat_map(|s| s.pod_ips.iter().flatten());
        let ip = ips.filter_map(|ip| ip.ip.parse().ok()).any(|ip: IpAddr| ip == address.ip());
        let declared = |port: &ContainerPort| port.container_port == i32::from(address.port());
        let mut ports = containers(self).flat_map(|c| c.ports.iter().flatten());
        ip && (!self.host_network() || ports.any(declared))
    }
    fn pod_spec(&self) -> Option<&PodSpec> {
        self.spec.as_ref()
    }
    fn init_containers(&self) -> &[Container] {
        self.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default()
    }
    fn app_containers(&self) -> &[Container] {
        self.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default()
    }
}

/// An annotation of a pod.
pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// An init container with `restartPolicy: Always` (a sidecar).
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// All containers of a pod, init containers first.
fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.init_containers().iter().chain(pod.app_containers())
}
