//! Containers: the agent's handle on pod sandboxes and their containers.
//!
//! Owns the shim and its protocol, the OCI spec, cgroups, CRI logs and exit records. Knows nothing of the API server:
//! the pod room hands in plain values ([`SandboxSpec`], [`ContainerSpec`]) and receives [`RuntimeEvent`]s.

mod types;

pub use types::*;

use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

/// The agent's handle on all sandboxes; cheap to clone.
#[derive(Clone)]
pub struct Runtime {}

impl Runtime {
    /// Prepares the state directory and the root cgroup. Events arrive on the returned channel.
    pub fn open(_config: RuntimeConfig) -> Result<(Self, mpsc::Receiver<RuntimeEvent>), RuntimeError> {
        Err(RuntimeError::Shim("stub".into()))
    }
    /// Finds the sandboxes of an earlier agent, connects to living shims and returns what each holds.
    pub async fn recover(&self) -> Result<Vec<SandboxInfo>, RuntimeError> {
        Err(RuntimeError::Shim("stub".into()))
    }
    /// Starts a shim with its namespaces and the pod cgroup; returns when both are ready.
    pub async fn create_sandbox(&self, _spec: SandboxSpec) -> Result<(), RuntimeError> {
        Err(RuntimeError::Shim("stub".into()))
    }
    /// `/proc/<shim>/ns/net` or a bind mount of it: valid while the sandbox lives.
    pub fn netns_path(&self, _sandbox: &str) -> Option<PathBuf> {
        None
    }
    /// Creates a container's process, stopped before its program. Returns its pid on the host.
    pub async fn create_container(&self, _sandbox: &str, _spec: ContainerSpec) -> Result<i32, RuntimeError> {
        Err(RuntimeError::Shim("stub".into()))
    }
    /// Lets the program run; returns the start time in nanoseconds since the epoch.
    pub async fn start_container(&self, _sandbox: &str, _container: &str) -> Result<i64, RuntimeError> {
        Err(RuntimeError::Shim("stub".into()))
    }
    /// Sends a signal to the container's first process (`all`: to every process of it).
    pub async fn kill_container(&self, _s: &str, _c: &str, _signal: i32, _all: bool) -> Result<(), RuntimeError> {
        Err(RuntimeError::Shim("stub".into()))
    }
    /// Removes a stopped container's state and cgroup (its log and root file system stay). Killed first if running.
    pub async fn remove_container(&self, _sandbox: &str, _container: &str) -> Result<(), RuntimeError> {
        Err(RuntimeError::Shim("stub".into()))
    }
    /// Kills what still runs, ends the shim, removes namespaces, cgroup and state. Safe to repeat, also for dead shims.
    pub async fn remove_sandbox(&self, _sandbox: &str) -> Result<(), RuntimeError> {
        Err(RuntimeError::Shim("stub".into()))
    }
}

/// Resolves an image's or pod's `user[:group]` (names or numbers) with the `/etc/passwd` and `/etc/group` of `rootfs`.
/// Names are looked up below `rootfs` without following links out of it.
pub fn resolve_user(_rootfs: &Path, _user: &str) -> Result<User, RuntimeError> {
    Err(RuntimeError::Shim("stub".into()))
}
