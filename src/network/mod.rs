//! Pod addresses and links: bridge, IPAM, masquerade, host ports, resolv.conf and hosts. Everything by netlink from this
//! process.
//!
//! Knows nothing of the API server: the agent hands in pod CIDRs.

mod conntrack;
mod dial;
mod expressions;
mod host_ports;
mod ipam;
mod link;
mod netfilter;
mod nft;
mod probe;
mod resolv;
mod table;
#[cfg(test)]
mod tests;
mod types;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;

pub use dial::dial;
use ipam::Leases;
pub use probe::{Attempt, probe};
pub use resolv::{host_hosts_file, host_resolv_conf, hosts_file, resolv_conf};
pub use types::*;

struct Inner {
    config: NetworkConfig,
    handle: rtnetlink::Handle,
    leases: Mutex<Leases>,
    ranges: Mutex<Vec<IpNet>>,
    /// Ports in the kernel may lead to pods that are no more; held while the rules change.
    stale: tokio::sync::Mutex<bool>,
}

/// The pod network of this node; cheap to clone.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Name of a sandbox's link on this machine: at most 15 bytes with its peer's.
fn outside(sandbox: &str) -> String {
    format!("pk{}", &sandbox[..sandbox.len().min(11)])
}

impl Network {
    /// Loads the address leases. Nothing is created before [`Network::set_pod_cidrs`].
    pub async fn open(config: NetworkConfig) -> Result<Self, NetworkError> {
        let leases = Mutex::new(Leases::open(&config.state_dir)?);
        let (ranges, stale) = (Mutex::default(), tokio::sync::Mutex::default());
        let inner = Inner { handle: link::connect()?, config, leases, ranges, stale };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Sets the ranges pods get addresses from and makes the bridge so. Repeatable.
    pub async fn set_pod_cidrs(&self, cidrs: &[IpNet]) -> Result<(), NetworkError> {
        let config = &self.inner.config;
        link::bridge(&self.inner.handle, &config.bridge, cidrs).await?;
        *locked(&self.inner.ranges) = cidrs.to_vec();
        if let Err(error) = self.apply(false).await {
            tracing::warn!(%error, "pods will not reach networks outside the cluster: nftables cannot masquerade (a \
                kernel with nf_tables, nft_chain_nat and nft_masq is needed)");
        }
        Ok(())
    }

    /// True once pods can be attached.
    pub fn ready(&self) -> bool {
        !locked(&self.inner.ranges).is_empty()
    }

    /// Gives a sandbox's network namespace `lo`, `eth0`, its addresses and routes, and lets `ports` of this machine lead there.
    /// Repeatable (the same addresses and ports again).
    pub async fn attach(&self, sandbox: &str, netns: &Path, ports: &[HostPort]) -> Result<PodAddresses, NetworkError> {
        let ranges = locked(&self.inner.ranges).clone();
        if ranges.is_empty() {
            return Err(NetworkError::NotReady);
        }
        let ips = locked(&self.inner.leases).take(sandbox, &ranges, ports)?;
        let addresses = ips
            .iter()
            .filter_map(|ip| ranges.iter().find(|r| r.contains(ip)).map(|r| (*ip, r.prefix_len(), ipam::gateway(r))))
            .collect();
        let inner = &self.inner;
        link::attach(&inner.handle, &inner.config.bridge, &outside(sandbox), netns, addresses).await?;
        self.open_ports(sandbox, ports).await?;
        Ok(PodAddresses { ips })
    }

    /// Addresses held by a sandbox.
    pub fn addresses(&self, sandbox: &str) -> Option<PodAddresses> {
        locked(&self.inner.leases).of(sandbox).map(|ips| PodAddresses { ips: ips.clone() })
    }

    /// Takes back ports, link and addresses. Repeatable.
    pub async fn detach(&self, sandbox: &str) -> Result<(), NetworkError> {
        let closed = self.close_ports(sandbox).await;
        link::remove(&self.inner.handle, &outside(sandbox)).await?;
        // no other pod gets the addresses while ports lead there
        closed?;
        locked(&self.inner.leases).free(sandbox)
    }

    /// Frees links and addresses of every sandbox not in `live`.
    pub async fn retain(&self, live: &[String]) -> Result<(), NetworkError> {
        let held = locked(&self.inner.leases).holders();
        for sandbox in held.iter().filter(|s| !live.contains(s)) {
            self.detach(sandbox).await?;
        }
        Ok(())
    }

    /// Removes the bridge and the nftables table (after `drain-local`).
    pub async fn remove_all(&self) -> Result<(), NetworkError> {
        let table = &self.inner.config.bridge;
        nft::remove(table)
            .map_err(|source| NetworkError::Io { what: format!("removing nftables table {table}"), source })?;
        link::remove(&self.inner.handle, &self.inner.config.bridge).await
    }
}
