//! Pod addresses and links: bridge, IPAM, masquerade, resolv.conf and hosts. Everything by netlink from this process.
//!
//! Knows nothing of the API server: the agent hands in pod CIDRs.

mod resolv;
mod types;

pub use resolv::{host_resolv_conf, hosts_file, resolv_conf};
pub use types::*;

use std::path::Path;

/// The pod network of this node; cheap to clone.
#[derive(Clone)]
pub struct Network {}

impl Network {
    /// Loads the address leases. Nothing is created before [`Network::set_pod_cidrs`].
    pub async fn open(_config: NetworkConfig) -> Result<Self, NetworkError> {
        Err(NetworkError::NotReady)
    }
    /// Sets the ranges pods get addresses from and makes bridge, forwarding and masquerade so. Repeatable.
    pub async fn set_pod_cidrs(&self, _cidrs: &[ipnet::IpNet]) -> Result<(), NetworkError> {
        Ok(())
    }
    /// True once pods can be attached.
    pub fn ready(&self) -> bool {
        false
    }
    /// Gives a sandbox's network namespace `lo`, `eth0`, its addresses and routes. Repeatable (the same addresses again).
    pub async fn attach(&self, _sandbox: &str, _netns: &Path) -> Result<PodAddresses, NetworkError> {
        Err(NetworkError::NotReady)
    }
    /// Addresses held by a sandbox.
    pub fn addresses(&self, _sandbox: &str) -> Option<PodAddresses> {
        None
    }
    /// Takes back link and addresses. Repeatable.
    pub async fn detach(&self, _sandbox: &str) -> Result<(), NetworkError> {
        Ok(())
    }
    /// Frees links and addresses of every sandbox not in `live`.
    pub async fn retain(&self, _live: &[String]) -> Result<(), NetworkError> {
        Ok(())
    }
    /// Removes bridge and nftables table (for `drain-local`).
    pub async fn remove_all(&self) -> Result<(), NetworkError> {
        Ok(())
    }
}
