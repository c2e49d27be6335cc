//! The values that cross the border of the network room.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Names and paths of one agent's pod network.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Bridge interface, e.g. `pikelet0`; also the name of the nftables table.
    pub bridge: String,
    /// Directory of the address leases (`/run/pikelet/network`).
    pub state_dir: PathBuf,
    /// MTU of pod links; `None`: as the default route's link.
    pub mtu: Option<u32>,
    /// Ports of this machine that no pod gets while a program listens there: those by which it is reached.
    pub kept_ports: Vec<u16>,
    /// Ranges that are not masqueraded beside the node's own pod CIDRs (the cluster CIDR).
    pub cluster_cidrs: Vec<ipnet::IpNet>,
}

/// What a pod got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodAddresses {
    /// One per family, the primary first.
    pub ips: Vec<IpAddr>,
    /// What a person should know about it.
    pub told: Vec<String>,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its number in IP headers.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A port of this machine that leads to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// Only this address of the machine; `None`: all of them, an unspecified one: all of its family.
    pub ip: Option<IpAddr>,
    /// TCP and UDP ports of one number are two.
    pub protocol: Protocol,
    /// The port of the machine.
    pub port: u16,
    /// The port of the pod.
    pub container_port: u16,
}

/// How fast a pod may be, in bits a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Of what it gets.
    pub ingress: Option<u64>,
    /// Of what it sends.
    pub egress: Option<u64>,
}

/// Errors of the pod network; the message is fit for a pod's status.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No pod CIDR yet.
    #[error(
        "pod network is not ready: this node has no pod CIDR yet (spec.podCIDR of the Node, or set podCIDR in the configuration)"
    )]
    NotReady,
    /// No range can be used: why, for each.
    #[error("pod network is not ready: {}", .0.join("; "))]
    Ranges(Vec<String>),
    /// A port of the machine is one by which a person or the cluster reaches it.
    #[error(
        "hostPort {port}: a program of this node listens there ({program}at {listens}), and would not be reached any more: use \
         another port"
    )]
    Kept {
        /// The port.
        port: u16,
        /// Name and pid, if they can be seen.
        program: String,
        /// Where the program listens.
        listens: IpAddr,
    },
    /// Every address of the range is taken.
    #[error("no free address left in {0}")]
    Exhausted(String),
    /// netlink, nftables or namespace call failed.
    #[error("{what}: {message}")]
    Kernel {
        /// What was tried, on what.
        what: String,
        /// The kernel's answer.
        message: String,
    },
    /// A local file operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// A pod's `dnsConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsOptions {
    /// More name servers.
    pub nameservers: Vec<String>,
    /// More search domains.
    pub searches: Vec<String>,
    /// `name` or `name:value`.
    pub options: Vec<String>,
}
