//! What a pod sends in the name of others, by frames made by hand, and what another pod hears of it.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, bind, socket, sockopt};
use nix::sys::time::TimeVal;

use super::*;

const MARK: &[u8; 4] = b"pose";
const OWN: [u8; 6] = [0x0a, 0x58, 10, 9, 0, 2];
const OTHER: [u8; 6] = [0x0a, 0x58, 10, 9, 0, 3];
/// Who asks or says so is nobody's pod.
const NOBODY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

/// A socket for whole frames at `eth0` of this namespace.
fn raw() -> File {
    let kind = (SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll);
    let socket = socket(AddressFamily::Packet, kind.0, kind.1, kind.2).unwrap();
    let link =
        getifaddrs().unwrap().filter(|i| i.interface_name == "eth0").find_map(|i| i.address?.as_link_addr().copied());
    bind(socket.as_raw_fd(), &link.unwrap()).unwrap();
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000)).unwrap();
    socket.into()
}

/// To all of the link.
fn frame(from: [u8; 6], kind: u16, body: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &from, &kind.to_be_bytes(), body].concat()
}

fn arp(from: [u8; 6], operation: u8, hardware: [u8; 6], ip: &str) -> Vec<u8> {
    let ip: Ipv4Addr = ip.parse().unwrap();
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    frame(from, 0x0806, &[&head[..], &hardware, &ip.octets(), &[0; 6], &[10, 9, 0, 9]].concat())
}

fn v4(from: [u8; 6], ip: &str) -> Vec<u8> {
    let ip: Ipv4Addr = ip.parse().unwrap();
    let mut header = [&[0x45, 0, 0, 40, 0, 0, 0, 0, 64, 17, 0, 0][..], &ip.octets(), &[10, 9, 0, 3]].concat();
    let sum: u32 = header.chunks(2).map(|b| u32::from(u16::from_be_bytes([b[0], b[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let udp = [0x30, 0x39, 0x30, 0x39, 0, 20, 0, 0];
    frame(from, 0x0800, &[&header[..], &udp].concat())
}

fn v6(from: [u8; 6], ip: Ipv6Addr, icmp: u8, about: &str) -> Vec<u8> {
    let about: Ipv6Addr = about.parse().unwrap();
    let to: Ipv6Addr = "ff02::1".parse().unwrap();
    let header = [&[0x60, 0, 0, 0, 0, 36, 58, 255][..], &ip.octets(), &to.octets()].concat();
    frame(from, 0x86dd, &[&header[..], &[icmp, 0, 0, 0, 0x20, 0, 0, 0], &about.octets()].concat())
}

fn tagged(plain: &[u8]) -> Vec<u8> {
    [&plain[..12], &[0x81, 0, 0, 0], &plain[12..]].concat()
}

/// Which of `frames` another pod hears when `from` sends them.
fn heard(from: &Place, by: &Place, frames: &[(&'static str, Vec<u8>)]) -> Vec<&'static str> {
    let (sender, listener) = (from.within(raw), by.within(raw));
    for (number, (_, frame)) in frames.iter().enumerate() {
        let marked = [frame, &MARK[..], &[number as u8], &[0; 7]].concat();
        (&sender).write_all(&marked).unwrap();
    }
    let (mut found, mut buffer) = (vec![false; frames.len()], [0; 2048]);
    let until = Instant::now() + AT_ONCE;
    while Instant::now() < until {
        match (&listener).read(&mut buffer) {
            Ok(length) => {
                let mark = buffer[..length].windows(5).find(|w| w.starts_with(MARK));
                if let Some(known) = mark.and_then(|m| found.get_mut(usize::from(m[4]))) {
                    *known = true;
                }
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    frames.iter().zip(found).filter(|(_, found)| *found).map(|((name, _), _)| *name).collect()
}

#[test]
fn a_pod_speaks_for_itself_alone() {
    on_a_machine("pose", |machine| speaks_for_itself(machine, Bandwidth::default()));
}

#[test]
fn a_pod_with_a_limit_speaks_for_itself_alone() {
    on_a_machine("pose-limited", |machine| {
        speaks_for_itself(machine, Bandwidth { ingress: Some(100_000_000), egress: Some(100_000_000) });
    });
}

fn speaks_for_itself(machine: &Machine, bandwidth: Bandwidth) {
    let (pod, ips) = machine.limited_pod("one", &[], bandwidth);
    let (other, _) = machine.pod("two", &[]);
    let own: Ipv6Addr = ips.ips[1].to_string().parse().unwrap();
    let own_local: Ipv6Addr = "fe80::858:aff:fe09:2".parse().unwrap();
    let router: Ipv6Addr = "fe80::1".parse().unwrap();
    let (its_own, others) = ("fd09::2", "fd09::3");
    let true_ones = vec![
        ("IPv4", v4(OWN, "10.9.0.2")),
        ("ARP question", arp(OWN, 1, OWN, "10.9.0.2")),
        ("ARP answer", arp(OWN, 2, OWN, "10.9.0.2")),
        ("IPv6", v6(OWN, own, 128, others)),
        ("IPv6 of the link", v6(OWN, own_local, 128, others)),
        ("solicitation", v6(OWN, own, 135, others)),
        ("advertisement", v6(OWN, own, 136, its_own)),
        ("advertisement of the link's", v6(OWN, own_local, 136, "fe80::858:aff:fe09:2")),
        ("own address is looked for", v6(OWN, NOBODY, 135, its_own)),
        ("report of a listener", v6(OWN, NOBODY, 143, "::")),
    ];
    let forged = vec![
        ("IPv4 of another", v4(OWN, "10.9.0.3")),
        ("IPv4 of the gateway", v4(OWN, "10.9.0.1")),
        ("IPv4 of a far one", v4(OWN, "192.0.2.1")),
        ("IPv4 of a link", v4(OWN, "169.254.1.1")),
        ("IPv4 in a tag", tagged(&v4(OWN, "10.9.0.3"))),
        ("hardware address of another", v4(OTHER, "10.9.0.2")),
        ("ARP answer for the gateway", arp(OWN, 2, OWN, "10.9.0.1")),
        ("ARP question of another", arp(OWN, 1, OWN, "10.9.0.3")),
        ("ARP of another's hardware", arp(OWN, 2, OTHER, "10.9.0.2")),
        ("ARP in a tag", tagged(&arp(OWN, 2, OWN, "10.9.0.1"))),
        ("IPv6 of another", v6(OWN, others.parse().unwrap(), 128, others)),
        ("IPv6 of the gateway", v6(OWN, "fd09::1".parse().unwrap(), 128, others)),
        ("IPv6 of another's link", v6(OWN, "fe80::858:aff:fe09:3".parse().unwrap(), 128, others)),
        ("advertisement for another", v6(OWN, own, 136, others)),
        ("advertisement for the gateway", v6(OWN, own_local, 136, "fd09::1")),
        ("router advertisement", v6(OWN, own_local, 134, "::")),
        ("router advertisement of a router", v6(OWN, router, 134, "::")),
        ("redirect", v6(OWN, own_local, 137, others)),
        ("another's address is looked for", v6(OWN, NOBODY, 135, others)),
        ("another protocol", frame(OWN, 0x88b5, &[0; 40])),
    ];
    let names = |frames: &[(&'static str, Vec<u8>)]| frames.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    let all = [true_ones.clone(), forged].concat();
    assert_eq!(heard(&pod, &other, &all), names(&true_ones));
    machine.noticed(machine.network.rules_changed(), || {
        machine.place.within(|| nft::remove("test0").unwrap());
    });
    assert_eq!(heard(&pod, &other, &all).len(), all.len(), "without rules all of it is heard");
    machine.settle(&["10.9.0.0/24", "fd09::/64"]).unwrap();
    assert_eq!(heard(&pod, &other, &all), names(&true_ones), "they come back");
    for name in ["one", "two"] {
        machine.remove(name);
    }
    assert!(machine.place.within(|| nft::guards("test0").unwrap()).is_empty(), "and go with the pods");
}
