//! What a rule of the node looks at and what it does, in the kernel's expressions (`nf_tables`, include/uapi/linux/netfilter).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Meta, MetaKey, Operator,
    Payload, Register, Verdict, VerdictAttribute,
};

use super::types::Protocol;

/// `NFTA_MASQ_FLAGS` and its value `NF_NAT_RANGE_PROTO_RANDOM_FULLY`: ports of two pods never race for one.
const MASQ_FLAGS: u16 = 1;
const FULLY_RANDOM: u32 = 0x10;
/// `NFT_PAYLOAD_LL_HEADER`, `NFT_PAYLOAD_NETWORK_HEADER` and `NFT_PAYLOAD_TRANSPORT_HEADER`.
const LINK_HEADER: u32 = 0;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// Where TCP, UDP and SCTP have the port a packet goes to.
const DESTINATION_PORT: u32 = 2;
/// Where Ethernet has the sender's address, ARP both of them, and neighbour discovery (RFC 4861) the one it is about.
const HARDWARE_SOURCE: u32 = 6;
const ARP_SENDER: u32 = 8;
const NEIGHBOUR: u32 = 8;
/// `IPPROTO_ICMPV6`.
const ICMPV6: u8 = 58;
/// Attributes of `fib`, its `NFT_FIB_RESULT_ADDRTYPE` and `NFTA_FIB_F_DADDR`, and the answer `RTN_LOCAL`.
const FIB_REGISTER: u16 = 1;
const FIB_RESULT: u16 = 2;
const FIB_FLAGS: u16 = 3;
const ADDRESS_TYPE: u32 = 3;
const OF_DESTINATION: u32 = 2;
const LOCAL: u32 = 2;
/// Attributes of `ct`, and of its keys `NFT_CT_STATUS`, `NFT_CT_PROTO_DST`.
const CT_REGISTER: u16 = 1;
const CT_KEY: u16 = 2;
const CT_DIRECTION: u16 = 3;
const STATUS: u32 = 2;
const PROTO_DST: u32 = 12;
/// `IP_CT_DIR_ORIGINAL` and `IPS_DST_NAT`.
const ORIGINAL: u8 = 0;
const DST_NAT: u32 = 1 << 5;
/// Attributes of `nat`, its `NFT_NAT_DNAT`, and the families.
const NAT_TYPE: u16 = 1;
const NAT_FAMILY: u16 = 2;
const NAT_ADDRESS: u16 = 3;
const NAT_PORT: u16 = 5;
const DNAT: u32 = 1;
const FAMILY_V4: u32 = 2;
const FAMILY_V6: u32 = 10;
/// `NFTA_FWD_SREG_DEV`.
const FORWARD_LINK: u16 = 1;
/// `NF_DROP` and `NF_ACCEPT`.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// `IFNAMSIZ`.
const LINK_NAME: usize = 16;

pub type Expression = ListAttribute<ExpressionAttribute>;

/// What a packet has to be for a rule to apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// Came in by that link.
    Link(String),
    /// Goes out by that link.
    OutLink(String),
    /// From there.
    Source(IpNet),
    /// To there.
    Destination(IpNet),
    /// Of that protocol.
    Protocol(Protocol),
    /// To that port.
    Port(u16),
    /// To an address of this machine.
    Local,
    /// Of a connection that leads elsewhere than where its client meant.
    Translated,
    /// Of a connection to that port, as its client says.
    OriginalPort(u16),
    /// Of that protocol of links (`ETH_P_*`).
    EtherType(u16),
    /// Not from that hardware address.
    NotOfHardware([u8; 6]),
    /// A question or answer of ARP by whom has these addresses.
    ArpSender([u8; 6], Ipv4Addr),
    /// `ICMPv6`.
    Icmpv6,
    /// ICMP of that type.
    IcmpType(u8),
    /// About another address than that, in a solicitation or advertisement of neighbours.
    NotNeighbour(Ipv6Addr),
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// No other rule of the chain applies.
    Return,
    /// The packet is lost.
    Drop,
    /// The packet goes on, past the rest of the chain.
    Accept,
    /// The rules of that chain apply.
    Jump(&'static str),
    /// Comes from this machine from now on.
    Masquerade,
    /// Leads there from now on.
    Lead(IpAddr, u16),
    /// The packet goes through the link with that index first, and from there past the chains of this one.
    Through(u32),
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn other(kind: &str, attributes: impl IntoIterator<Item = (u16, Vec<u8>)>) -> Expression {
    let attributes = attributes.into_iter().map(|(kind, value)| DefaultNla::new(kind, value)).collect();
    Expressions::Other { expression_type: kind.to_owned(), attributes }.into()
}

fn number(value: u32) -> Vec<u8> {
    value.to_be_bytes().to_vec()
}

fn load(base: u32, offset: u32, length: u32) -> Expression {
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
    .into()
}

fn cut(mask: Vec<u8>) -> Expression {
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(mask.len() as u32),
        Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
        Bitwise::Mask(DataAttribute::Value(mask)),
    ])
    .into()
}

fn compare(how: Operator, with: Vec<u8>) -> Expression {
    let with = Cmp::Data(DataAttribute::Value(with));
    Expressions::Cmp(vec![Cmp::SourceRegister(Register::Reg1), Cmp::Op(how), with]).into()
}

fn is(what: Vec<u8>) -> Expression {
    compare(Operator::Equal, what)
}

fn meta(key: MetaKey) -> Expression {
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(Register::Reg1)]).into()
}

/// A link's name as the kernel compares it.
pub fn padded(name: &str) -> Vec<u8> {
    let mut padded = name.as_bytes().to_vec();
    padded.resize(LINK_NAME, 0);
    padded
}

/// A source or destination address, by where the families have it.
fn address(range: &IpNet, [v4, v6]: [u32; 2]) -> Vec<Expression> {
    let (network, mask) = (octets(range.network()), octets(range.netmask()));
    let offset = if range.addr().is_ipv4() { v4 } else { v6 };
    vec![load(NETWORK_HEADER, offset, network.len() as u32), cut(mask), is(network)]
}

impl Match {
    /// The expressions that end the rule for any other packet.
    pub fn expressions(&self) -> Vec<Expression> {
        match self {
            Self::Link(name) => vec![meta(MetaKey::Iifname), is(padded(name))],
            Self::OutLink(name) => vec![meta(MetaKey::Oifname), is(padded(name))],
            Self::Source(range) => address(range, [12, 8]),
            Self::Destination(range) => address(range, [16, 24]),
            Self::Protocol(protocol) => vec![meta(MetaKey::L4Proto), is(vec![protocol.number()])],
            Self::Port(port) => {
                vec![load(TRANSPORT_HEADER, DESTINATION_PORT, 2), is(port.to_be_bytes().to_vec())]
            }
            Self::Local => {
                let fib =
                    [(FIB_REGISTER, Register::Reg1.into()), (FIB_RESULT, ADDRESS_TYPE), (FIB_FLAGS, OF_DESTINATION)];
                vec![other("fib", fib.map(|(kind, value)| (kind, number(value)))), is(LOCAL.to_ne_bytes().to_vec())]
            }
            Self::Translated => {
                let status = [(CT_REGISTER, number(Register::Reg1.into())), (CT_KEY, number(STATUS))];
                let none = compare(Operator::NotEqual, vec![0; 4]);
                vec![other("ct", status), cut(DST_NAT.to_ne_bytes().to_vec()), none]
            }
            Self::OriginalPort(port) => {
                let of_client = [
                    (CT_REGISTER, number(Register::Reg1.into())),
                    (CT_KEY, number(PROTO_DST)),
                    (CT_DIRECTION, vec![ORIGINAL]),
                ];
                vec![other("ct", of_client), is(port.to_be_bytes().to_vec())]
            }
            Self::EtherType(kind) => vec![meta(MetaKey::EtherTypeProtocol), is(kind.to_be_bytes().to_vec())],
            Self::NotOfHardware(address) => {
                vec![load(LINK_HEADER, HARDWARE_SOURCE, 6), compare(Operator::NotEqual, address.to_vec())]
            }
            Self::ArpSender(hardware, ip) => {
                vec![load(NETWORK_HEADER, ARP_SENDER, 10), is([&hardware[..], &ip.octets()].concat())]
            }
            Self::Icmpv6 => vec![meta(MetaKey::L4Proto), is(vec![ICMPV6])],
            Self::IcmpType(kind) => vec![load(TRANSPORT_HEADER, 0, 1), is(vec![*kind])],
            Self::NotNeighbour(ip) => {
                let other = compare(Operator::NotEqual, ip.octets().to_vec());
                vec![load(TRANSPORT_HEADER, NEIGHBOUR, 16), other]
            }
        }
    }
}

fn put(register: Register, data: DataAttribute) -> Expression {
    Expressions::Immediate(vec![Immediate::DestinationRegister(register), Immediate::Data(data)]).into()
}

fn verdict(attributes: Vec<VerdictAttribute>) -> Vec<Expression> {
    vec![put(Register::Verdict, DataAttribute::Verdict(attributes))]
}

impl Action {
    /// The expressions a rule ends with.
    pub fn expressions(&self) -> Vec<Expression> {
        match self {
            Self::Return => verdict(vec![VerdictAttribute::Code(Verdict::Return)]),
            Self::Accept => verdict(vec![VerdictAttribute::Code(Verdict::Other(ACCEPT))]),
            Self::Drop => verdict(vec![VerdictAttribute::Code(Verdict::Other(DROP))]),
            Self::Jump(chain) => {
                verdict(vec![VerdictAttribute::Code(Verdict::Jump), VerdictAttribute::Chain((*chain).to_owned())])
            }
            Self::Masquerade => vec![other("masq", [(MASQ_FLAGS, number(FULLY_RANDOM))])],
            Self::Lead(ip, port) => {
                let family = if ip.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 };
                let nat = [
                    (NAT_TYPE, DNAT),
                    (NAT_FAMILY, family),
                    (NAT_ADDRESS, Register::Reg1.into()),
                    (NAT_PORT, Register::Reg2.into()),
                ];
                vec![
                    put(Register::Reg1, DataAttribute::Value(octets(*ip))),
                    put(Register::Reg2, DataAttribute::Value(port.to_be_bytes().to_vec())),
                    other("nat", nat.map(|(kind, value)| (kind, number(value)))),
                ]
            }
            Self::Through(link) => vec![
                put(Register::Reg1, DataAttribute::Value(link.to_ne_bytes().to_vec())),
                other("fwd", [(FORWARD_LINK, number(Register::Reg1.into()))]),
            ],
        }
    }
}
