//! Whether a range of pods is one this machine needs itself: its own networks must stay in reach, whatever a cluster says.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};

/// An address or a route of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Index of the link.
    pub link: u32,
    /// The network it means.
    pub net: IpNet,
    /// The way leads there by a router, at this address.
    pub by: Option<IpAddr>,
    /// What it is.
    pub kind: Kind,
}

/// Where something comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An address of the link itself.
    Address,
    /// A route of the main table.
    Route,
}

impl Taken {
    /// Reads an address; those of a link only are nobody's network.
    pub fn of_address(message: &AddressMessage) -> Option<Self> {
        let find = |local: bool| {
            message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(ip) if local => Some(*ip),
                AddressAttribute::Address(ip) if !local => Some(*ip),
                _ => None,
            })
        };
        let ip = find(true).or_else(|| find(false))?;
        let net = IpNet::new(ip, message.header.prefix_len).ok()?;
        let usable = !is_link_local(ip) && !ip.is_loopback();
        usable.then_some(Self { link: message.header.index, net, by: None, kind: Kind::Address })
    }

    /// Reads a route to other machines; the default routes lead everywhere, and so to no network of their own.
    pub fn of_route(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
            return None;
        }
        let address = |a: &RouteAddress| match a {
            RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
            RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
            _ => None,
        };
        let (mut to, mut by, mut link) = (None, None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(a) => to = address(a),
                RouteAttribute::Gateway(a) => by = address(a),
                RouteAttribute::Oif(index) => link = Some(*index),
                _ => {}
            }
        }
        let to = to.filter(|ip| !is_link_local(*ip) && !ip.is_multicast())?;
        let net = IpNet::new(to, header.destination_prefix_length).ok().filter(|n| n.prefix_len() > 0)?;
        Some(Self { link: link?, net, by, kind: Kind::Route })
    }

    fn conflicts(&self, range: &IpNet) -> bool {
        let inside = range.contains(&self.net.addr());
        // networks between nodes (flannel) call their own end like the range itself
        if self.net.prefix_len() == self.net.max_prefix_len() && self.net.addr() == range.network() {
            return false;
        }
        match (self.kind, self.by) {
            // a network that the machine is in itself
            (Kind::Address, _) => inside || self.net.contains(range),
            // a wider one may well lead to pods of all nodes; the machine's way there must not be in the range
            (Kind::Route, router) => range.contains(&self.net) || router.is_some_and(|ip| range.contains(&ip)),
        }
    }
}

/// `169.254.0.0/16` and `fe80::/10`.
pub fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// What of other links than `bridge` is in the way of `range`.
pub fn conflict<'a>(range: &IpNet, bridge: u32, taken: &'a [Taken]) -> Option<&'a Taken> {
    taken.iter().find(|t| t.link != bridge && t.conflicts(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(kind: Kind, net: &str, by: Option<&str>) -> Taken {
        Taken { link: 2, net: net.parse().unwrap(), by: by.map(|b| b.parse().unwrap()), kind }
    }

    #[test]
    fn networks_of_the_machine_are_not_for_pods() {
        let range: IpNet = "10.42.1.0/24".parse().unwrap();
        for (what, refused) in [
            (taken(Kind::Address, "10.42.1.7/24", None), true),
            (taken(Kind::Address, "10.42.3.4/16", None), true),
            (taken(Kind::Address, "10.42.1.200/32", None), true),
            (taken(Kind::Address, "192.168.1.7/24", None), false),
            (taken(Kind::Address, "10.42.1.0/32", None), false),
            (taken(Kind::Address, "fd00::1/8", None), false),
            (taken(Kind::Route, "10.42.1.128/25", Some("192.168.1.1")), true),
            (taken(Kind::Route, "10.0.0.0/8", Some("192.168.1.1")), false),
            (taken(Kind::Route, "10.0.0.0/8", None), false),
            (taken(Kind::Route, "172.20.0.0/16", Some("10.42.1.9")), true),
            (taken(Kind::Route, "10.42.2.0/24", Some("192.168.1.9")), false),
        ] {
            assert_eq!(conflict(&range, 1, std::slice::from_ref(&what)).is_some(), refused, "{what:?}");
            assert!(conflict(&range, 2, &[what]).is_none(), "of the bridge itself");
        }
        let v6: IpNet = "fd00:1::/64".parse().unwrap();
        assert!(conflict(&v6, 1, &[taken(Kind::Address, "fd00:1::5/64", None)]).is_some());
    }
}
