//! The MTU of pods' links and of their bridge: what this machine's way out takes, and its ways to pods of other nodes. Pods that
//! had more would have to be told so for each connection, and what tells them is lost in many networks.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::IpNet;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMetric, RouteType};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::link::{self, INSIDE};
use super::overlap::{Kind, Taken};
use super::types::NetworkError;
use super::{Network, locked, outside};

/// Places elsewhere (RFC 5737, RFC 3849): the way there is the way out.
const ELSEWHERE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ELSEWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// Ethernet's: while nothing says otherwise.
pub const DEFAULT: u32 = 1500;
/// What every network takes that has IPv4 (RFC 791), and IPv6 (RFC 8200): with less the kernel has no IPv6 at a link.
pub const LEAST: u32 = 576;
const LEAST_V6: u32 = 1280;
/// The kernel's bound for bridges and pairs of links.
pub const MOST: u32 = 65535;

/// A sandbox's link.
#[derive(Debug, Clone)]
pub(super) struct Joined {
    /// The pod's network namespace.
    pub netns: PathBuf,
    /// What both ends have; `None`: of an agent before.
    pub mtu: Option<u32>,
}

fn of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|a| if let LinkAttribute::Mtu(mtu) = a { Some(*mtu) } else { None })
}

/// What a link takes of a family; loopback is no way to anywhere.
async fn of_way(handle: &Handle, index: u32, v4: bool) -> Option<u32> {
    let asked = async { Ok(link::by_index(handle, index).await) };
    let link = link::in_turn("reading the MTU of a link of this machine", asked).await.ok().flatten();
    let link = link.filter(|l| !l.header.flags.contains(LinkFlags::Loopback))?;
    let all = of(&link)?;
    // routers may advertise less (RFC 4861, 4.6.4)
    let advertised = (!v4).then(|| link::name_of(&link)).flatten();
    let advertised = advertised.and_then(|name| fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}/mtu")).ok());
    Some(advertised.and_then(|text| text.trim().parse().ok()).map_or(all, |less: u32| less.min(all)))
}

/// The link packets to elsewhere leave by, and the MTU of the route if it has one of its own.
async fn way_out(handle: &Handle, v4: bool) -> Option<(u32, Option<u32>)> {
    let asked = if v4 {
        RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ELSEWHERE_V4, 32).build()
    } else {
        RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ELSEWHERE_V6, 128).build()
    };
    // the kernel's error is that there is none
    let route = link::routes(handle, asked).await.ok()?.into_iter().find(|r| r.header.kind == RouteType::Unicast)?;
    let (mut index, mut own) = (None, None);
    for attribute in route.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(oif),
            RouteAttribute::Metrics(metrics) => {
                own = metrics.iter().find_map(|m| if let RouteMetric::Mtu(mtu) = m { Some(*mtu) } else { None });
            }
            _ => {}
        }
    }
    Some((index?, own))
}

/// Sets a link's MTU unless it is that; true when it was another one.
async fn set(handle: &Handle, link: &LinkMessage, mtu: u32) -> Result<bool, NetworkError> {
    if of(link) == Some(mtu) {
        return Ok(false);
    }
    let wanted = LinkUnspec::new_with_index(link.header.index).mtu(mtu).build();
    let name = link::name_of(link).unwrap_or_default();
    let failed = link::kernel(format!("setting the MTU of {name} to {mtu}"));
    handle.link().set(wanted).execute().await.map(|()| true).map_err(failed)
}

/// Sets the MTU of a pod's link, the end outside last: by it is seen that it was done.
async fn set_pair(handle: &Handle, name: &str, netns: PathBuf, mtu: u32) -> Result<(), NetworkError> {
    link::in_turn(&format!("setting the MTU of link {name}"), async {
        let Some(own) = link::by_name(handle, name).await.filter(|link| of(link) != Some(mtu)) else { return Ok(()) };
        let index = own.header.index;
        let inside = move |there: Handle| async move {
            let found = link::by_name(&there, INSIDE).await;
            // a process of another name has the place of one that has ended
            let peer = |link: &LinkMessage| link.attributes.contains(&LinkAttribute::Link(index));
            match found.filter(peer) {
                Some(found) => set(&there, &found, mtu).await.map(drop),
                None => Ok(()),
            }
        };
        link::within(link::open(&netns)?, inside).await?;
        set(handle, &own, mtu).await.map(drop)
    })
    .await
}

impl Network {
    /// What links of pods have.
    pub(super) fn mtu(&self) -> u32 {
        *locked(&self.inner.mtu)
    }

    /// The least of this machine's ways, for pods of these ranges: what it was when there is no way now.
    async fn least(&self, bridge: u32, given: &[IpNet], taken: &[Taken]) -> u32 {
        let handle = &self.inner.handle;
        let has = |v4: bool| given.iter().any(|r| r.addr().is_ipv4() == v4);
        let mut least = self.inner.config.mtu;
        if least.is_none() {
            let (mut links, mut found) = (BTreeSet::new(), Vec::new());
            for v4 in [true, false].into_iter().filter(|v4| has(*v4)) {
                let Some((link, own)) = way_out(handle, v4).await else { continue };
                links.insert((link, v4));
                found.extend(own);
            }
            // networks between nodes have less than what they are made over
            let others = taken.iter().filter(|t| t.kind == Kind::Route && t.link != bridge);
            let others = others.filter(|t| self.inner.config.cluster_cidrs.iter().any(|all| all.contains(&t.net)));
            links.extend(others.map(|t| (t.link, t.net.addr().is_ipv4())));
            for (link, v4) in links {
                found.extend(of_way(handle, link, v4).await);
            }
            least = found.into_iter().min();
        }
        let floor = if has(false) { LEAST_V6 } else { LEAST };
        least.unwrap_or_else(|| self.mtu()).clamp(floor, MOST)
    }

    /// Makes the MTU of the bridge and of all pods what the machine's ways take. What is wrong is in the answer.
    pub(super) async fn settle_mtu(&self, bridge: u32, given: &[IpNet], taken: &[Taken]) -> Option<String> {
        let mtu = self.least(bridge, given, taken).await;
        let before = std::mem::replace(&mut *locked(&self.inner.mtu), mtu);
        if before != mtu {
            tracing::info!(mtu, before, "MTU of pods' links");
        }
        let set_bridge = async {
            match link::by_index(&self.inner.handle, bridge).await {
                Some(link) => set(&self.inner.handle, &link, mtu).await.map(drop),
                None => Ok(()),
            }
        };
        let failed = link::in_turn("setting the MTU of the bridge", set_bridge).await.err().map(|e| e.to_string());
        let sandboxes: Vec<String> = locked(&self.inner.joined).keys().cloned().collect();
        for sandbox in sandboxes {
            self.level(&sandbox).await;
        }
        failed
    }

    /// Makes the MTU of a sandbox's link that of the others, if it is not.
    pub(super) async fn level(&self, sandbox: &str) {
        let Some(joined) = locked(&self.inner.joined).get(sandbox).cloned() else { return };
        let mtu = self.mtu();
        if joined.mtu == Some(mtu) {
            return;
        }
        match set_pair(&self.inner.handle, &outside(sandbox), joined.netns, mtu).await {
            Ok(()) => {
                if let Some(joined) = locked(&self.inner.joined).get_mut(sandbox) {
                    joined.mtu = Some(mtu);
                }
            }
            Err(error) => tracing::warn!(sandbox, %error, "a pod's link keeps the MTU it has"),
        }
    }

    /// Tells where the network namespace is of a sandbox that was attached before this agent.
    pub fn recall(&self, sandbox: &str, netns: PathBuf) {
        locked(&self.inner.joined).insert(sandbox.to_owned(), Joined { netns, mtu: None });
        self.inner.links.send_modify(|n| *n += 1);
    }
}
