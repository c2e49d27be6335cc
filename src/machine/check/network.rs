//! What pod networks are made of, forwarding, ports that must be free, and name servers.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::kernel::{Kernel, Support};
use super::{Finding, Plan, read};
use crate::network::{host_resolv_conf, obstacles, probe, who_listens};

/// A kind of link or rule: its option and module, and what is lost without, if a node may do without.
type Part = (&'static str, &'static str, &'static str, Option<&'static str>);

const PARTS: [Part; 8] = [
    ("bridge", "BRIDGE", "bridge", None),
    ("veth", "VETH", "veth", None),
    ("vxlan", "VXLAN", "vxlan", Some("pods of other nodes need routes of your own to be reached")),
    ("nftables", "NF_TABLES", "nf_tables", None),
    ("nftables IPv6", "NF_TABLES_IPV6", "nf_tables", Some("pods with IPv6 addresses reach this node only")),
    ("hostPort", "NFT_FIB_IPV4", "nft_fib_ipv4", Some("pods with a hostPort do not start")),
    ("nftables netdev", "NF_TABLES_NETDEV", "nf_tables", Some("pods can pose as the gateway and as each other")),
    (
        "bandwidth",
        "NET_SCH_TBF",
        "sch_tbf",
        Some("pods with kubernetes.io/ingress-bandwidth or egress-bandwidth do not start"),
    ),
];
/// The options nftables needs for masquerading: one that is missing is named.
const NFT: [(&str, &str); 4] = [
    ("NF_TABLES", "nf_tables"),
    ("NF_TABLES_IPV4", "nf_tables"),
    ("NFT_NAT", "nft_chain_nat"),
    ("NFT_MASQ", "nft_masq"),
];

/// Those that limits of bandwidth need.
const BANDWIDTH: [(&str, &str); 3] = [("NET_SCH_TBF", "sch_tbf"), ("IFB", "ifb"), ("NFT_FWD_NETDEV", "nft_fwd_netdev")];

/// Which of the options of a part is to blame when it does not work: rather one that cannot be had than one that can.
fn culprit((what, option, module, _): Part, kernel: &Kernel) -> (&'static str, &'static str) {
    let options = match option {
        "NET_SCH_TBF" => &BANDWIDTH[..],
        _ if what.starts_with("nftables") && option != "NF_TABLES_NETDEV" => &NFT,
        _ => return (option, module),
    };
    let is = |wanted: &[Support]| {
        options.iter().copied().find(|(option, module)| wanted.contains(&kernel.has(option, module)))
    };
    is(&[Support::Absent, Support::NotInstalled]).or_else(|| is(&[Support::Loadable])).unwrap_or((option, module))
}

fn tried(kernel: &Kernel) -> Vec<Finding> {
    let attempts = match probe() {
        Ok(attempts) => attempts,
        Err(error) => {
            let mend = "use a kernel with CONFIG_NET_NS and CONFIG_NETLINK, and all capabilities of root";
            return vec![Finding::missing("pod network", error.to_string(), mend)];
        }
    };
    let finding = |part: Part| {
        let (what, _, _, without) = part;
        let result = attempts.iter().find(|a| a.what == what).map(|a| a.result.clone());
        let Some(Err(error)) = result else { return Finding::ok(what, "works") };
        let (option, module) = culprit(part, kernel);
        match without {
            Some(without) => Finding::warning(what, format!("{error}: {without}"), kernel.mend(option, module)),
            None => Finding::missing(what, error, kernel.mend(option, module)),
        }
    };
    PARTS.into_iter().map(finding).collect()
}

/// Whether networks of VXLANs can be made, as far as the kernel tells.
pub fn vxlan(kernel: &Kernel) -> Option<Finding> {
    told(kernel).into_iter().find(|f| f.check == "vxlan")
}

fn told(kernel: &Kernel) -> Vec<Finding> {
    let finding = |part: Part| {
        let (what, _, _, without) = part;
        let (option, module) = culprit(part, kernel);
        kernel.finding(what, option, module, without)
    };
    PARTS.into_iter().map(finding).collect()
}

fn bridged_packets(there: bool, kernel: &Kernel) -> Finding {
    if there {
        return Finding::ok("br_netfilter", "packets between pods pass the node's rules");
    }
    let found = "not loaded: a pod may not reach a Service that leads to another pod of this node";
    Finding::warning("br_netfilter", found, kernel.mend("BRIDGE_NETFILTER", "br_netfilter"))
}

fn forwarding(value: &str, writable: bool) -> Finding {
    let check = "ip_forward";
    match (value.trim(), writable) {
        ("1", _) => Finding::ok(check, "on"),
        (_, true) => Finding::ok(check, "off; the agent turns it on"),
        (_, false) => {
            Finding::missing(check, "off, and /proc/sys is read-only", "sysctl -w net.ipv4.ip_forward=1 on the host")
        }
    }
}

fn port(address: IpAddr, port: u16, flag: &str, own_agent: bool) -> Finding {
    let check = format!("port {port}");
    match TcpListener::bind(SocketAddr::new(address, port)) {
        Ok(_) => Finding::ok(&check, "free"),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            if own_agent {
                return Finding::ok(&check, "held by the agent that runs here");
            }
            let by = who_listens(port).map(|o| format!(" by {o}")).unwrap_or_default();
            Finding::missing(&check, format!("taken{by}"), format!("stop that program, or set {flag} to another port"))
        }
        Err(error) => Finding::missing(&check, format!("{address}: {error}"), format!("set {flag} or --address")),
    }
}

/// `text`: the resolv.conf pods get their name servers from.
fn name_servers(text: &str) -> Finding {
    let check = "resolv.conf";
    let lines = text.lines().filter_map(|l| l.trim().strip_prefix("nameserver"));
    let servers: Vec<&str> = lines.map(str::trim).collect();
    let mend = "set a name server of your network in /etc/resolv.conf";
    let loopback = |s: &&str| s.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if servers.is_empty() {
        Finding::missing(check, "no name server: no image can be pulled", mend)
    } else if servers.iter().all(loopback) {
        let found = format!("{}: pods cannot reach the loopback of this machine", servers.join(", "));
        Finding::warning(check, found, mend)
    } else if servers.len() > 3 {
        Finding::warning(check, format!("{} name servers: pods get the first three", servers.len()), "keep three")
    } else {
        Finding::ok(check, servers.join(", "))
    }
}

/// What each dhcpcd that runs was called with.
fn dhcpcd_arguments() -> Vec<Vec<String>> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|e| e.path());
    let those = processes.filter(|dir| fs::read_to_string(dir.join("comm")).is_ok_and(|name| name.trim() == "dhcpcd"));
    let arguments = those.filter_map(|dir| fs::read_to_string(dir.join("cmdline")).ok());
    arguments.map(|line| line.split('\0').skip(1).filter(|a| !a.is_empty()).map(str::to_owned).collect()).collect()
}

/// dhcpcd that is given no interface takes every link for a network of the machine, those of pods too, unless it is told not to.
fn dhcpcd(running: &[Vec<String>], conf: &str, bridge: &str) -> Option<Finding> {
    let master = running.iter().any(|arguments| arguments.iter().all(|a| a.starts_with('-')));
    let lines = conf.lines().map(|l| l.split('#').next().unwrap_or_default());
    let words: Vec<Vec<&str>> = lines.map(|l| l.split([' ', '\t', ',']).filter(|w| !w.is_empty()).collect()).collect();
    let of = |key: &'static str| words.iter().filter(move |w| w.first() == Some(&key)).flat_map(|w| w[1..].iter());
    let covers = |pattern: &&str, name: &str| {
        pattern.strip_suffix('*').map_or(**pattern == *name, |start| name.starts_with(start))
    };
    let denied = |name: &str| of("denyinterfaces").any(|pattern| covers(pattern, name));
    if !master || of("allowinterfaces").next().is_some() || (denied("veth0") && denied(bridge)) {
        return None;
    }
    let found = "takes the links of pods for networks of this node: it may lose its own address";
    let mend = format!("add `denyinterfaces veth* {bridge}` to /etc/dhcpcd.conf, and restart dhcpcd");
    Some(Finding::warning("dhcpcd", found, mend))
}

/// The network.
pub fn check(plan: &Plan, root: bool, kernel: &Kernel) -> Vec<Finding> {
    let mut findings = if root { tried(kernel) } else { told(kernel) };
    findings.push(bridged_packets(Path::new("/proc/sys/net/bridge").exists(), kernel));
    let file = "/proc/sys/net/ipv4/ip_forward";
    let writable = nix::unistd::access(file, nix::unistd::AccessFlags::W_OK) != Err(nix::errno::Errno::EROFS);
    findings.push(forwarding(&read(file), writable));
    let socket = plan.state_dir.join("agent.sock");
    // others than root may not enter, but see that there is one
    let own_agent = match UnixStream::connect(&socket) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
    };
    findings.push(port(plan.address, plan.port, "--port", own_agent));
    if plan.healthz_port != 0 {
        findings.push(port(IpAddr::from([127, 0, 0, 1]), plan.healthz_port, "--healthz-port", own_agent));
    }
    findings.push(name_servers(&host_resolv_conf(plan.resolv_conf.as_deref())));
    if root {
        // who cannot look at nftables has been told so above
        let told = obstacles(&plan.bridge).unwrap_or_default();
        findings
            .extend(told.into_iter().map(|found| Finding::warning("firewall", found, "let packets of pods through")));
    }
    let conf = read("/etc/dhcpcd.conf");
    findings.extend(dhcpcd(&dhcpcd_arguments(), &conf, &plan.bridge));
    findings
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn name_servers_pods_can_use() {
        let state = |text| name_servers(text).state;
        assert_eq!(state("nameserver 192.168.1.1\nsearch home\n"), State::Ok);
        assert_eq!(state("# nothing\n"), State::Missing);
        assert_eq!(state("nameserver 127.0.0.1\nnameserver ::1\n"), State::Warning);
        assert_eq!(
            state("nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4\n"),
            State::Warning
        );
    }

    #[test]
    fn dhcpcd_leaves_links_of_pods_alone() {
        let arguments = |all: &[&str]| vec![all.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>()];
        let told = |running: &[Vec<String>], conf: &str| dhcpcd(running, conf, "pikelet0").is_some();
        let master = arguments(&["-q", "-b"]);
        assert!(told(&master, "hostname\n") && !told(&[], "") && !told(&arguments(&["-q", "eth0"]), ""));
        assert!(told(&master, "denyinterfaces veth*\n") && told(&master, "#denyinterfaces veth* pikelet0\n"));
        assert!(!told(&master, "denyinterfaces veth* pikelet0\n") && !told(&master, "denyinterfaces veth*,pike*\n"));
        assert!(!told(&master, "allowinterfaces eth0 wlan0\n"));
    }

    #[test]
    fn who_listens_on_a_port() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = port(IpAddr::from([127, 0, 0, 1]), held.local_addr().unwrap().port(), "--port", false);
        assert!(
            taken.state == State::Missing && taken.found.contains(&format!("(pid {})", std::process::id())),
            "{taken:?}"
        );
    }

    #[test]
    fn forwarding_is_turned_on_where_it_can_be() {
        let states = [("1\n", false), ("0\n", true), ("0\n", false)].map(|(v, w)| forwarding(v, w).state);
        assert_eq!(states, [State::Ok, State::Ok, State::Missing]);
    }

    #[test]
    fn the_missing_part_of_nftables_is_named() {
        let kernel = |lines: &str| Kernel::of(lines, "kernel/net/netfilter/nf_tables.ko:\n");
        let on = "CONFIG_NF_TABLES=m\nCONFIG_NF_TABLES_IPV4=y\nCONFIG_NFT_NAT=y\n";
        assert_eq!(culprit(PARTS[3], &kernel(on)), ("NFT_MASQ", "nft_masq"));
        assert_eq!(culprit(PARTS[3], &kernel(&format!("{on}CONFIG_NFT_MASQ=y\n"))), ("NF_TABLES", "nf_tables"));
        assert_eq!(culprit(PARTS[1], &kernel("")), ("VETH", "veth"));
        assert_eq!(culprit(PARTS[7], &kernel("CONFIG_NET_SCH_TBF=y\nCONFIG_IFB=y\n")).0, "NFT_FWD_NETDEV");
        let states: Vec<State> = told(&kernel(on)).iter().map(|f| f.state).collect();
        assert_eq!(states[..4], [State::Missing, State::Missing, State::Warning, State::Missing]);
    }
}
