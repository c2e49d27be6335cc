//! Containers: the agent's handle on pod sandboxes and their containers.
//!
//! Owns the shim and its protocol, the OCI spec, cgroups, CRI logs and exit records. Knows nothing of the API server:
//! the pod room hands in plain values ([`SandboxSpec`], [`ContainerSpec`]) and receives [`RuntimeEvent`]s.

mod cgroup;
mod connection;
mod cri_log;
mod handle;
mod process;
mod protocol;
pub mod shim;
mod spec;
mod types;
mod user;

pub use handle::Runtime;
pub use types::*;
pub use user::resolve_user;
