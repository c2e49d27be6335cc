//! Programs of this machine that listen at ports: a port of a pod would take theirs away.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::types::{HostPort, NetworkError, Protocol};

/// State `TCP_LISTEN` in `/proc/net/tcp`.
const LISTEN: &str = "0A";

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

/// Where somebody listens on `port`, of the lines of `/proc/net/tcp` and `tcp6`.
fn at(text: &str, port: u16) -> Vec<IpAddr> {
    let listens = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (ip, own) = fields.get(1)?.rsplit_once(':')?;
        let here = u16::from_str_radix(own, 16) == Ok(port) && *fields.get(3)? == LISTEN;
        address(ip).filter(|_| here)
    };
    text.lines().filter_map(listens).collect()
}

/// True when a port of a pod leads packets away that a program at `listens` would have had.
fn takes(port: &HostPort, listens: IpAddr) -> bool {
    match port.ip.filter(|ip| !ip.is_unspecified()) {
        // what listens at loopback has 127.0.0.1 for itself
        None => true,
        Some(ip) => ip == listens || listens.is_unspecified(),
    }
}

/// Refuses ports of `kept` at which somebody listens, and says when other programs lose theirs.
pub fn check(ports: &[HostPort], kept: &[u16]) -> Result<(), NetworkError> {
    if !ports.iter().any(|p| p.protocol == Protocol::Tcp) {
        return Ok(());
    }
    // of the namespace this thread is in
    let read = |name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
    let text = read("tcp") + &read("tcp6");
    for port in ports.iter().filter(|p| p.protocol == Protocol::Tcp) {
        let Some(listens) = at(&text, port.port).into_iter().find(|ip| takes(port, *ip)) else { continue };
        if kept.contains(&port.port) {
            return Err(NetworkError::Kept { port: port.port, listens });
        }
        tracing::warn!(port = port.port, %listens, "a program of this node listens at a port that leads to a pod from now on");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_keeps_the_node_in_reach_is_no_pods() {
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let v6 = TcpListener::bind("[::]:0").unwrap();
        let port = |listener: &TcpListener, ip: Option<&str>| HostPort {
            ip: ip.map(|ip| ip.parse().unwrap()),
            protocol: Protocol::Tcp,
            port: listener.local_addr().unwrap().port(),
            container_port: 80,
        };
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
        assert!(said.contains("127.0.0.1"), "{said}");
    }
}
