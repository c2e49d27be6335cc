//! Pod addresses and links: bridge, IPAM, masquerade, host ports, resolv.conf and hosts. Everything by netlink from this
//! process.
//!
//! Knows nothing of the API server: the agent hands in pod CIDRs.

mod bandwidth;
mod conntrack;
mod dial;
mod expressions;
mod firewall;
mod forwarding;
mod guard;
mod host_ports;
mod ipam;
mod link;
mod listeners;
mod mtu;
mod netfilter;
mod nft;
mod notices;
mod overlap;
mod probe;
mod resolv;
mod resolv_file;
mod settle;
mod table;
#[cfg(test)]
mod tests;
mod types;
mod wire;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use tokio::sync::watch;

pub use dial::dial;
pub use firewall::obstacles;
use ipam::Leases;
pub use listeners::who_listens;
pub use mtu::{LEAST as LEAST_MTU, MOST as MOST_MTU};
pub use notices::listen;
pub use probe::{Attempt, probe};
pub use resolv::{ResolvConf, Resolver, host_hosts_file, hosts_file};
pub use resolv_file::{host_resolv_conf, resolv_conf_limits, watch as watch_resolv_conf};
pub use settle::Settled;
pub use types::*;

/// The ranges of addresses there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ranges {
    /// Pods get addresses from these.
    given: Vec<IpNet>,
    /// Pods have addresses of these, of before.
    left: Vec<IpNet>,
}

struct Inner {
    config: NetworkConfig,
    handle: rtnetlink::Handle,
    leases: Mutex<Leases>,
    ranges: Mutex<Ranges>,
    /// MTU of pods' links.
    mtu: Mutex<u32>,
    /// The links there are, by their sandboxes.
    joined: Mutex<BTreeMap<String, mtu::Joined>>,
    /// Held while the rules change.
    rules: tokio::sync::Mutex<host_ports::Installed>,
    /// Held while a link gets its guard, from the look for its shaper on: who looked before there was one does not come last.
    guards: tokio::sync::Mutex<()>,
    /// Links, addresses, routes or forwarding have changed.
    links: watch::Sender<u64>,
    /// Rules have changed.
    filters: watch::Sender<u64>,
}

/// The pod network of this node; cheap to clone.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Name of a sandbox's link on this machine: 15 bytes. By `veth` others know what is no network of theirs (dhcpcd's
/// `denyinterfaces veth*`).
fn outside(sandbox: &str) -> String {
    format!("veth{}", &sandbox[..sandbox.len().min(11)])
}

/// What agents up to 0.1 called it.
fn outside_before(sandbox: &str) -> String {
    format!("pk{}", &sandbox[..sandbox.len().min(11)])
}

impl Network {
    /// Loads the address leases, and begins to listen to the kernel. Nothing is created before [`Network::settle`].
    pub async fn open(config: NetworkConfig) -> Result<Self, NetworkError> {
        let leases = Mutex::new(Leases::open(&config.state_dir)?);
        let (links, filters) = (watch::Sender::new(0), watch::Sender::new(0));
        if let Err(error) = notices::listen(links.clone(), filters.clone()) {
            tracing::warn!(%error, "changes of this machine's network are not noticed");
        }
        let (ranges, rules, guards) = (Mutex::default(), tokio::sync::Mutex::default(), tokio::sync::Mutex::default());
        let (mtu, joined) = (Mutex::new(mtu::DEFAULT), Mutex::default());
        let inner =
            Inner { handle: link::connect()?, config, leases, ranges, mtu, joined, rules, guards, links, filters };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Counts changes of this machine's links, addresses, routes and forwarding.
    pub fn links_changed(&self) -> watch::Receiver<u64> {
        self.inner.links.subscribe()
    }

    /// Counts changes of this machine's nftables.
    pub fn rules_changed(&self) -> watch::Receiver<u64> {
        self.inner.filters.subscribe()
    }

    /// True once pods can be attached.
    pub fn ready(&self) -> bool {
        !locked(&self.inner.ranges).given.is_empty()
    }

    /// Gives a sandbox's network namespace `lo`, `eth0`, its addresses and routes, holds its link to `bandwidth`, and lets
    /// `ports` of this machine lead there. Repeatable (the same addresses and ports again).
    pub async fn attach(
        &self,
        sandbox: &str,
        netns: &Path,
        ports: &[HostPort],
        bandwidth: Bandwidth,
    ) -> Result<PodAddresses, NetworkError> {
        let ranges = locked(&self.inner.ranges).given.clone();
        if ranges.is_empty() {
            return Err(NetworkError::NotReady);
        }
        let told = self.check_ports(ports).await?;
        let ips = locked(&self.inner.leases).take(sandbox, &ranges, ports)?;
        let addresses = ips
            .iter()
            .filter_map(|ip| ranges.iter().find(|r| r.contains(ip)).map(|r| (*ip, r.prefix_len(), ipam::gateway(r))))
            .collect();
        let (inner, mtu) = (&self.inner, self.mtu());
        link::attach(&inner.handle, (&inner.config.bridge, mtu), &outside(sandbox), netns, addresses).await?;
        let joined = mtu::Joined { netns: netns.to_owned(), mtu: Some(mtu) };
        locked(&inner.joined).insert(sandbox.to_owned(), joined);
        // it may have changed meanwhile
        self.level(sandbox).await;
        let through = self.limit(sandbox, bandwidth, mtu).await?;
        self.guard(sandbox, through).await?;
        self.open_ports(sandbox, ports).await?;
        Ok(PodAddresses { ips, told })
    }

    /// Addresses held by a sandbox.
    pub fn addresses(&self, sandbox: &str) -> Option<PodAddresses> {
        locked(&self.inner.leases).of(sandbox).map(|ips| PodAddresses { ips: ips.clone(), told: Vec::new() })
    }

    /// Takes back ports, link and addresses. Repeatable.
    pub async fn detach(&self, sandbox: &str) -> Result<(), NetworkError> {
        let closed = self.close_ports(sandbox).await;
        locked(&self.inner.joined).remove(sandbox);
        for name in [outside(sandbox), outside_before(sandbox), bandwidth::shaper(sandbox)] {
            link::remove(&self.inner.handle, &name).await?;
        }
        self.unguard(sandbox).await;
        // no other pod gets the addresses while ports lead there
        closed?;
        locked(&self.inner.leases).free(sandbox)?;
        let left = locked(&self.inner.ranges).left.clone();
        if left.iter().any(|range| !locked(&self.inner.leases).any_in(range)) {
            self.inner.links.send_modify(|n| *n += 1);
        }
        Ok(())
    }

    /// Whether a sandbox has addresses.
    pub fn holds(&self, sandbox: &str) -> bool {
        locked(&self.inner.leases).of(sandbox).is_some()
    }

    /// Frees links and addresses of every sandbox not in `live`. One that cannot be freed keeps its addresses, and is said.
    pub async fn retain(&self, live: &[String]) {
        let held = locked(&self.inner.leases).holders();
        for sandbox in held.iter().filter(|s| !live.contains(s)) {
            if let Err(error) = self.detach(sandbox).await {
                tracing::warn!(sandbox, %error, "link and addresses of a sandbox that is no more are not freed");
            }
        }
    }

    /// Removes the bridge, the nftables table and the way past the firewall (after `drain-local`).
    pub async fn remove_all(&self) -> Result<(), NetworkError> {
        let table = &self.inner.config.bridge;
        let failed = |what: String| move |source| NetworkError::Io { what, source };
        let closed =
            firewall::close(table).map_err(failed(format!("removing the rules for {table} from the firewall")));
        let removed = nft::remove(table).map_err(failed(format!("removing nftables table {table}")));
        link::remove(&self.inner.handle, &self.inner.config.bridge).await?;
        removed.and(closed)
    }
}
