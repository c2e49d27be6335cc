//! What is said and heard on port 67: pure rules over `smoltcp`'s packets.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::Ipv4Net;
use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress};

/// Options that are asked for (RFC 2132): mask, router, name servers, domain, time servers, lease, T1, T2.
const WANTED: [u8; 8] = [1, 3, 6, 15, 42, 51, 58, 59];
const MASK: u8 = 1;
const ROUTER: u8 = 3;
const NAME_SERVERS: u8 = 6;
const HOST_NAME: u8 = 12;
const TIME_SERVERS: u8 = 42;
/// What this client can take, in bytes: a packet of Ethernet.
pub const MAX: usize = 1500;
/// Shortest lease that is believed.
const SHORTEST: u32 = 30;
/// The client's part of a message.
#[derive(Debug, Clone)]
pub struct Client {
    /// Hardware address.
    pub mac: [u8; 6],
    /// Name the server may tell its name server.
    pub name: String,
}

/// What a server gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Address and network.
    pub address: Ipv4Net,
    /// First router.
    pub router: Option<Ipv4Addr>,
    /// Name servers.
    pub name_servers: Vec<IpAddr>,
    /// Time servers.
    pub time_servers: Vec<Ipv4Addr>,
    /// Who gave it.
    pub server: Ipv4Addr,
    /// When to ask this server again.
    pub renew: Duration,
    /// When to ask any server.
    pub rebind: Duration,
    /// When the address is no longer ours.
    pub expire: Duration,
}

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It would give this.
    Offer(Lease),
    /// It gives this.
    Ack(Lease),
    /// It does not.
    Nak,
}

/// What a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Who has an address? Best the one we had.
    Discover(Option<Ipv4Addr>),
    /// The address that this server offered.
    Take(Ipv4Addr, Ipv4Addr),
    /// The address we have, for longer.
    Keep(Ipv4Addr),
    /// The address we had: is it one of this network, and still ours? (INIT-REBOOT, RFC 2131 3.2)
    Again(Ipv4Addr),
}

impl Client {
    /// The bytes of a question.
    pub fn ask(&self, question: Question, transaction: u32, seconds: u16) -> Option<Vec<u8>> {
        let none = Ipv4Addr::UNSPECIFIED;
        let (message_type, client_ip, requested_ip, server_identifier) = match question {
            Question::Discover(before) => (DhcpMessageType::Discover, none, before, None),
            Question::Take(address, server) => (DhcpMessageType::Request, none, Some(address), Some(server)),
            Question::Keep(address) => (DhcpMessageType::Request, address, None, None),
            Question::Again(address) => (DhcpMessageType::Request, none, Some(address), None),
        };
        let mac = EthernetAddress(self.mac);
        let name = [DhcpOption { kind: HOST_NAME, data: self.name.as_bytes() }];
        let repr = DhcpRepr {
            message_type,
            transaction_id: transaction,
            secs: seconds,
            client_hardware_address: mac,
            client_ip,
            your_ip: none,
            server_ip: none,
            router: None,
            subnet_mask: None,
            relay_agent_ip: none,
            // without an address only this is received
            broadcast: client_ip.is_unspecified(),
            requested_ip,
            client_identifier: Some(mac),
            server_identifier,
            parameter_request_list: Some(&WANTED),
            dns_servers: None,
            max_size: Some(MAX as u16),
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &name,
        };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut DhcpPacket::new_unchecked(bytes.as_mut_slice())).ok()?;
        Some(bytes)
    }

    /// What a packet says, if it is an answer to that transaction of ours.
    pub fn hear(&self, bytes: &[u8], transaction: u32) -> Option<Answer> {
        let packet = DhcpPacket::new_checked(bytes).ok()?;
        let repr = DhcpRepr::parse(&packet).ok()?;
        if repr.transaction_id != transaction || repr.client_hardware_address.0 != self.mac {
            return None;
        }
        match repr.message_type {
            DhcpMessageType::Nak => Some(Answer::Nak),
            DhcpMessageType::Offer => lease(&packet, &repr).map(Answer::Offer),
            DhcpMessageType::Ack => lease(&packet, &repr).map(Answer::Ack),
            _ => None,
        }
    }
}

fn lease(packet: &DhcpPacket<&[u8]>, repr: &DhcpRepr) -> Option<Lease> {
    let option = |kind: u8| packet.options().find(|o| o.kind == kind).map(|o| o.data);
    let addresses = |kind: u8| {
        let (four, _) = option(kind).unwrap_or_default().as_chunks::<4>();
        four.iter().map(|a| Ipv4Addr::from(*a)).collect::<Vec<_>>()
    };
    let mask = addresses(MASK).first().copied();
    // a server that gives none means the class's; what it can only be today is a home's network
    let address = Ipv4Net::with_netmask(repr.your_ip, mask.unwrap_or(Ipv4Addr::new(255, 255, 255, 0))).ok()?;
    let own = address.addr();
    if own.is_unspecified() || own.is_broadcast() || own.is_multicast() || own.is_loopback() {
        return None;
    }
    let whole = repr.lease_duration?.max(SHORTEST);
    let renew = repr.renew_duration.filter(|t| *t > 0 && *t < whole).unwrap_or(whole / 2);
    let rebind = repr.rebind_duration.filter(|t| *t > renew && *t < whole).unwrap_or(renew.midpoint(whole) + 1);
    let seconds = |n: u32| Duration::from_secs(n.into());
    Some(Lease {
        address,
        router: addresses(ROUTER).first().copied(),
        name_servers: addresses(NAME_SERVERS).into_iter().map(IpAddr::from).collect(),
        time_servers: addresses(TIME_SERVERS),
        server: repr.server_identifier?,
        renew: seconds(renew),
        rebind: seconds(rebind),
        expire: seconds(whole),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn client() -> Client {
        Client { mac: MAC, name: "pi".to_owned() }
    }

    fn answer(kind: DhcpMessageType, options: &[DhcpOption<'_>]) -> Vec<u8> {
        let none = Ipv4Addr::UNSPECIFIED;
        let repr = DhcpRepr {
            message_type: kind,
            transaction_id: 7,
            secs: 0,
            client_hardware_address: EthernetAddress(MAC),
            client_ip: none,
            your_ip: Ipv4Addr::new(192, 168, 1, 20),
            server_ip: none,
            router: None,
            subnet_mask: Some(Ipv4Addr::new(255, 255, 254, 0)),
            relay_agent_ip: none,
            broadcast: false,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(Ipv4Addr::new(192, 168, 1, 1)),
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: Some(3600),
            renew_duration: None,
            rebind_duration: None,
            additional_options: options,
        };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut DhcpPacket::new_unchecked(bytes.as_mut_slice())).unwrap();
        bytes
    }

    #[test]
    fn a_question_can_be_read_by_a_server() {
        let bytes = client().ask(Question::Discover(Some(Ipv4Addr::new(10, 0, 0, 9))), 7, 3).unwrap();
        let packet = DhcpPacket::new_checked(bytes.as_slice()).unwrap();
        let read = DhcpRepr::parse(&packet).unwrap();
        assert_eq!((read.message_type, read.broadcast), (DhcpMessageType::Discover, true));
        assert_eq!(read.requested_ip, Some(Ipv4Addr::new(10, 0, 0, 9)));
        assert_eq!(packet.options().find(|o| o.kind == HOST_NAME).unwrap().data, b"pi");
        let keep = client().ask(Question::Keep(Ipv4Addr::new(10, 0, 0, 9)), 7, 3).unwrap();
        let packet = DhcpPacket::new_checked(keep.as_slice()).unwrap();
        let read = DhcpRepr::parse(&packet).unwrap();
        // RFC 2131, 4.3.2: no requested address and no server in a renewal
        assert_eq!((read.requested_ip, read.server_identifier, read.broadcast), (None, None, false));
        assert_eq!(read.client_ip, Ipv4Addr::new(10, 0, 0, 9));
    }

    #[test]
    fn an_offer_with_several_routers_name_servers_and_times_is_read() {
        let options = [
            DhcpOption { kind: ROUTER, data: &[192, 168, 1, 1, 192, 168, 1, 2] },
            DhcpOption { kind: NAME_SERVERS, data: &[9, 9, 9, 9, 1, 1, 1, 1] },
            DhcpOption { kind: TIME_SERVERS, data: &[192, 168, 1, 3] },
        ];
        let Some(Answer::Offer(lease)) = client().hear(&answer(DhcpMessageType::Offer, &options), 7) else { panic!() };
        assert_eq!(lease.address.to_string(), "192.168.1.20/23");
        assert_eq!(lease.router, Some(Ipv4Addr::new(192, 168, 1, 1)));
        assert_eq!(lease.name_servers.len(), 2);
        assert_eq!(lease.time_servers, [Ipv4Addr::new(192, 168, 1, 3)]);
        assert_eq!((lease.renew.as_secs(), lease.expire.as_secs()), (1800, 3600));
        assert!(lease.rebind > lease.renew && lease.rebind < lease.expire);
    }

    #[test]
    fn what_is_not_for_us_or_no_answer_is_not_heard() {
        let ack = answer(DhcpMessageType::Ack, &[]);
        assert!(client().hear(&ack, 7).is_some());
        assert_eq!(client().hear(&ack, 8), None);
        let other = Client { mac: [2, 0, 0, 0, 0, 2], name: String::new() };
        assert_eq!(other.hear(&ack, 7), None);
        assert_eq!(client().hear(&answer(DhcpMessageType::Nak, &[]), 7), Some(Answer::Nak));
        for end in 0..ack.len() - 1 {
            assert!(!matches!(client().hear(&ack[..end], 7), Some(Answer::Offer(_))));
        }
    }
}
