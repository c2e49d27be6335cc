//! Programs of this machine that listen at ports: a port of a pod would take theirs away.

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
    ip: IpAddr,
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

/// Who listens on `port`, of the lines of `/proc/net/tcp` and the like.
fn at(text: &str, port: u16, state: &str) -> Vec<Listener> {
    let listens = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (ip, own) = fields.get(1)?.rsplit_once(':')?;
        let here = u16::from_str_radix(own, 16) == Ok(port) && *fields.get(3)? == state;
        Some(Listener { ip: address(ip).filter(|_| here)?, inode: fields.get(9)?.parse().ok()? })
    };
    text.lines().filter_map(listens).collect()
}

/// Who listens on a port of the network namespace this thread is in.
fn listeners(protocol: Protocol, port: u16) -> Vec<Listener> {
    let (name, state) = match protocol {
        Protocol::Tcp => ("tcp", LISTEN),
        Protocol::Udp => ("udp", UNCONNECTED),
        // its sockets are told of by a module that few machines have
        Protocol::Sctp => return Vec::new(),
    };
    let read = |name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
    at(&(read(name.to_owned()) + &read(format!("{name}6"))), port, state)
}

/// Name and pid of the process that has the socket; only root sees those of others.
fn owner(inode: u64) -> Option<(String, u32)> {
    let link = format!("socket:[{inode}]");
    let has = |dir: &Path| {
        let files = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
        files.filter_map(|f| fs::read_link(f.path()).ok()).any(|l| l.as_os_str() == link.as_str())
    };
    let mut pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.find(|pid| has(&Path::new("/proc").join(pid.to_string())))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some((name.trim().to_owned(), pid))
}

/// The program that listens on a TCP port, at whatever address, if that can be seen.
pub fn who_listens(port: u16) -> Option<String> {
    let (name, pid) = listeners(Protocol::Tcp, port).into_iter().find_map(|l| owner(l.inode))?;
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

/// True when this machine's own programs ask for names at `listens`: without answers no image is pulled.
fn answers_names(resolv_conf: &str, listens: IpAddr) -> bool {
    let mut servers = Parsed::of(resolv_conf).servers.into_iter().filter_map(|s| s.parse::<IpAddr>().ok());
    servers.any(|ip| ip.is_loopback() && (ip == listens || listens.is_unspecified()))
}

/// Refuses ports that keep this machine in reach while somebody listens there: those of `kept`, those of programs by which
/// people log in, and that of its own name server. Which other programs lose theirs is in the answer.
pub fn check(ports: &[HostPort], kept: &[u16]) -> Result<Vec<String>, NetworkError> {
    let mut told = Vec::new();
    for port in ports {
        let Some(there) = listeners(port.protocol, port.port).into_iter().find(|l| takes(port, l.ip)) else { continue };
        let owner = owner(there.inode);
        let login = owner.as_ref().is_some_and(|(name, _)| LOGINS.iter().any(|login| name.starts_with(login)));
        let own = port.protocol == Protocol::Tcp && (kept.contains(&port.port) || login);
        let program = owner.map_or_else(String::new, |(name, pid)| format!("{name}, pid {pid}, "));
        let names = || answers_names(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default(), there.ip);
        if own || (port.port == DOMAIN && names()) {
            return Err(NetworkError::Kept { port: port.port, program, listens: there.ip });
        }
        told.push(format!(
            "hostPort {}: a program of this node listens there ({program}at {}): what is meant for it leads to this pod",
            port.port, there.ip
        ));
    }
    Ok(told)
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
        assert!(answers_names(own, one) && answers_names(own, any));
        assert!(!answers_names(own, IpAddr::from([192, 168, 1, 2])) && !answers_names("nameserver 9.9.9.9\n", any));
    }

    #[test]
    fn who_listens_is_known() {
        let line =
            "   1: 0100007F:280A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0";
        let one = Listener { ip: IpAddr::from([127, 0, 0, 1]), inode: 4711 };
        assert_eq!(at(line, 10250, LISTEN), vec![one]);
        assert!(at(line, 10251, LISTEN).is_empty() && at(line, 10250, UNCONNECTED).is_empty());
    }
}
