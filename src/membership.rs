//! Who this node is to its cluster, by its settings.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use crate::cluster::{self, Pods};
use crate::config::Config;
use crate::machine::clock::Floor;
use crate::pod::PodExt;
use crate::pod::table::PodTable;

/// The address this machine uses to reach others; loopback if it has none.
fn own_address() -> IpAddr {
    // no packet is sent: connecting a datagram socket only chooses a route
    let socket = UdpSocket::bind("0.0.0.0:0").and_then(|s| s.connect("192.0.2.1:9").and_then(|()| s.local_addr()));
    socket.map_or(IpAddr::from([127, 0, 0, 1]), |a| a.ip())
}

/// Addresses of the Node.
pub fn host_ips(config: &Config) -> Vec<IpAddr> {
    if config.node.ips.is_empty() { vec![own_address()] } else { config.node.ips.clone() }
}

/// Who joins the cluster.
pub fn member(config: &Config, pods: &PodTable) -> cluster::Node {
    let pods = pods.clone();
    // a tunnel ends here: it reaches the kubelet API at loopback, unless that listens elsewhere only
    let address = if config.api.address.is_unspecified() { [127, 0, 0, 1].into() } else { config.api.address };
    cluster::Node {
        name: config.node.name.clone(),
        ips: host_ips(config),
        kubelet: SocketAddr::new(address, config.api.port),
        root: config.root_dir.clone(),
        pods: Pods::new(move |address| pods.list().iter().any(|p| p.listens_at(address))),
        floor: Floor::of(&config.root_dir),
    }
}
