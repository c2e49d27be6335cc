//! The pod network as it is to be, compared with what the machine has, and made so: at the start, when the ranges change, and
//! whenever somebody else changed something of it.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::address::AddressMessage;
use tokio::task::spawn_blocking;

use super::overlap::{self, Kind, Taken};
use super::types::NetworkError;
use super::{Network, Ranges, firewall, forwarding, ipam, link, locked, outside, outside_before};

/// How the pod network is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    /// Ranges that cannot be used, and why: to be tried again.
    pub refused: Vec<String>,
    /// What pods miss all the same.
    pub problems: Vec<String>,
}

fn family(range: &IpNet) -> &'static str {
    if range.addr().is_ipv4() { "IPv4" } else { "IPv6" }
}

/// What the machine has.
struct Machine {
    addresses: Vec<AddressMessage>,
    taken: Vec<Taken>,
}

impl Network {
    async fn machine(&self) -> Result<Machine, NetworkError> {
        let handle = &self.inner.handle;
        let addresses = link::address_messages(handle).await?;
        let mut taken: Vec<Taken> = addresses.iter().filter_map(Taken::of_address).collect();
        for family in [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()] {
            taken.extend(link::routes(handle, family).await?.iter().filter_map(Taken::of_route));
        }
        Ok(Machine { addresses, taken })
    }

    /// In words what of the machine is in the way of a range.
    async fn in_the_way(&self, range: &IpNet, other: &Taken) -> String {
        let name = link::name(&self.inner.handle, other.link).await.unwrap_or_else(|| format!("link {}", other.link));
        let (net, by) = (other.net, other.by.map(|ip| format!(" by {ip}")).unwrap_or_default());
        let what = match other.kind {
            Kind::Address => format!("address {net} of {name}"),
            Kind::Route => format!("route to {net}{by} of {name}"),
        };
        format!(
            "pod CIDR {range} overlaps a network of this node ({what}): it would cut the node off. Give the cluster other \
             pod CIDRs, or remove that address or route"
        )
    }

    /// Pods that run lost the bridge with whoever removed it.
    async fn join_again(&self, bridge: u32) {
        let holders = locked(&self.inner.leases).holders();
        for sandbox in &holders {
            let first = self.addresses(sandbox).and_then(|pod| pod.ips.first().copied());
            for name in [outside(sandbox), outside_before(sandbox)] {
                if let Err(error) = link::join(&self.inner.handle, bridge, &name, first).await {
                    tracing::warn!(%error, "a pod has no network");
                }
            }
        }
    }

    async fn settle_range(&self, bridge: u32, range: &IpNet, machine: &Machine) -> Result<(), String> {
        let gateway = ipam::gateway(range).ok_or_else(|| format!("pod CIDR {range} has no address for the node"))?;
        let mut own = machine.taken.iter().filter(|t| t.link == bridge && t.kind == Kind::Address);
        let present = own.any(|t| t.net.addr() == gateway);
        if let Some(other) = overlap::conflict(range, bridge, &machine.taken) {
            return Err(self.in_the_way(range, other).await);
        }
        if present {
            return Ok(());
        }
        let added =
            link::add_address(&self.inner.handle, bridge, &self.inner.config.bridge, gateway, range.prefix_len());
        added.await.map_err(|e| format!("{}: {e}", family(range)))
    }

    /// Takes addresses off the bridge that are in nobody's way to go: of ranges refused, and of those of before without a pod.
    async fn clear(&self, bridge: u32, given: &[IpNet], refused: &[IpNet], machine: &Machine) -> Vec<IpNet> {
        let mut left = Vec::new();
        for message in &machine.addresses {
            let Some(own) = Taken::of_address(message).filter(|t| t.link == bridge) else { continue };
            let range = own.net.trunc();
            if given.contains(&range) {
                continue;
            }
            if !refused.contains(&range) && locked(&self.inner.leases).any_in(&range) {
                left.push(range);
            } else if let Err(error) = link::remove_address(&self.inner.handle, message.clone()).await {
                tracing::warn!(%range, %error, "the bridge keeps an address of before");
            }
        }
        left
    }

    /// Makes the bridge, its addresses, forwarding and rules what these ranges need, as far as that is not so already. A range
    /// that cannot be used does not keep others from it; the error is that there is none.
    pub async fn settle(&self, cidrs: &[IpNet]) -> Result<Settled, NetworkError> {
        let settled = self.settle_ranges(cidrs).await;
        if settled.is_err() {
            locked(&self.inner.ranges).given.clear();
        }
        settled
    }

    async fn settle_ranges(&self, cidrs: &[IpNet]) -> Result<Settled, NetworkError> {
        let (handle, name) = (&self.inner.handle, &self.inner.config.bridge);
        let (bridge, made) = link::bridge(handle, name).await?;
        if made {
            self.join_again(bridge).await;
        }
        let machine = self.machine().await?;
        let (mut given, mut unusable, mut settled) = (Vec::new(), Vec::new(), Settled::default());
        for range in cidrs.iter().map(IpNet::trunc) {
            match self.settle_range(bridge, &range, &machine).await {
                Ok(()) => given.push(range),
                Err(why) => {
                    unusable.push(range);
                    settled.refused.push(why);
                }
            }
        }
        let left = self.clear(bridge, &given, &unusable, &machine).await;
        if given.is_empty() {
            return Err(NetworkError::Ranges(settled.refused));
        }
        let has = |v4: bool| given.iter().any(|r| r.addr().is_ipv4() == v4);
        settled.problems.extend(self.settle_mtu(bridge, &given, &machine.taken).await);
        settled.problems.extend(forwarding::turn_on_for(handle, has(true), has(false)).await);
        *locked(&self.inner.ranges) = Ranges { given, left };
        settled.problems.extend(self.mend_rules().await);
        settled.problems.extend(self.mend_guards().await);
        let bridge = name.clone();
        match spawn_blocking(move || firewall::open(&bridge)).await {
            Ok(problems) => settled.problems.extend(problems),
            Err(error) => tracing::warn!(%error, "firewall not looked at"),
        }
        Ok(settled)
    }
}
