//! What a server may reach through the tunnel.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// How much of the cluster a server reaches through agents (`--egress-selector-mode` of k3s).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Egress {
    /// No tunnel: it reaches nodes by itself.
    Disabled,
    /// The kubelet API of this node.
    #[default]
    Agent,
    /// Pods of this node too. They are not offered by this agent: the server dials them by itself then.
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
        self.ranges.iter().any(|range| range.contains(&ip)).then(|| SocketAddr::new(ip, address.port()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_the_kubelet_and_the_ranges_is_reached() {
        let mut targets = Targets { kubelet: "10.0.0.5:10250".parse().unwrap(), ranges: vec![] };
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
    }
}
