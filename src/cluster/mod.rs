//! The link to a control plane: client, Node object, lease, events, objects pods refer to. Knows nothing of containers.

mod bootstrap;
mod client;
mod client_certificate;
mod complaint;
mod csr;
mod discovery;
mod event_filter;
mod events;
mod https;
mod join;
mod lease;
mod link;
mod mirror;
mod node;
mod objects;
mod pods;
mod retry;
mod runtime_class;
mod services;
mod serving_certificate;
mod status;

pub use bootstrap::Source;
pub use client::ClusterError;
pub use discovery::{BootstrapToken, Pin};
pub use events::{EventRate, EventRecorder};
pub use join::{Join, Membership, join};
pub use lease::keep_lease;
pub use mirror::{delete_mirror, ensure_mirror, mirrored};
pub use node::{KUBELET_VERSION, NodeSeen, NodeSettings, NodeState, keep_node, own_labels};
pub use objects::Objects;
pub use pods::{PodUpdate, watch_pods};
pub use runtime_class::runtime_handler;
pub use services::Services;
pub use serving_certificate::{client_ca, request_serving_certificate};
pub use status::{delete_pod, patch_status};
