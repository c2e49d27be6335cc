//! Connections the kernel tracks: those of UDP outlive the pod they lead to, as long as their clients go on (`nf_conntrack`).

use std::io;
use std::net::IpAddr;
use std::ops::ControlFlow;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NetlinkPayload};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};

use super::netfilter;

fn request(family: NetfilterProtoFamily, message: ConntrackMessage, flags: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message);
    netfilter::append(&mut bytes, message, flags, 0);
    bytes
}

/// Where the client of a UDP connection sends to.
fn destination(original: &[Tuple]) -> Option<(IpAddr, u16)> {
    let (mut ip, mut port, mut udp) = (None, None, false);
    for tuple in original {
        match tuple {
            Tuple::Ip(parts) => {
                for part in parts {
                    if let IPTuple::DestinationAddress(to) = part {
                        ip = Some(*to);
                    }
                }
            }
            Tuple::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::Protocol(protocol) => udp = *protocol == Protocol::Udp,
                        ProtoTuple::DestinationPort(to) => port = Some(*to),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some((ip?, port?)).filter(|_| udp)
}

/// Deletes the UDP connections whose original destination `meant` names, so that the next packet is translated anew.
pub fn forget_udp(meant: impl Fn(IpAddr, u16) -> bool) -> io::Result<()> {
    let (listing, deleting) = (netfilter::open()?, netfilter::open()?);
    netfilter::send(&listing, &request(NetfilterProtoFamily::Unspec, ConntrackMessage::Get(Vec::new()), NLM_F_DUMP))?;
    netfilter::answers(&listing, |answer| {
        let NetlinkPayload::InnerMessage(message) = answer else { return Ok(ControlFlow::Break(())) };
        let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner else {
            return Ok(ControlFlow::Continue(()));
        };
        for attribute in attributes {
            let ConntrackAttribute::CtaTupleOrig(original) = &attribute else { continue };
            if !destination(original).is_some_and(|(ip, port)| meant(ip, port)) {
                continue;
            }
            let delete = ConntrackMessage::Delete(vec![attribute]);
            netfilter::send(&deleting, &request(message.header.family, delete, NLM_F_ACK))?;
            match netfilter::answers(&deleting, |_| Ok(ControlFlow::Break(()))) {
                // it ended meanwhile
                Err(e) if e.raw_os_error() == Some(nix::libc::ENOENT) => {}
                other => other?,
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}
