//! The kernel's notices that links, addresses, routes, forwarding or rules have changed: who waits for them costs nothing.

use std::io;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::sync::watch;

use super::wire::{self, Message};

/// `RTNLGRP_LINK`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV6_IFADDR`, `_IPV6_ROUTE`, `_IPV4_NETCONF` and `_IPV6_NETCONF`
/// (include/uapi/linux/rtnetlink.h).
const ROUTE_GROUPS: [u32; 7] = [1, 5, 7, 9, 11, 24, 25];
/// `NFNLGRP_NFTABLES` (include/uapi/linux/netfilter/nfnetlink.h).
const RULE_GROUPS: [u32; 1] = [7];
/// `IFLA_IFNAME`, `RTA_DST`, `NETCONFA_IFINDEX`, and the value of the latter for all interfaces.
const LINK_NAME: u16 = 3;
const DESTINATION: u16 = 1;
const INTERFACE: u16 = 1;
const ALL: i32 = -1;
/// `NFT_MSG_DELTABLE`, `NFT_MSG_NEWGEN` and `NFPROTO_NETDEV`.
const TABLE_GONE: u8 = 2;
const GENERATION: u8 = 15;
const LINKS: u8 = 5;
/// `RT_SCOPE_LINK`: what is narrower is of no use to others.
const SCOPE_LINK: u8 = 253;
/// `RT_TABLE_MAIN` and `RTN_UNICAST`.
const MAIN: u8 = 254;
const UNICAST: u8 = 1;
/// Bytes read at a time.
const READ: usize = 64 * 1024;

/// True for what may matter to the node: links of pods come and go all the time.
fn matters(message: Message<'_>) -> bool {
    let byte = |at: usize| message.body.get(at).copied().unwrap_or_default();
    let after = |at: usize| message.body.get(at..).unwrap_or_default();
    match message.kind {
        // RTM_NEWLINK, RTM_DELLINK
        16 | 17 => wire::attribute(after(16), LINK_NAME)
            .is_none_or(|name| !name.starts_with(b"veth") && !name.starts_with(b"ifb")),
        // RTM_NEWADDR, RTM_DELADDR
        20 | 21 => byte(3) < SCOPE_LINK,
        // RTM_NEWROUTE, RTM_DELROUTE
        24 | 25 => {
            let link_local = |to: &[u8]| to.len() == 16 && to[0] == 0xfe && to[1] & 0xc0 == 0x80;
            byte(4) == MAIN && byte(7) == UNICAST && !wire::attribute(after(12), DESTINATION).is_some_and(link_local)
        }
        // RTM_NEWNETCONF
        80 => wire::attribute(after(4), INTERFACE).is_some_and(|index| index == ALL.to_ne_bytes()),
        _ => false,
    }
}

/// True for what may matter to the rules: chains of links come and go with pods.
fn filters(message: Message<'_>) -> bool {
    match message.kind.to_le_bytes()[0] {
        // it follows on each of the others
        GENERATION => false,
        TABLE_GONE => true,
        _ => message.body.first() != Some(&LINKS),
    }
}

fn socket(protocol: isize, groups: &[u32]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    for group in groups {
        socket.socket_mut().add_membership(*group)?;
    }
    Ok(socket)
}

async fn hear(socket: TokioSocket, counts: fn(Message<'_>) -> bool, tell: watch::Sender<u64>) {
    let mut buffer = Vec::with_capacity(READ);
    loop {
        buffer.clear();
        let told = match socket.recv(&mut buffer).await {
            Ok(()) => wire::messages(&buffer).any(counts),
            // more came than the socket could take
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => true,
            Err(error) => {
                tracing::warn!(%error, "changes of this machine's network are not noticed any more");
                return;
            }
        };
        if told {
            tell.send_modify(|n| *n += 1);
        }
    }
}

/// Counts the changes of links, addresses, routes and forwarding, and those of rules, in `tell`. Needs a runtime.
pub fn listen(links: watch::Sender<u64>, rules: watch::Sender<u64>) -> io::Result<()> {
    tokio::spawn(hear(socket(NETLINK_ROUTE, &ROUTE_GROUPS)?, matters, links));
    match socket(NETLINK_NETFILTER, &RULE_GROUPS) {
        Ok(socket) => drop(tokio::spawn(hear(socket, filters, rules))),
        // a kernel without nftables has no rules that change
        Err(error) => tracing::debug!(%error, "no notices of nftables"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(kind: u16, head: &[u8], attributes: &[(u16, &[u8])]) -> bool {
        let mut body = head.to_vec();
        for (kind, value) in attributes {
            body.extend((4 + value.len() as u16).to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        matters(Message { kind, body: &body })
    }

    #[test]
    fn what_pods_do_is_no_change_of_the_node() {
        assert!(told(16, &[0; 16], &[(3, b"eth0\0")]) && !told(16, &[0; 16], &[(3, b"veth0123\0")]));
        assert!(!told(16, &[0; 16], &[(3, b"ifb-0123\0")]));
        assert!(told(20, &[2, 24, 0, 0, 1, 0, 0, 0], &[]) && !told(20, &[10, 64, 0, 253, 1, 0, 0, 0], &[]));
        let route = [10, 64, 0, 0, MAIN, 2, 0, UNICAST, 0, 0, 0, 0];
        assert!(
            told(24, &route, &[(1, &[0x20; 16])])
                && !told(24, &route, &[(1, &[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])])
        );
        assert!(
            told(80, &[2, 0, 0, 0], &[(1, &ALL.to_ne_bytes())])
                && !told(80, &[2, 0, 0, 0], &[(1, &7_i32.to_ne_bytes())])
        );
        assert!(!told(28, &[0; 12], &[]), "neighbours");
    }
}
