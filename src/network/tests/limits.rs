//! How large packets of pods are, and how fast pods are.

use std::net::Ipv4Addr;
use std::time::Instant;

use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMetric};
use rtnetlink::{Handle, LinkBridge, RouteMessageBuilder};

use super::*;

/// What is sent to measure with, and the rate at which it takes three quarters of a second.
const BYTES: usize = 1_500_000;
const RATE: u64 = 16_000_000;
/// No faster than this with `RATE`: a burst goes at once.
const LIMITED: Duration = Duration::from_millis(600);

/// Does something with netlink in a place.
fn asked<T: Send>(place: &Place, what: impl AsyncFnOnce(Handle) -> T + Send) -> T {
    place.within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { what(link::connect().unwrap()).await })
    })
}

/// How long it takes until all that `from` sends has come to `to`, which is reached at `at`.
fn time(from: &Place, to: &Place, at: SocketAddr) -> Duration {
    let listener = to.within(|| TcpListener::bind(at).unwrap());
    let received = thread::spawn(move || io::copy(&mut listener.accept().unwrap().0, &mut io::sink()).unwrap());
    let began = Instant::now();
    from.within(|| TcpStream::connect_timeout(&at, AT_ONCE).unwrap().write_all(&vec![0; BYTES]).unwrap());
    assert_eq!(received.join().unwrap() as usize, BYTES);
    began.elapsed()
}

fn links(place: &Place) -> Vec<String> {
    place.within(|| nix::ifaddrs::getifaddrs().unwrap().map(|i| i.interface_name).collect())
}

#[test]
fn a_pod_is_no_faster_than_it_may_be() {
    on_a_machine("fast", |machine| {
        let limit = |ingress, egress| Bandwidth { ingress, egress };
        let (gets, its) = machine.limited_pod("gets", &[], limit(Some(RATE), None));
        let (sends, own) = machine.limited_pod("sends", &[], limit(None, Some(RATE)));
        let at = |ip, port| SocketAddr::new(ip, port);
        let here = ["10.9.0.1", "fd09::1"].map(|ip| ip.parse::<IpAddr>().unwrap());
        for (n, here) in here.into_iter().enumerate() {
            let taken = [
                time(&machine.place, &gets, at(its.ips[n], 80)),
                time(&sends, &machine.place, at(here, 80)),
                time(&gets, &machine.place, at(here, 81)),
                time(&machine.place, &sends, at(own.ips[n], 81)),
                time(&sends, &gets, at(its.ips[n], 82)),
            ];
            assert_eq!(taken.map(|t| t > LIMITED), [true, true, false, false, true], "{taken:?}");
            // what it costs that packets are lost
            assert!(taken.iter().all(|t| *t < LIMITED * 3), "{taken:?}");
        }
        machine.place.within(|| nft::remove("test0").unwrap());
        machine.settle(&["10.9.0.0/24", "fd09::/64"]).unwrap();
        let again = time(&sends, &machine.place, at(here[0], 82));
        assert!(again > LIMITED, "what others removed holds it again: {again:?}");
        assert!(links(&machine.place).contains(&"ifb-sends".to_owned()));
        machine.remove("sends");
        assert!(!links(&machine.place).contains(&"ifb-sends".to_owned()), "nothing is left over");
    });
}

#[test]
fn a_limit_that_comes_while_guards_are_mended_stays() {
    on_a_machine("mended", |machine| {
        let (sends, _) = machine.pod("sends", &[]);
        machine.place.within(|| nft::remove("test0").unwrap());
        machine.runtime.block_on(async {
            let network = &machine.network;
            let turn = network.inner.guards.lock().await;
            let limited = async {
                // who mends has seen that the guard is missing
                tokio::time::sleep(AT_ONCE).await;
                let limit = Bandwidth { ingress: None, egress: Some(RATE) };
                assert!(network.limit("sends", limit, 1500).await.unwrap().is_some());
                drop(turn);
            };
            assert_eq!(tokio::join!(network.mend_guards(), limited), (None, ()));
        });
        let taken = time(&sends, &machine.place, "10.9.0.1:80".parse().unwrap());
        assert!(taken > LIMITED, "{taken:?}");
    });
}

#[test]
fn nothing_is_left_of_a_pod_whose_addresses_are_not_known() {
    on_a_machine("lost", |machine| {
        let (_pod, _) = machine.limited_pod("lost", &[], Bandwidth { ingress: None, egress: Some(RATE) });
        let config = NetworkConfig { state_dir: machine.dir.join("anew"), ..machine.network.inner.config.clone() };
        machine.runtime.block_on(async {
            let again = Network::open(config).await.unwrap();
            assert!(!again.holds("lost"));
            for _ in 0..2 {
                again.detach("lost").await.unwrap();
            }
        });
        let left: Vec<_> = links(&machine.place).into_iter().filter(|name| name.ends_with("lost")).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(machine.place.within(|| nft::guards("test0").unwrap()).is_empty());
    });
}

/// MTU of a link.
fn mtu(place: &Place, name: &str) -> u32 {
    asked(place, async |handle| {
        let link = link::by_name(&handle, name).await.unwrap();
        link.attributes.iter().find_map(|a| if let LinkAttribute::Mtu(mtu) = a { Some(*mtu) } else { None }).unwrap()
    })
}

fn set_mtu(place: &Place, name: &str, mtu: u32) {
    asked(place, async |handle| {
        let index = link::index(&handle, name).await.unwrap();
        handle.link().set(LinkUnspec::new_with_index(index).mtu(mtu).build()).execute().await.unwrap();
    });
}

/// A link with an address, and a route by it.
fn way(place: &Place, name: &str, address: &str, to: &str, route_mtu: Option<u32>) {
    let (address, to): (IpNet, IpNet) = (address.parse().unwrap(), to.parse().unwrap());
    asked(place, async |handle| {
        if link::index(&handle, name).await.is_none() {
            handle.link().add(LinkBridge::new(name).up().build()).execute().await.unwrap();
        }
        let link = link::by_name(&handle, name).await.unwrap();
        assert!(link.header.flags.contains(LinkFlags::Up));
        let index = link.header.index;
        let _ = handle.address().add(index, address.addr(), address.prefix_len()).execute().await;
        let IpAddr::V4(net) = to.network() else { panic!("{to}") };
        let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(net, to.prefix_len());
        let mut route = route.output_interface(index).build();
        if let Some(mtu) = route_mtu {
            route.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
        }
        handle.route().add(route).replace().execute().await.unwrap();
    });
}

#[test]
fn packets_of_pods_are_as_large_as_those_of_the_machine() {
    on_a_machine("mtu", |machine| {
        let ranges = ["10.9.0.0/24", "fd09::/64"];
        let here = &machine.place;
        let of_pod = |pod: &Place, name: &str| (mtu(pod, "eth0"), mtu(here, name));
        let (one, _) = machine.pod("one", &[]);
        assert_eq!((mtu(here, "test0"), of_pod(&one, "vethone")), (1500, (1500, 1500)), "no way out");
        machine.noticed(machine.network.links_changed(), || {
            way(here, "eth0", "192.168.7.2/24", "0.0.0.0/0", None);
        });
        machine.noticed(machine.network.links_changed(), || set_mtu(here, "eth0", 1400));
        machine.settle(&ranges).unwrap();
        let (two, _) = machine.pod("two", &[]);
        assert_eq!(mtu(here, "test0"), 1400);
        assert_eq!([of_pod(&one, "vethone"), of_pod(&two, "vethtwo")], [(1400, 1400); 2], "also what is there already");
        set_mtu(here, "eth0", 9000);
        machine.settle(&ranges).unwrap();
        assert_eq!([of_pod(&one, "vethone"), of_pod(&two, "vethtwo")], [(9000, 9000); 2]);
        way(here, "eth0", "192.168.7.2/24", "0.0.0.0/0", Some(1420));
        machine.settle(&ranges).unwrap();
        assert_eq!(of_pod(&one, "vethone"), (1420, 1420), "a route may have its own");
        way(here, "over0", "10.9.7.1/32", "10.9.128.0/17", None);
        set_mtu(here, "over0", 1350);
        machine.settle(&ranges).unwrap();
        assert_eq!(of_pod(&one, "vethone"), (1420, 1420), "that network is nobody's");
        set_mtu(here, "eth0", 1000);
        machine.settle(&ranges).unwrap();
        assert_eq!(of_pod(&one, "vethone"), (1280, 1280), "with less there is no IPv6");
        // another agent: it knows of pods what it is told
        machine.runtime.block_on(async {
            let mut config = machine.network.inner.config.clone();
            config.cluster_cidrs = vec!["10.9.0.0/16".parse().unwrap()];
            set_mtu(here, "eth0", 1500);
            let again = Network::open(config.clone()).await.unwrap();
            again.recall("one", one.path());
            again.recall("two", here.path());
            let ranges: Vec<IpNet> = ranges.iter().map(|r| r.parse().unwrap()).collect();
            again.settle(&ranges).await.unwrap();
            assert_eq!(of_pod(&one, "vethone"), (1350, 1350), "the way to pods of other nodes counts too");
            assert_eq!(mtu(here, "eth0"), 1500, "a namespace that is not the pod's is left alone");
            config.mtu = Some(1300);
            let set = Network::open(config).await.unwrap();
            set.recall("one", one.path());
            set.settle(&ranges).await.unwrap();
            assert_eq!((mtu(here, "test0"), of_pod(&one, "vethone")), (1300, (1300, 1300)), "as it was set");
        });
    });
}
