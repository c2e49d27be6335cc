//! nftables by netlink: one transaction replaces a whole table (kernel `nf_tables`, include/uapi/linux/netfilter).

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions, Hook, HookNumber,
    Immediate, InetHookNumber, ListAttribute, NfTablesMessage, Operator, Payload, Register, RuleAttribute, RuleMessage,
    TableAttribute, TableMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NF_IP_PRI_NAT_SRC`: source translation comes last.
const PRIORITY_SRCNAT: u32 = 100;
/// `NFTA_MASQ_FLAGS` and its value `NF_NAT_RANGE_PROTO_RANDOM_FULLY`: ports of two pods never race for one.
const MASQ_FLAGS: u16 = 1;
const FULLY_RANDOM: u32 = 0x10;
/// `NFT_PAYLOAD_NETWORK_HEADER`.
const NETWORK_HEADER: u32 = 1;
/// Bytes of answers read at a time.
const ANSWER: usize = 64 * 1024;

const CHAIN: &str = "postrouting";

type Expression = ListAttribute<ExpressionAttribute>;

/// A change of tables, applied whole or not at all.
struct Batch {
    family: NetfilterProtoFamily,
    messages: Vec<(NfTablesMessage, u16)>,
}

impl Batch {
    fn push(&mut self, message: NfTablesMessage, flags: u16) {
        self.messages.push((message, flags));
    }

    /// Sends everything and waits for the kernel's answers.
    fn commit(self) -> io::Result<()> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let control = |message| {
            let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM);
            (NetfilterMessage::new(header, message), 0)
        };
        let header = || NetfilterHeader::new(self.family, 0, 0);
        let count = self.messages.len();
        let changes =
            self.messages.into_iter().map(|(m, flags)| (NetfilterMessage::new(header(), m), flags | NLM_F_ACK));
        let all = [control(ControlMessage::BatchBegin)].into_iter().chain(changes);
        let mut bytes = Vec::new();
        for (sequence, (message, flags)) in all.chain([control(ControlMessage::BatchEnd)]).enumerate() {
            let mut message = NetlinkMessage::from(message);
            message.header.flags = NLM_F_REQUEST | flags;
            message.header.sequence_number = sequence as u32;
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len(), 0);
            message.serialize(&mut bytes[start..]);
        }
        socket.send(&bytes, 0)?;
        receive(&socket, count)
    }
}

/// Reads until every change is answered; the first error says why nothing was changed.
fn receive(socket: &Socket, count: usize) -> io::Result<()> {
    let mut answered = 0;
    let mut buffer = Vec::with_capacity(ANSWER);
    while answered < count {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest).map_err(io::Error::other)?;
            if let NetlinkPayload::Error(error) = &message.payload {
                match error.code {
                    Some(code) => return Err(io::Error::from_raw_os_error(-code.get())),
                    None => answered += 1,
                }
            }
            rest = rest.get((message.header.length as usize).next_multiple_of(4)..).unwrap_or_default();
        }
    }
    Ok(())
}

/// The expressions that match a source or destination address.
fn address(offset: u32, range: &IpNet) -> Vec<Expression> {
    let (network, mask) = match (range.network(), range.netmask()) {
        (IpAddr::V4(network), IpAddr::V4(mask)) => (network.octets().to_vec(), mask.octets().to_vec()),
        (IpAddr::V6(network), IpAddr::V6(mask)) => (network.octets().to_vec(), mask.octets().to_vec()),
        _ => return Vec::new(),
    };
    let length = network.len() as u32;
    let load = Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(NETWORK_HEADER),
        Payload::Offset(offset),
        Payload::Len(length),
    ]);
    let cut = Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(length),
        Bitwise::Mask(DataAttribute::Value(mask)),
        Bitwise::Xor(DataAttribute::Value(vec![0; network.len()])),
    ]);
    let equal = Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(Operator::Equal),
        Cmp::Data(DataAttribute::Value(network)),
    ]);
    vec![load.into(), cut.into(), equal.into()]
}

fn from(range: &IpNet) -> Vec<Expression> {
    address(if range.addr().is_ipv4() { 12 } else { 8 }, range)
}

fn to(range: &IpNet) -> Vec<Expression> {
    address(if range.addr().is_ipv4() { 16 } else { 24 }, range)
}

fn go_back() -> Expression {
    let verdict = vec![VerdictAttribute::Code(Verdict::Return)];
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(verdict)),
    ])
    .into()
}

fn masquerade_out() -> Expression {
    let flags = DefaultNla::new(MASQ_FLAGS, FULLY_RANDOM.to_be_bytes().to_vec());
    Expressions::Other { expression_type: "masq".to_owned(), attributes: vec![flags] }.into()
}

fn table_message(table: &str) -> TableMessage {
    TableMessage { attributes: vec![TableAttribute::Name(table.to_owned())] }
}

/// A batch that leaves `table` empty.
fn emptied(family: NetfilterProtoFamily, table: &str) -> Batch {
    let mut batch = Batch { family, messages: Vec::new() };
    // created first so that deleting it cannot fail
    batch.push(NfTablesMessage::NewTable(table_message(table)), NLM_F_CREATE);
    batch.push(NfTablesMessage::DeleteTable(table_message(table)), 0);
    batch
}

/// Replaces `table` by one that masquerades what pods of `ranges` send to other places than `ranges` and `inside`.
pub fn masquerade(table: &str, ranges: &[IpNet], inside: &[IpNet]) -> io::Result<()> {
    let multicast: [IpNet; 2] = [
        IpNet::new_assert(IpAddr::from([224, 0, 0, 0]), 4),
        IpNet::new_assert(IpAddr::from([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8),
    ];
    for (family, v4) in [(NetfilterProtoFamily::IPv4, true), (NetfilterProtoFamily::IPv6, false)] {
        let of = |r: &&IpNet| r.addr().is_ipv4() == v4;
        if !ranges.iter().any(|r| of(&r)) {
            continue;
        }
        let mut batch = emptied(family, table);
        batch.push(NfTablesMessage::NewTable(table_message(table)), NLM_F_CREATE);
        let chain = ChainMessage {
            attributes: vec![
                ChainAttribute::Table(table.to_owned()),
                ChainAttribute::Name(CHAIN.to_owned()),
                ChainAttribute::Hook(vec![
                    Hook::Number(HookNumber::Inet(InetHookNumber::PostRouting)),
                    Hook::Priority(PRIORITY_SRCNAT),
                ]),
                ChainAttribute::Type("nat".to_owned()),
            ],
        };
        batch.push(NfTablesMessage::NewChain(chain), NLM_F_CREATE);
        for range in ranges.iter().filter(of) {
            let mut rule = |parts: Vec<Vec<Expression>>| {
                let attributes = vec![
                    RuleAttribute::Table(table.to_owned()),
                    RuleAttribute::Chain(CHAIN.to_owned()),
                    RuleAttribute::Expressions(parts.concat()),
                ];
                batch.push(NfTablesMessage::NewRule(RuleMessage { attributes }), NLM_F_CREATE | NLM_F_APPEND);
            };
            for other in ranges.iter().chain(inside).chain(&multicast).filter(of) {
                rule(vec![from(range), to(other), vec![go_back()]]);
            }
            rule(vec![from(range), vec![masquerade_out()]]);
        }
        batch.commit()?;
    }
    Ok(())
}

/// Removes `table`. Safe to repeat.
pub fn remove(table: &str) -> io::Result<()> {
    for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
        match emptied(family, table).commit() {
            // a kernel without nftables, or without the family, has no such table either
            Err(e) if matches!(e.raw_os_error(), Some(nix::libc::EOPNOTSUPP | nix::libc::EPROTONOSUPPORT)) => {}
            other => other?,
        }
    }
    Ok(())
}
