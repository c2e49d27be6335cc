//! The node's table of rules: what pods send out is masqueraded, and ports of the host lead to pods (`hostPort`).
//!
//! One table of each family, in the name of the bridge, with chains of its own: those of others (kube-proxy, k3s) are neither
//! read nor written, but for the way past a firewall (`firewall`). Services come first where one has the same port: their chains have the usual priority of
//! translation, ours the next one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::InetHookNumber;

use super::expressions::{Action, Match};
use super::nft::{self, Base, Chain, Rule};
use super::types::HostPort;

/// `NF_IP_PRI_NAT_SRC`: source translation comes last.
const PRIORITY_SOURCE: i32 = 100;
/// One after `NF_IP_PRI_NAT_DST`.
const PRIORITY_DESTINATION: i32 = -99;
/// `NF_IP_PRI_RAW`: addresses are still those on the wire.
const PRIORITY_RAW: i32 = -300;

/// Where systemd-resolved answers the machine's own programs (systemd-resolved.service(8)). A pod that serves names at port 53
/// of all addresses does not get these: its image could not be pulled before it runs.
pub const STUBS: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(127, 0, 0, 54)];

/// Connections that are masqueraded when they leave.
const OUT: &str = "postrouting";
/// Connections that come in, and those of the node itself.
const IN: &str = "prerouting";
const OWN: &str = "output";
/// Which port leads where.
const PORTS: &str = "hostports";
/// Connections by such a port whose answers would find another way back.
const RETURNING: &str = "returning";
/// What no pod may send.
const GUARD: &str = "guard";

fn base(name: &'static str, kind: &'static str, hook: InetHookNumber, priority: i32) -> Chain<'static> {
    Chain { name, base: Some(Base { kind, hook, priority }) }
}

fn multicast() -> [IpNet; 2] {
    [
        IpNet::new_assert(IpAddr::from([224, 0, 0, 0]), 4),
        IpNet::new_assert(IpAddr::from([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8),
    ]
}

fn loopback_v4() -> IpNet {
    IpNet::new_assert(Ipv4Addr::new(127, 0, 0, 0).into(), 8)
}

/// What the table is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Its name, and that of the bridge.
    pub name: String,
    /// Ranges of this node's pods.
    pub ranges: Vec<IpNet>,
    /// Ranges that are not masqueraded either.
    pub inside: Vec<IpNet>,
    /// Ports of the host, with the address of the pod each leads to.
    pub ports: Vec<(IpAddr, HostPort)>,
}

impl Table {
    /// The ports of one family.
    fn ports(&self, v4: bool) -> impl Iterator<Item = &(IpAddr, HostPort)> {
        self.ports.iter().filter(move |(pod, port)| pod.is_ipv4() == v4 && port.ip.is_none_or(|ip| ip.is_ipv4() == v4))
    }

    /// True when programs of the node reach pods by `127.0.0.1`.
    pub fn leads_from_loopback(&self) -> bool {
        self.has_ports(true)
    }

    fn chains(&self, v4: bool) -> Vec<Chain<'static>> {
        let mut chains = vec![base(OUT, "nat", InetHookNumber::PostRouting, PRIORITY_SOURCE)];
        if self.ports(v4).next().is_none() {
            return chains;
        }
        chains.extend([PORTS, RETURNING].map(|name| Chain { name, base: None }));
        chains.push(base(IN, "nat", InetHookNumber::PreRouting, PRIORITY_DESTINATION));
        chains.push(base(OWN, "nat", InetHookNumber::LocalOut, PRIORITY_DESTINATION));
        if v4 {
            chains.push(base(GUARD, "filter", InetHookNumber::PreRouting, PRIORITY_RAW));
        }
        chains
    }

    fn rules(&self, v4: bool) -> Vec<Rule> {
        let rule = |chain, matches: Vec<Match>, action| Rule { chain, matches, action };
        let mut rules = Vec::new();
        let served = self.ports(v4).next().is_some();
        let ranges = || self.ranges.iter().filter(|r| r.addr().is_ipv4() == v4);
        if served {
            rules.push(rule(IN, vec![Match::Local], Action::Jump(PORTS)));
            if !v4 {
                // no packet from ::1 may leave for a pod: whoever tries is better refused
                rules.push(rule(
                    OWN,
                    vec![Match::Destination(IpAddr::from(Ipv6Addr::LOCALHOST).into())],
                    Action::Return,
                ));
            }
            let asked = |stub: IpAddr| self.ports.iter().any(|(_, port)| port.ip == Some(stub));
            for stub in STUBS.map(IpAddr::from).into_iter().filter(|stub| v4 && !asked(*stub)) {
                rules.push(rule(OWN, vec![Match::Destination(stub.into())], Action::Return));
            }
            rules.push(rule(OWN, vec![Match::Local], Action::Jump(PORTS)));
        }
        for (pod, port) in self.ports(v4) {
            let at = port.ip.filter(|ip| !ip.is_unspecified()).map(|ip| Match::Destination(ip.into()));
            let to = [Match::Protocol(port.protocol), Match::Port(port.port)];
            rules.push(rule(PORTS, at.into_iter().chain(to).collect(), Action::Lead(*pod, port.container_port)));
            let by_port = vec![
                Match::Destination((*pod).into()),
                Match::Protocol(port.protocol),
                Match::Port(port.container_port),
                Match::OriginalPort(port.port),
            ];
            rules.push(rule(RETURNING, by_port, Action::Masquerade));
        }
        if served && v4 {
            // the bridge lets them through for the sake of programs of the node (`link::loopback`)
            for martian in [Match::Source(loopback_v4()), Match::Destination(loopback_v4())] {
                rules.push(rule(GUARD, vec![Match::Link(self.name.clone()), martian], Action::Drop));
            }
            rules.push(rule(OUT, vec![Match::Source(loopback_v4()), Match::Translated], Action::Jump(RETURNING)));
        }
        for range in ranges() {
            if served {
                // a pod would answer another one, or itself, past this machine
                rules.push(rule(OUT, vec![Match::Source(*range), Match::Translated], Action::Jump(RETURNING)));
            }
            let others = self.ranges.iter().chain(&self.inside).copied().chain(multicast());
            for other in others.filter(|r| r.addr().is_ipv4() == v4) {
                rules.push(rule(OUT, vec![Match::Source(*range), Match::Destination(other)], Action::Return));
            }
            rules.push(rule(OUT, vec![Match::Source(*range)], Action::Masquerade));
        }
        rules
    }

    fn has(&self, v4: bool) -> bool {
        self.ranges.iter().any(|r| r.addr().is_ipv4() == v4)
    }

    /// Puts one family's rules in the place of those there are.
    pub fn install(&self, v4: bool) -> io::Result<()> {
        if !self.has(v4) {
            return Ok(());
        }
        nft::replace(family(v4), &self.name, &self.chains(v4), &self.rules(v4))
    }

    /// False when somebody took something of one family's rules away, or put something between them.
    pub fn stands(&self, v4: bool) -> io::Result<bool> {
        if !self.has(v4) {
            return Ok(true);
        }
        Ok(nft::size(family(v4), &self.name)? == (self.chains(v4).len(), self.rules(v4).len()))
    }

    /// Without ports of that family.
    pub fn without_ports(&self, v4: bool) -> Self {
        let ports = self.ports.iter().filter(|(pod, _)| pod.is_ipv4() != v4).copied().collect();
        Self { ports, ..self.clone() }
    }

    /// True when there are ports of that family.
    pub fn has_ports(&self, v4: bool) -> bool {
        self.ports(v4).next().is_some()
    }
}

fn family(v4: bool) -> NetfilterProtoFamily {
    if v4 { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::types::Protocol;

    fn table(ports: &[(&str, Option<&str>, Protocol, u16, u16)]) -> Table {
        let ports = ports.iter().map(|(pod, ip, protocol, port, container_port)| {
            let ip = ip.map(|ip| ip.parse().unwrap());
            (pod.parse().unwrap(), HostPort { ip, protocol: *protocol, port: *port, container_port: *container_port })
        });
        Table {
            name: "pikelet0".to_owned(),
            ranges: vec!["10.42.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
            inside: Vec::new(),
            ports: ports.collect(),
        }
    }

    fn of(table: &Table, v4: bool, chain: &str) -> Vec<(Vec<Match>, Action)> {
        let rules = table.rules(v4).into_iter().filter(|r| r.chain == chain);
        rules.map(|r| (r.matches, r.action)).collect()
    }

    #[test]
    fn each_port_leads_to_its_pod() {
        let table = table(&[
            ("10.42.0.2", None, Protocol::Tcp, 8080, 80),
            ("fd00::2", None, Protocol::Tcp, 8080, 80),
            ("10.42.0.2", Some("192.0.2.1"), Protocol::Udp, 53, 53),
            ("fd00::2", Some("192.0.2.1"), Protocol::Udp, 53, 53),
            ("10.42.0.3", Some("0.0.0.0"), Protocol::Sctp, 36412, 9),
            ("fd00::3", Some("0.0.0.0"), Protocol::Sctp, 36412, 9),
        ]);
        let lead = |pod: &str, port| Action::Lead(pod.parse().unwrap(), port);
        let only: IpNet = "192.0.2.1/32".parse().unwrap();
        let v4 = [
            (vec![Match::Protocol(Protocol::Tcp), Match::Port(8080)], lead("10.42.0.2", 80)),
            (vec![Match::Destination(only), Match::Protocol(Protocol::Udp), Match::Port(53)], lead("10.42.0.2", 53)),
            (vec![Match::Protocol(Protocol::Sctp), Match::Port(36412)], lead("10.42.0.3", 9)),
        ];
        assert_eq!(of(&table, true, PORTS), v4);
        let v6 = [(vec![Match::Protocol(Protocol::Tcp), Match::Port(8080)], lead("fd00::2", 80))];
        assert_eq!(of(&table, false, PORTS), v6, "an address of one family is none of the other's");
    }

    #[test]
    fn answers_come_back_the_way_the_question_went() {
        let table = table(&[("10.42.0.2", None, Protocol::Tcp, 8080, 80)]);
        let pod = Match::Destination("10.42.0.2/32".parse().unwrap());
        let by_port = vec![pod, Match::Protocol(Protocol::Tcp), Match::Port(80), Match::OriginalPort(8080)];
        assert_eq!(of(&table, true, RETURNING), [(by_port, Action::Masquerade)]);
        let back =
            |from: &str| (vec![Match::Source(from.parse().unwrap()), Match::Translated], Action::Jump(RETURNING));
        assert_eq!(of(&table, true, OUT)[..2], [back("127.0.0.0/8"), back("10.42.0.0/24")]);
    }

    #[test]
    fn loopback_is_open_only_behind_its_guard() {
        let guarded = |table: &Table| of(table, true, GUARD).len();
        let with = table(&[("10.42.0.2", None, Protocol::Tcp, 8080, 80)]);
        assert!(with.leads_from_loopback() && guarded(&with) == 2);
        assert!(with.chains(true).iter().any(|c| c.name == GUARD));
        let v6 = table(&[("fd00::2", None, Protocol::Tcp, 8080, 80)]);
        assert!(!v6.leads_from_loopback() && guarded(&v6) == 0);
        assert_eq!(of(&v6, false, OWN)[0].1, Action::Return, "::1 is left alone");
    }

    #[test]
    fn the_stubs_of_resolved_lead_to_pods_that_name_them() {
        let left_alone = |ip: Option<&str>| {
            let rules = of(&table(&[("10.42.0.2", ip, Protocol::Udp, 53, 53)]), true, OWN);
            rules.iter().filter(|r| r.1 == Action::Return).count()
        };
        assert_eq!([None, Some("0.0.0.0"), Some("127.0.0.53")].map(left_alone), [2, 2, 1]);
    }

    #[test]
    fn without_ports_nothing_comes_in() {
        let table = table(&[]);
        for v4 in [true, false] {
            assert_eq!(table.chains(v4).iter().map(|c| c.name).collect::<Vec<_>>(), [OUT]);
            assert!(table.rules(v4).iter().all(|r| r.chain == OUT));
        }
        assert_eq!(of(&table, true, OUT).last().unwrap().1, Action::Masquerade);
    }
}
