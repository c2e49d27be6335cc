//! What a server may reach through the tunnel.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::cluster::join::Pods;

/// How much of the cluster a server reaches through agents (`--egress-selector-mode` of k3s).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Egress {
    /// No tunnel: it reaches nodes by itself.
    Disabled,
    /// The kubelet API of this node.
    #[default]
    Agent,
    /// Pods of this node too.
    Pod,
    /// All pods and this node's own addresses.
    Cluster,
}

impl Egress {
    /// As the server's settings name it; a name of later versions is taken as the default.
    pub fn parse(text: &str) -> Self {
        match text {
            "disabled" => Self::Disabled,
            "pod" => Self::Pod,
            "cluster" => Self::Cluster,
            _ => Self::Agent,
        }
    }
}

/// Targets that are allowed.
#[derive(Debug, Clone)]
pub(super) struct Targets {
    /// The kubelet API, which servers name by loopback addresses.
    pub kubelet: SocketAddr,
    /// Reached at any port.
    pub ranges: Vec<IpNet>,
    /// Pods of this node, where only these are reached.
    pub pods: Option<Pods>,
}

impl Targets {
    /// The address a target such as `tcp/127.0.0.1:10250` stands for; `None`: it is not allowed.
    pub fn allowed(&self, target: &str) -> Option<SocketAddr> {
        let address: SocketAddr = target.strip_prefix("tcp/")?.parse().ok()?;
        let ip = address.ip().to_canonical();
        if ip.is_loopback() {
            let local = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
            return (local.contains(&ip) && address.port() == self.kubelet.port()).then_some(self.kubelet);
        }
        let address = SocketAddr::new(ip, address.port());
        let of_pod = self.pods.as_ref().is_some_and(|pods| pods.have(address));
        (of_pod || self.ranges.iter().any(|range| range.contains(&ip))).then_some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_the_kubelet_and_the_ranges_is_reached() {
        let mut targets = Targets { kubelet: "10.0.0.5:10250".parse().unwrap(), ranges: vec![], pods: None };
        for allowed in ["tcp/127.0.0.1:10250", "tcp/[::1]:10250"] {
            assert_eq!(targets.allowed(allowed), Some("10.0.0.5:10250".parse().unwrap()), "{allowed}");
        }
        for refused in [
            "tcp/127.0.0.1:22",
            "tcp/127.0.0.2:10250",
            "udp/127.0.0.1:10250",
            "unix//run/x",
            "tcp/10.42.0.7:80",
            "tcp/[::ffff:127.0.0.1]:22",
            "tcp/localhost:10250",
            "",
        ] {
            assert_eq!(targets.allowed(refused), None, "{refused}");
        }
        targets.ranges.push("10.42.0.0/16".parse().unwrap());
        assert_eq!(targets.allowed("tcp/10.42.0.7:80"), Some("10.42.0.7:80".parse().unwrap()));
        assert_eq!(targets.allowed("tcp/10.43.0.7:80"), None);
        targets.pods = Some(Pods::new(|address| address.to_string() == "10.43.0.7:80"));
        assert_eq!(targets.allowed("tcp/[::ffff:10.43.0.7]:80"), Some("10.43.0.7:80".parse().unwrap()));
        assert_eq!(targets.allowed("tcp/10.43.0.7:81"), None);
    }
}
