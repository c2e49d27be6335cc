//! Programs of this machine that listen at ports: a port of a pod would take theirs away.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::resolv::Parsed;
use super::table::STUBS;
use super::types::{HostPort, NetworkError, Protocol};

/// `TCP_LISTEN` in `/proc/net/tcp`, and `TCP_CLOSE` in `/proc/net/udp`, of a socket that takes what comes from anybody.
const LISTEN: &str = "0A";
const UNCONNECTED: &str = "07";
/// DNS.
const DOMAIN: u16 = 53;
/// By these a person reaches the machine, whatever the port.
const LOGINS: [&str; 2] = ["sshd", "dropbear"];

/// A socket at which somebody listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Listener {
    protocol: Protocol,
    ip: IpAddr,
    port: u16,
    /// Its number on the machine.
    inode: u64,
}

/// An address as `/proc/net/tcp` has it: words of four bytes, each as this machine has numbers.
fn address(hex: &str) -> Option<IpAddr> {
    let words: Option<Vec<[u8; 4]>> = (0..hex.len() / 8)
        .map(|n| u32::from_str_radix(hex.get(n * 8..n * 8 + 8)?, 16).ok().map(u32::to_ne_bytes))
        .collect();
    match words?.as_slice() {
        [one] => Some(Ipv4Addr::from(*one).into()),
        all @ [_, _, _, _] => {
            let bytes: [u8; 16] = all.concat().try_into().ok()?;
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

/// Who listens, of the lines of `/proc/net/tcp` and the like.
fn of(text: &str, protocol: Protocol, state: &str) -> Vec<Listener> {
    let listens = |line: &str| {
        let mut fields = line.split_whitespace();
        let (ip, port) = fields.nth(1)?.rsplit_once(':')?;
        fields.nth(1).filter(|s| *s == state)?;
        let port = u16::from_str_radix(port, 16).ok()?;
        Some(Listener { protocol, ip: address(ip)?, port, inode: fields.nth(5)?.parse().ok()? })
    };
    text.lines().filter_map(listens).collect()
}

/// Who listens in the network namespace this thread is in.
fn listeners(protocol: Protocol) -> Vec<Listener> {
    let (name, state) = match protocol {
        Protocol::Tcp => ("tcp", LISTEN),
        Protocol::Udp => ("udp", UNCONNECTED),
        // its sockets are told of by a module that few machines have
        Protocol::Sctp => return Vec::new(),
    };
    let read = |name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
    of(&(read(name.to_owned()) + &read(format!("{name}6"))), protocol, state)
}

/// Name and pid of a process, by the sockets it has.
type Owners = BTreeMap<u64, (String, u32)>;

/// The number of the socket behind a link below `/proc/PID/fd`.
fn socket(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Which processes have these sockets; only root sees those of others.
fn owners(inodes: &BTreeSet<u64>) -> Owners {
    let mut owners = Owners::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in processes.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()) {
        if owners.len() == inodes.len() {
            break;
        }
        let dir = Path::new("/proc").join(pid.to_string());
        let files = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
        let sockets = files.filter_map(|f| socket(&fs::read_link(f.path()).ok()?));
        for inode in sockets.filter(|inode| inodes.contains(inode)) {
            owners
                .entry(inode)
                .or_insert_with(|| (fs::read_to_string(dir.join("comm")).unwrap_or_default().trim().to_owned(), pid));
        }
    }
    owners
}

/// The program that listens on a TCP port, at whatever address, if that can be seen.
pub fn who_listens(port: u16) -> Option<String> {
    let there: BTreeSet<u64> = listeners(Protocol::Tcp).iter().filter(|l| l.port == port).map(|l| l.inode).collect();
    let (name, pid) = owners(&there).into_values().next()?;
    Some(format!("{name} (pid {pid})"))
}

/// True when a port of a pod leads packets away that a program at `listens` would have had.
fn takes(port: &HostPort, listens: IpAddr) -> bool {
    match port.ip.filter(|ip| !ip.is_unspecified()) {
        // what listens at loopback has 127.0.0.1 for itself
        None => !STUBS.map(IpAddr::from).contains(&listens),
        Some(ip) => ip == listens || listens.is_unspecified(),
    }
}

/// True when this machine's own programs ask for names at `listens`, and `port` leads what they ask away: without answers no
/// image is pulled.
fn answers_names(resolv_conf: &str, port: &HostPort, listens: IpAddr) -> bool {
    let mut servers = Parsed::of(resolv_conf).servers.into_iter().filter_map(|s| s.parse::<IpAddr>().ok());
    servers.any(|ip| ip.is_loopback() && takes(port, ip) && (ip == listens || listens.is_unspecified()))
}

/// What of this machine ports of pods may be in the way of.
struct Seen {
    listeners: Vec<Listener>,
    owners: Owners,
    resolv_conf: String,
}

impl Seen {
    /// Looks once, however many ports there are.
    fn of(ports: &[HostPort]) -> Self {
        let wanted = |protocol: &Protocol| ports.iter().any(|p| p.protocol == *protocol);
        let listeners: Vec<Listener> =
            [Protocol::Tcp, Protocol::Udp].into_iter().filter(wanted).flat_map(listeners).collect();
        let taken: BTreeSet<(u8, u16)> = ports.iter().map(|p| (p.protocol.number(), p.port)).collect();
        let met = listeners.iter().filter(|l| taken.contains(&(l.protocol.number(), l.port)));
        let owners = owners(&met.map(|l| l.inode).collect());
        Self { listeners, owners, resolv_conf: fs::read_to_string("/etc/resolv.conf").unwrap_or_default() }
    }

    fn is_kept(&self, port: &HostPort, there: &Listener, kept: &[u16]) -> bool {
        let login = || {
            let owner = self.owners.get(&there.inode);
            owner.is_some_and(|(name, _)| LOGINS.iter().any(|login| name.starts_with(login)))
        };
        let own = port.protocol == Protocol::Tcp && (kept.contains(&port.port) || login());
        own || (port.port == DOMAIN && answers_names(&self.resolv_conf, port, there.ip))
    }

    fn program(&self, there: &Listener) -> String {
        self.owners.get(&there.inode).map_or_else(String::new, |(name, pid)| format!("{name}, pid {pid}, "))
    }

    fn check(&self, ports: &[HostPort], kept: &[u16]) -> Result<Vec<String>, NetworkError> {
        let mut told = Vec::new();
        for port in ports {
            let met = |l: &&Listener| (l.protocol, l.port) == (port.protocol, port.port) && takes(port, l.ip);
            let mut there = self.listeners.iter().filter(met);
            if let Some(l) = there.clone().find(|l| self.is_kept(port, l, kept)) {
                return Err(NetworkError::Kept { port: port.port, program: self.program(l), listens: l.ip });
            }
            // one of them is enough for a person to see it
            told.extend(there.next().map(|l| {
                format!(
                    "hostPort {}: a program of this node listens there ({}at {}): what is meant for it leads to this pod",
                    port.port,
                    self.program(l),
                    l.ip
                )
            }));
        }
        Ok(told)
    }
}

/// Refuses ports that keep this machine in reach while somebody listens there: those of `kept`, those of programs by which
/// people log in, and that of its own name server. Which other programs lose theirs is in the answer.
pub fn check(ports: &[HostPort], kept: &[u16]) -> Result<Vec<String>, NetworkError> {
    Seen::of(ports).check(ports, kept)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    fn tcp(port: u16, ip: Option<&str>) -> HostPort {
        HostPort { ip: ip.map(|ip| ip.parse().unwrap()), protocol: Protocol::Tcp, port, container_port: 80 }
    }

    #[test]
    fn what_keeps_the_node_in_reach_is_no_pods() {
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let v6 = TcpListener::bind("[::]:0").unwrap();
        let port = |listener: &TcpListener, ip| tcp(listener.local_addr().unwrap().port(), ip);
        let refused = |port: HostPort, kept: &[u16]| check(&[port], kept).is_err();
        for (listener, ip, is) in
            [(&v4, None, true), (&v4, Some("192.0.2.1"), false), (&v6, None, true), (&v6, Some("192.0.2.1"), true)]
        {
            let port = port(listener, ip);
            assert_eq!(refused(port, &[port.port]), is, "{port:?}");
            assert!(!refused(port, &[22]), "others are told");
            assert!(!refused(HostPort { protocol: Protocol::Udp, ..port }, &[port.port]));
        }
        let said = check(&[port(&v4, None)], &[port(&v4, None).port]).unwrap_err().to_string();
        let own = format!("pid {}, at 127.0.0.1", std::process::id());
        assert!(said.contains(&own), "{said}");
        let told = check(&[port(&v4, None)], &[22]).unwrap();
        assert!(told.len() == 1 && told[0].contains(&own), "{told:?}");
    }

    #[test]
    fn udp_is_told_of() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let udp = HostPort { protocol: Protocol::Udp, ..tcp(port, None) };
        assert_eq!((check(&[udp], &[port]).unwrap().len(), check(&[tcp(port, None)], &[]).unwrap().len()), (1, 0));
        socket.connect("127.0.0.1:9").unwrap();
        assert!(check(&[udp], &[]).unwrap().is_empty(), "a client is nobody's server");
    }

    #[test]
    fn the_stub_of_resolved_stays_the_machines() {
        let stub = IpAddr::from([127, 0, 0, 53]);
        assert!(!takes(&tcp(53, None), stub) && !takes(&tcp(53, Some("0.0.0.0")), stub));
        assert!(takes(&tcp(53, Some("127.0.0.53")), stub) && takes(&tcp(53, None), IpAddr::from([127, 0, 0, 1])));
    }

    #[test]
    fn the_machine_keeps_its_own_name_server() {
        let (one, any) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0]));
        let own = "nameserver 127.0.0.1\nnameserver 9.9.9.9\n";
        let all = tcp(53, None);
        assert!(answers_names(own, &all, one) && answers_names(own, &all, any));
        assert!(!answers_names(own, &all, IpAddr::from([192, 168, 1, 2])));
        assert!(!answers_names("nameserver 9.9.9.9\n", &all, any));
        let at = |ip| answers_names(own, &tcp(53, Some(ip)), any);
        assert!(at("0.0.0.0") && at("127.0.0.1"));
        assert!(!at("192.168.1.5"), "127.0.0.1 stays the machine's");
        assert!(!answers_names("nameserver 127.0.0.53\n", &all, any), "so does the stub");
    }

    #[test]
    fn each_who_listens_there_counts() {
        let listener = |protocol, ip, port, inode| Listener { protocol, ip: IpAddr::from(ip), port, inode };
        let seen = Seen {
            listeners: vec![
                listener(Protocol::Udp, [192, 168, 122, 1], 53, 1),
                listener(Protocol::Udp, [127, 0, 0, 1], 53, 2),
                listener(Protocol::Tcp, [192, 168, 122, 1], 2222, 3),
                listener(Protocol::Tcp, [192, 168, 1, 5], 2222, 4),
            ],
            owners: [(1, "dnsmasq"), (2, "unbound"), (3, "proxy"), (4, "sshd")]
                .map(|(inode, name)| (inode, (name.to_owned(), 10 + inode as u32)))
                .into(),
            resolv_conf: "nameserver 127.0.0.1\n".to_owned(),
        };
        let said = |port: HostPort| seen.check(&[port], &[]).map_err(|e| e.to_string());
        let udp = |ip| HostPort { protocol: Protocol::Udp, ..tcp(53, ip) };
        for (port, whose) in [(udp(None), "unbound, pid 12, at 127.0.0.1"), (tcp(2222, None), "sshd, pid 14, ")] {
            let error = said(port).unwrap_err();
            assert!(error.contains(whose), "{error}");
        }
        for (port, whose) in
            [(udp(Some("192.168.122.1")), "dnsmasq, pid 11, "), (tcp(2222, Some("192.168.122.1")), "proxy")]
        {
            let told = said(port).unwrap();
            assert!(told.len() == 1 && told[0].contains(whose), "{told:?}");
        }
        assert!(said(tcp(53, None)).unwrap().is_empty(), "of the other protocol");
    }

    #[test]
    fn who_listens_is_known() {
        let line =
            "   1: 0100007F:280A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0";
        let one = Listener { protocol: Protocol::Tcp, ip: IpAddr::from([127, 0, 0, 1]), port: 10250, inode: 4711 };
        assert_eq!(of(line, Protocol::Tcp, LISTEN), vec![one]);
        assert!(of(line, Protocol::Tcp, UNCONNECTED).is_empty());
        assert_eq!([socket(Path::new("socket:[4711]")), socket(Path::new("pipe:[4711]"))], [Some(4711), None]);
    }
}
