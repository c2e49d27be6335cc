//! Who this node is to its cluster, by its settings and by what addresses the machine has now.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use tokio::sync::watch;
use tracing::info;

use crate::cluster::{self, Pods};
use crate::config::Config;
use crate::machine::clock::Floor;
use crate::pod::PodExt;
use crate::pod::table::PodTable;

/// Places elsewhere (RFC 5737, RFC 3849): the way there is the way out.
const ELSEWHERE: [&str; 2] = ["192.0.2.1:9", "[2001:db8::1]:9"];
/// Addresses come and go together.
const TOGETHER: Duration = Duration::from_millis(200);

/// True for an address by which others reach this machine.
fn serves(ip: &IpAddr) -> bool {
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() && !local
}

/// The address this machine uses to reach `there`.
fn towards(there: &str) -> Option<IpAddr> {
    let there: SocketAddr = there.parse().ok()?;
    let any: IpAddr = if there.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    // no packet is sent: connecting a datagram socket only chooses a route
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(there).ok()?;
    socket.local_addr().ok().map(|a| a.ip()).filter(serves)
}

/// An address of hardware, in a network without a way out.
fn of_hardware() -> Option<IpAddr> {
    let all =
        getifaddrs().ok()?.filter(|i| Path::new("/sys/class/net").join(&i.interface_name).join("device").exists());
    let ips = all.filter_map(|i| {
        let address = i.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    });
    // IPv4 goes first, as everywhere here
    ips.filter(serves).min_by_key(IpAddr::is_ipv6)
}

/// The address of this machine; none while it has none by which others reach it.
fn own_address() -> Option<IpAddr> {
    ELSEWHERE.into_iter().find_map(towards).or_else(of_hardware)
}

/// Addresses of the Node, as far as there are any now.
pub fn host_ips(config: &Config) -> Vec<IpAddr> {
    if config.node.ips.is_empty() { own_address().into_iter().collect() } else { config.node.ips.clone() }
}

/// Makes `ips` what this machine has, whenever `links` tells of a change. One that goes is the Node's until there is another.
pub async fn follow(mut links: watch::Receiver<u64>, ips: watch::Sender<Vec<IpAddr>>) {
    loop {
        links.mark_unchanged();
        if let Some(now) = own_address() {
            ips.send_if_modified(|known| {
                *known != [now] && {
                    info!(address = %now, before = ?known, "address of this node");
                    *known = vec![now];
                    true
                }
            });
        }
        if links.changed().await.is_err() {
            return;
        }
        tokio::time::sleep(TOGETHER).await;
    }
}

/// Who joins the cluster.
pub fn member(config: &Config, pods: &PodTable) -> cluster::Node {
    let pods = pods.clone();
    // a tunnel ends here: it reaches the kubelet API at loopback, unless that listens elsewhere only
    let address = if config.api.address.is_unspecified() { [127, 0, 0, 1].into() } else { config.api.address };
    cluster::Node {
        name: config.node.name.clone(),
        ips: host_ips(config),
        more: config.node.more.clone(),
        kubelet: SocketAddr::new(address, config.api.port),
        root: config.root_dir.clone(),
        pods: Pods::new(move |address| pods.list().iter().any(|p| p.listens_at(address))),
        floor: Floor::of(&config.root_dir),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_reached_by_an_address_of_his_own() {
        for (ip, is) in [
            ("127.0.0.1", false),
            ("::1", false),
            ("0.0.0.0", false),
            ("169.254.7.7", false),
            ("fe80::1", false),
            ("192.168.1.7", true),
            ("fd00::7", true),
        ] {
            assert_eq!(serves(&ip.parse().unwrap()), is, "{ip}");
        }
        assert_eq!(towards("127.0.0.1:9"), None);
    }

    /// Does `what` in a network namespace without anything.
    fn elsewhere(what: impl FnOnce() + Send + 'static) {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let there = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            what();
        });
        there.join().unwrap();
    }

    async fn ip(arguments: &str) {
        let done = tokio::process::Command::new("ip").args(arguments.split(' ')).status().await.unwrap();
        assert!(done.success(), "ip {arguments}");
    }

    #[test]
    fn the_address_follows_the_machine() {
        elsewhere(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                if tokio::process::Command::new("ip").arg("-V").output().await.is_err() {
                    eprintln!("skipped: needs ip");
                    return;
                }
                assert_eq!(own_address(), None, "no network, no address");
                let (links_tx, links) = watch::channel(0);
                crate::network::listen(links_tx, watch::Sender::new(0)).unwrap();
                let (ips_tx, mut ips) = watch::channel(Vec::new());
                tokio::spawn(follow(links, ips_tx));
                let mut is = async |wanted: &str| {
                    let wanted: Vec<IpAddr> = vec![wanted.parse().unwrap()];
                    let waited =
                        tokio::time::timeout(Duration::from_secs(10), ips.wait_for(|now| *now == wanted)).await;
                    assert!(waited.is_ok(), "{wanted:?} is not there");
                };
                for step in [
                    "link set lo up",
                    "link add lan0 type veth peer name lan1",
                    "link set lan1 up",
                    "link set lan0 up",
                    "addr add fd77::2/64 dev lan0 nodad",
                ] {
                    ip(step).await;
                }
                ip("-6 route add default via fd77::1 dev lan0").await;
                is("fd77::2").await;
                ip("addr add 192.168.7.2/24 dev lan0").await;
                ip("route add default via 192.168.7.1").await;
                is("192.168.7.2").await;
                ip("addr del 192.168.7.2/24 dev lan0").await;
                ip("addr add 192.168.7.3/24 dev lan0").await;
                ip("route add default via 192.168.7.1").await;
                is("192.168.7.3").await;
            });
        });
    }
}
