//! What the workers of an agent share: handles of the other rooms, and settings of the node.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::allocation::Allocations;
use super::eviction::Pressures;
use super::limit_policy::{LimitPolicy, Memory};
use super::order::Order;
use super::probe;
use super::table::PodTable;
use super::user_namespace::IdRanges;
use super::writer::Gate;
use crate::cluster::{EventRecorder, Services};
use crate::image::ImageStore;
use crate::machine::apparmor::AppArmor;
use crate::network::Network;
use crate::runtime::{Rotation, Runtime};
use crate::volume::{ObjectSource, Volumes};

/// What all workers of an agent share.
pub struct Shared {
    /// When the agent began.
    pub begun: Instant,
    /// Containers.
    pub runtime: Runtime,
    /// Images.
    pub images: ImageStore,
    /// Pod network.
    pub network: Network,
    /// True once pods can be attached to the network.
    pub network_ready: watch::Receiver<bool>,
    /// Clients of probes and hooks.
    pub probe_clients: probe::Clients,
    /// Containers that name no seccomp profile get `RuntimeDefault`.
    pub seccomp_default: bool,
    /// Where `localhostProfile`s are.
    pub seccomp_dir: PathBuf,
    /// `allowedUnsafeSysctls`.
    pub unsafe_sysctls: Vec<String>,
    /// What probes have found.
    pub probe_counts: probe::Counts,
    /// Volumes.
    pub volumes: Volumes,
    /// ConfigMaps, Secrets and tokens.
    pub objects: Arc<dyn ObjectSource>,
    /// Wakes when an object some pod uses has changed.
    pub objects_changed: watch::Receiver<u64>,
    /// What pods were given of the node.
    pub allocations: Allocations,
    /// To the manager.
    pub orders: mpsc::Sender<Order>,
    /// Longest wait of a CrashLoopBackOff.
    pub max_restart_period: Duration,
    /// What the node runs short of.
    pub pressures: watch::Receiver<Pressures>,
    /// True while the node is shutting down.
    pub shutting_down: watch::Receiver<bool>,
    /// Events.
    pub events: EventRecorder,
    /// Where every room reads pods.
    pub table: PodTable,
    /// The control plane, if there is one.
    pub client: Option<kube::Client>,
    /// Where statuses wait for it.
    pub statuses: Gate,
    /// Name of this node.
    pub node_name: String,
    /// Addresses of this node; none while the machine has none.
    pub host_ips: watch::Receiver<Vec<IpAddr>>,
    /// Its resolv.conf, of which pods get theirs.
    pub resolv_conf: watch::Receiver<String>,
    /// `<root>/pods`.
    pub pods_dir: PathBuf,
    /// `<root>/containers`: write layers.
    pub containers_dir: PathBuf,
    /// `/var/log/pods`.
    pub logs_dir: PathBuf,
    /// When a container's log file is put aside.
    pub log_rotation: Rotation,
    /// What the machine has of `AppArmor`.
    pub apparmor: AppArmor,
    /// Limits the node's settings put on pods.
    pub limits: LimitPolicy,
    /// Ids of pods with user namespaces.
    pub id_ranges: IdRanges,
    /// What the machine has.
    pub machine: Memory,
    /// Name servers for `ClusterFirst`.
    pub cluster_dns: Vec<IpAddr>,
    /// Cluster domain.
    pub cluster_domain: String,
    /// `KUBERNETES_SERVICE_HOST` and friends.
    pub services: Services,
}
