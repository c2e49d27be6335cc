//! What others do to the network of a machine, and what becomes of it.

use std::process::Command;

use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkVeth, RouteMessageBuilder};

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};

use super::*;
use crate::network::expressions::{Action, Match};

const V6_FORWARDING: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
/// How long a notice may take.
const NOTICE: Duration = Duration::from_secs(10);

fn ranges(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

impl Machine {
    pub(super) fn settle(&self, texts: &[&str]) -> Result<Settled, NetworkError> {
        self.runtime.block_on(self.network.settle(&ranges(texts)))
    }

    fn setting(&self, name: &str) -> String {
        self.place.within(|| fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap().trim().to_owned())
    }

    fn set(&self, name: &str, value: &str) {
        self.place.within(|| fs::write(format!("/proc/sys/net/{name}"), value).unwrap());
    }

    /// Another machine at a link `lan0` of this one.
    fn neighbour(&self, own: &str, its: &str) -> Place {
        let place = Place::new();
        let (own, its): (IpNet, IpNet) = (own.parse().unwrap(), its.parse().unwrap());
        let handle = &self.network.inner.handle;
        self.runtime.block_on(async {
            let peer = LinkMessageBuilder::<LinkUnspec>::new().name("lan0").setns_by_fd(place.0.as_raw_fd()).build();
            let pair = LinkVeth::new("lan0", "lan0").set_info_data(rtnetlink::packet_route::link::InfoData::Veth(
                rtnetlink::packet_route::link::InfoVeth::Peer(peer),
            ));
            handle.link().add(pair.up().build()).execute().await.unwrap();
            let index = link::index(handle, "lan0").await.unwrap();
            handle.address().add(index, own.addr(), own.prefix_len()).execute().await.unwrap();
        });
        place.within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let handle = link::connect().unwrap();
                let index = link::index(&handle, "lan0").await.unwrap();
                handle.address().add(index, its.addr(), its.prefix_len()).execute().await.unwrap();
                handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await.unwrap();
            });
        });
        place
    }

    fn has(&self, ip: &str) -> bool {
        let own = self.runtime.block_on(link::addresses(&self.network.inner.handle)).unwrap();
        own.contains(&ip.parse().unwrap())
    }

    /// Waits for a notice that comes with what `doing` does.
    pub(super) fn noticed(&self, mut changes: watch::Receiver<u64>, doing: impl FnOnce()) {
        changes.mark_unchanged();
        doing();
        let told = self.runtime.block_on(async { tokio::time::timeout(NOTICE, changes.changed()).await });
        told.expect("nothing was told").unwrap();
    }
}

#[test]
fn ipv6_is_forwarded_for_ipv6_pods_only_and_routers_stay() {
    on_a_machine_with("forward", &["10.9.0.0/24"], |machine| {
        assert_eq!(machine.setting("ipv4/ip_forward"), "1");
        assert_eq!(machine.place.within(|| fs::read_to_string(V6_FORWARDING).unwrap()), "0\n");
        let _router = machine.neighbour("fd77::1/64", "fd77::2/64");
        machine.runtime.block_on(async {
            let handle = &machine.network.inner.handle;
            let index = link::index(handle, "lan0").await.unwrap();
            let learned = RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .gateway("fd77::2".parse().unwrap())
                .output_interface(index)
                .protocol(RouteProtocol::Ra);
            handle.route().add(learned.build()).execute().await.unwrap();
            handle.link().add(LinkBridge::new("other0").build()).execute().await.unwrap();
        });
        machine.settle(&["10.9.0.0/24", "fd09::/64"]).unwrap();
        assert_eq!(machine.setting("ipv6/conf/all/forwarding"), "1");
        assert_eq!(machine.setting("ipv6/conf/lan0/accept_ra"), "2");
        assert_eq!(machine.setting("ipv6/conf/other0/accept_ra"), "1", "it has no route of a router");
    });
}

#[test]
fn pods_hear_no_router_but_this_machine() {
    on_a_machine_with("routers", &["10.9.0.0/24"], |machine| {
        assert_eq!(machine.setting("ipv6/conf/test0/accept_ra"), "0");
        let (pod, _) = machine.pod("one", &[]);
        let of = |place: &Place, what: &str| {
            place.within(|| fs::read_to_string(format!("/proc/sys/net/ipv6/conf/eth0/{what}")).unwrap())
        };
        assert_eq!((of(&pod, "accept_ra"), of(&pod, "disable_ipv6")), ("0\n".to_owned(), "1\n".to_owned()));
        pod.within(|| TcpListener::bind("[::1]:0").unwrap());
        machine.settle(&["10.9.0.0/24", "fd09::/64"]).unwrap();
        let (pod, _) = machine.pod("two", &[]);
        assert_eq!((of(&pod, "accept_ra"), of(&pod, "disable_ipv6")), ("0\n".to_owned(), "0\n".to_owned()));
    });
}

#[test]
fn a_range_the_machine_needs_itself_is_refused() {
    on_a_machine_with("overlap", &[], |machine| {
        let neighbour = machine.neighbour("10.9.0.77/24", "10.9.0.78/24");
        neighbour.serve(80, 53, "lan");
        let refused = machine.settle(&["10.9.0.0/24"]).unwrap_err().to_string();
        assert!(refused.contains("10.9.0.0/24") && refused.contains("10.9.0.77/24 of lan0"), "{refused}");
        assert!(!machine.network.ready());
        assert!(machine.place.seen_at("10.9.0.78:80").is_ok());
        // the other family is not in the way
        let half = machine.settle(&["10.9.0.0/24", "fd09::/64"]).unwrap();
        assert!(half.refused.len() == 1 && machine.network.ready() && machine.has("fd09::1"), "{half:?}");
        assert!(!machine.has("10.9.0.1"));
        // a network that is there later takes its addresses back
        machine.settle(&["10.8.0.0/24"]).unwrap();
        assert!(machine.has("10.8.0.1") && !machine.has("fd09::1"));
        machine.noticed(machine.network.links_changed(), || {
            machine.runtime.block_on(async {
                let handle = &machine.network.inner.handle;
                let index = link::index(handle, "lan0").await.unwrap();
                handle.address().add(index, "10.8.0.9".parse().unwrap(), 24).execute().await.unwrap();
            });
        });
        let late = machine.settle(&["10.8.0.0/24"]).unwrap_err().to_string();
        assert!(late.contains("10.8.0.9/24 of lan0") && !machine.has("10.8.0.1"), "{late}");
        machine.runtime.block_on(link::remove(&machine.network.inner.handle, "lan0")).unwrap();
        assert_eq!(machine.settle(&["10.8.0.0/24"]).unwrap(), Settled::default());
        assert!(machine.has("10.8.0.1"));
    });
}

#[test]
fn ipv6_that_is_off_does_not_take_ipv4_along() {
    on_a_machine_with("off", &[], |machine| {
        machine.set("ipv6/conf/default/disable_ipv6", "1");
        let half = machine.settle(&["10.9.0.0/24", "fd09::/64"]).unwrap();
        assert!(half.refused.len() == 1 && half.refused[0].starts_with("IPv6: adding fd09::1"), "{half:?}");
        let (_pod, addresses) = machine.pod("one", &[]);
        assert_eq!(addresses.ips.len(), 1);
        machine.set("ipv6/conf/test0/disable_ipv6", "0");
        assert_eq!(machine.settle(&["10.9.0.0/24", "fd09::/64"]).unwrap(), Settled::default());
    });
}

#[test]
fn rules_that_others_take_away_come_back() {
    on_a_machine("flush", |machine| {
        let both = ["10.9.0.0/24", "fd09::/64"];
        let (web, _) = machine.pod("web", &[port(Protocol::Tcp, 8080, 80)]);
        web.serve(80, 53, "web");
        let flush = || nft::remove("test0").unwrap();
        machine.noticed(machine.network.rules_changed(), || machine.place.within(flush));
        assert!(machine.place.seen_at("127.0.0.1:8080").is_err());
        machine.settle(&both).unwrap();
        for to in ["127.0.0.1:8080", "[fd09::1]:8080"] {
            assert!(machine.place.seen_at(to).is_ok(), "{to}");
        }
        assert_eq!(machine.loopback_routed(), "1\n");
        let foreign = nft::Guest {
            place: ("test0", "hostports"),
            comment: "another",
            matches: vec![Match::Link("lo".to_owned())],
            action: Action::Return,
        };
        let four = netlink_packet_netfilter::NetfilterProtoFamily::IPv4;
        machine.place.within(|| nft::change(four, foreign.place, &[], std::slice::from_ref(&foreign)).unwrap());
        let size = || machine.place.within(|| nft::size(four, "test0").unwrap());
        let before = size();
        machine.settle(&both).unwrap();
        assert_eq!((before.0, before.1 - 1), size());
        machine.set("ipv4/conf/test0/route_localnet", "0");
        machine.settle(&both).unwrap();
        assert!(machine.place.seen_at("127.0.0.1:8080").is_ok());
    });
}

#[test]
fn bridge_and_forwarding_come_back() {
    on_a_machine("bridge", |machine| {
        let both = ["10.9.0.0/24", "fd09::/64"];
        let (web, ips) = machine.pod("web", &[port(Protocol::Tcp, 8080, 80)]);
        web.serve(80, 53, "web");
        let to = SocketAddr::new(ips.ips[0], 80).to_string();
        machine.noticed(machine.network.links_changed(), || machine.set("ipv4/ip_forward", "0"));
        machine.settle(&both).unwrap();
        assert_eq!(machine.setting("ipv4/ip_forward"), "1");
        machine.noticed(machine.network.links_changed(), || {
            machine.runtime.block_on(link::remove(&machine.network.inner.handle, "test0")).unwrap();
        });
        assert!(machine.place.seen_at(&to).is_err());
        machine.settle(&both).unwrap();
        for to in [&to, "127.0.0.1:8080"] {
            assert!(machine.place.seen_at(to).is_ok(), "{to}");
        }
        let down = async {
            let handle = &machine.network.inner.handle;
            handle.link().set(LinkUnspec::new_with_name("test0").down().build()).execute().await.unwrap();
        };
        machine.noticed(machine.network.links_changed(), || machine.runtime.block_on(down));
        machine.settle(&both).unwrap();
        assert!(machine.place.seen_at(&to).is_ok());
    });
}

fn nft(rules: &str) -> String {
    let out = Command::new("nft").arg(rules).output().unwrap();
    assert!(out.status.success(), "{rules}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn a_firewall_that_drops_what_is_forwarded_is_opened_or_told() {
    if Command::new("nft").arg("--version").output().is_err() {
        eprintln!("skipped: needs nft");
        return;
    }
    on_a_machine("firewall", |machine| {
        let both = ["10.9.0.0/24", "fd09::/64"];
        let lan = machine.neighbour("192.0.2.1/24", "192.0.2.2/24");
        lan.serve(80, 53, "lan");
        let (pod, _) = machine.pod("one", &[]);
        assert!(pod.seen_at("192.0.2.2:80").is_ok());
        let chain = "{ type filter hook forward priority 0; policy drop; }";
        machine.noticed(machine.network.rules_changed(), || {
            machine.place.within(|| nft(&format!("add table ip filter; add chain ip filter FORWARD {chain}")));
        });
        assert!(pod.seen_at("192.0.2.2:80").is_err());
        for _ in 0..2 {
            assert_eq!(machine.settle(&both).unwrap(), Settled::default());
        }
        assert!(pod.seen_at("192.0.2.2:80").is_ok());
        let listed = || machine.place.within(|| nft("list chain ip filter FORWARD"));
        assert_eq!(listed().matches("pods of test0 (pikelet)").count(), 2, "{}", listed());
        machine.place.within(|| nft("flush chain ip filter FORWARD"));
        machine.settle(&both).unwrap();
        assert!(pod.seen_at("192.0.2.2:80").is_ok());
        machine.place.within(|| nft("chain ip filter FORWARD { policy accept; }"));
        machine.settle(&both).unwrap();
        assert!(!listed().contains("pikelet"), "{}", listed());
        machine.place.within(|| nft(&format!("add table inet own; add chain inet own forward {chain}")));
        let told = machine.settle(&both).unwrap().problems;
        assert!(told.len() == 1 && told[0].contains("nft add rule inet own forward iifname test0 accept"), "{told:?}");
        for side in ["iifname", "oifname"] {
            machine.place.within(|| nft(&format!("add rule inet own forward {side} test0 accept")));
        }
        assert_eq!(machine.settle(&both).unwrap(), Settled::default());
        assert!(pod.seen_at("192.0.2.2:80").is_ok());
        machine.place.within(|| nft("chain ip filter FORWARD { policy drop; }"));
        machine.settle(&both).unwrap();
        assert!(listed().contains("pikelet"));
        machine.runtime.block_on(machine.network.remove_all()).unwrap();
        assert!(!listed().contains("pikelet"), "{}", listed());
    });
}

#[test]
fn an_address_has_its_hardware_address_and_is_used_at_once() {
    on_a_machine("hardware", |machine| {
        machine.set("ipv6/conf/all/accept_dad", "1");
        let pod = Place::new();
        pod.within(|| fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "1").unwrap());
        let ips = machine
            .runtime
            .block_on(machine.network.attach("one", &pod.path(), &[], Bandwidth::default()))
            .unwrap()
            .ips;
        pod.within(|| TcpListener::bind(SocketAddr::new(ips[1], 80)).expect("nobody else can have the address"));
        let address = pod.within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let handle = link::connect().unwrap();
                link::hardware_address(&handle, link::index(&handle, "eth0").await.unwrap()).await
            })
        });
        assert_eq!(address, [0x0a, 0x58, 10, 9, 0, 2]);
    });
}

#[test]
fn ranges_of_before_last_as_long_as_their_pods() {
    on_a_machine("before", |machine| {
        let (old, ips) = machine.pod("old", &[port(Protocol::Tcp, 8080, 80)]);
        old.serve(80, 53, "old");
        let lan = machine.neighbour("192.0.2.1/24", "192.0.2.2/24");
        lan.serve(80, 53, "lan");
        machine.settle(&["10.7.0.0/24"]).unwrap();
        assert!(machine.has("10.7.0.1") && machine.has("10.9.0.1"));
        let (_new, new_ips) = machine.pod("new", &[]);
        assert_eq!(new_ips.ips, ["10.7.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(ips.ips[0].to_string(), "10.9.0.2");
        assert_eq!(old.seen_at("192.0.2.2:80").unwrap().to_string(), "192.0.2.1", "masqueraded as before");
        machine.noticed(machine.network.links_changed(), || machine.remove("old"));
        machine.settle(&["10.7.0.0/24"]).unwrap();
        assert!(machine.has("10.7.0.1") && !machine.has("10.9.0.1") && !machine.has("fd09::1"));
    });
}

#[test]
fn links_have_names_that_others_know_and_older_ones_go() {
    let id = "0123456789abcdef";
    assert_eq!(outside(id), "veth0123456789a");
    on_a_machine("names", |machine| {
        machine.runtime.block_on(async {
            let handle = &machine.network.inner.handle;
            handle.link().add(LinkVeth::new("pk0123456789a", "other").build()).execute().await.unwrap();
            locked(&machine.network.inner.leases).take("0123456789abcdef", &ranges(&["10.9.0.0/24"]), &[]).unwrap();
            machine.network.retain(&[]).await;
            assert!(link::index(handle, "pk0123456789a").await.is_none());
        });
    });
}

/// The hardware addresses the bridge knows behind its ports, and whether for good.
fn known_behind_ports(machine: &Machine) -> Vec<(Vec<u8>, bool)> {
    let listing = async {
        let mut request = machine.network.inner.handle.neighbours().get();
        request.message_mut().header.family = AddressFamily::Bridge;
        request.execute().try_collect::<Vec<_>>().await.unwrap()
    };
    let of = |message: &NeighbourMessage| {
        let address = message.attributes.iter().find_map(|a| match a {
            NeighbourAttribute::LinkLayerAddress(address) => Some(address.clone()),
            _ => None,
        });
        Some((address?, message.header.state == NeighbourState::Noarp))
    };
    // permanent ones are the bridge's and its ports' own
    let found = machine.runtime.block_on(listing);
    found.iter().filter(|m| m.header.state != NeighbourState::Permanent).filter_map(of).collect()
}

#[test]
fn pods_teach_the_bridge_nothing() {
    on_a_machine("learning", |machine| {
        machine.place.serve(80, 53, "machine");
        let (pod, _) = machine.pod("one", &[]);
        let own = vec![(vec![0x0a, 0x58, 10, 9, 0, 2], true)];
        let calls_itself = |address: [u8; 6]| {
            pod.within(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let handle = link::connect().unwrap();
                    let index = link::index(&handle, "eth0").await.unwrap();
                    let renamed = LinkUnspec::new_with_index(index).address(address.to_vec()).build();
                    handle.link().set(renamed).execute().await.unwrap();
                });
            });
        };
        for n in 1..4 {
            calls_itself([2, 0, 0, 0, 0, n]);
            assert!(pod.seen_at("10.9.0.1:80").is_err(), "a pod with another hardware address is not heard");
        }
        assert_eq!(known_behind_ports(machine), own);
        // so it is when the bridge was lost, and for those who are on it again
        machine.noticed(machine.network.links_changed(), || {
            machine.runtime.block_on(link::remove(&machine.network.inner.handle, "test0")).unwrap();
        });
        machine.settle(&["10.9.0.0/24", "fd09::/64"]).unwrap();
        calls_itself([0x0a, 0x58, 10, 9, 0, 2]);
        assert!((0..5).any(|_| pod.seen_at("10.9.0.1:80").is_ok()));
        assert_eq!(known_behind_ports(machine), own);
    });
}
