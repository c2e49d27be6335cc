//! nftables by netlink: one transaction replaces a whole table (kernel `nf_tables`, include/uapi/linux/netfilter).

use std::io;
use std::ops::ControlFlow;

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook, HookNumber, InetHookNumber, NfTablesMessage, RuleAttribute, RuleMessage,
    TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use super::expressions::{Action, Match};
use super::netfilter;

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;

/// Where the kernel begins with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// On the way of a packet.
    pub hook: InetHookNumber,
    /// Lower ones come first.
    pub priority: i32,
}

/// A chain of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    /// Its name in the table.
    pub name: &'static str,
    /// `None`: other chains jump here.
    pub base: Option<Base>,
}

/// A rule: what all a packet has to be, and what happens then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The chain it is the next of.
    pub chain: &'static str,
    /// In their order.
    pub matches: Vec<Match>,
    /// What happens.
    pub action: Action,
}

/// A change of tables, applied whole or not at all.
struct Batch {
    family: NetfilterProtoFamily,
    messages: Vec<(NfTablesMessage, u16)>,
}

impl Batch {
    fn push(&mut self, message: NfTablesMessage, flags: u16) {
        self.messages.push((message, flags));
    }

    /// Sends everything and waits for the kernel's answer; its first error says why nothing was changed.
    fn commit(mut self) -> io::Result<()> {
        let socket = netfilter::open()?;
        let control = |message| {
            let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM);
            (NetfilterMessage::new(header, message), 0)
        };
        // errors come without being asked for, and answers to all of a large table would not fit into the socket
        if let Some((_, flags)) = self.messages.last_mut() {
            *flags |= NLM_F_ACK;
        }
        let header = || NetfilterHeader::new(self.family, 0, 0);
        let changes = self.messages.into_iter().map(|(m, flags)| (NetfilterMessage::new(header(), m), flags));
        let all = [control(ControlMessage::BatchBegin)].into_iter().chain(changes);
        let mut bytes = Vec::new();
        for (sequence, (message, flags)) in all.chain([control(ControlMessage::BatchEnd)]).enumerate() {
            netfilter::append(&mut bytes, message, flags, sequence as u32);
        }
        netfilter::send(&socket, &bytes)?;
        netfilter::answers(&socket, |_| Ok(ControlFlow::Break(())))
    }
}

fn table_message(table: &str) -> TableMessage {
    TableMessage { attributes: vec![TableAttribute::Name(table.to_owned())] }
}

fn chain_message(table: &str, chain: Chain) -> ChainMessage {
    let mut attributes = vec![ChainAttribute::Table(table.to_owned()), ChainAttribute::Name(chain.name.to_owned())];
    if let Some(base) = chain.base {
        let hook = Hook::Number(HookNumber::Inet(base.hook));
        attributes.push(ChainAttribute::Hook(vec![hook, Hook::Priority(base.priority.cast_unsigned())]));
        attributes.push(ChainAttribute::Type(base.kind.to_owned()));
    }
    ChainMessage { attributes }
}

fn rule_message(table: &str, rule: &Rule) -> RuleMessage {
    let mut expressions: Vec<_> = rule.matches.iter().flat_map(Match::expressions).collect();
    expressions.extend(rule.action.expressions());
    RuleMessage {
        attributes: vec![
            RuleAttribute::Table(table.to_owned()),
            RuleAttribute::Chain(rule.chain.to_owned()),
            RuleAttribute::Expressions(expressions),
        ],
    }
}

/// A batch that leaves `table` empty.
fn emptied(family: NetfilterProtoFamily, table: &str) -> Batch {
    let mut batch = Batch { family, messages: Vec::new() };
    // created first so that deleting it cannot fail
    batch.push(NfTablesMessage::NewTable(table_message(table)), NLM_F_CREATE);
    batch.push(NfTablesMessage::DeleteTable(table_message(table)), 0);
    batch
}

/// Replaces `table`. Packets meet all of the old rules or all of the new ones.
pub fn replace(family: NetfilterProtoFamily, table: &str, chains: &[Chain], rules: &[Rule]) -> io::Result<()> {
    let mut batch = emptied(family, table);
    batch.push(NfTablesMessage::NewTable(table_message(table)), NLM_F_CREATE);
    for chain in chains {
        batch.push(NfTablesMessage::NewChain(chain_message(table, *chain)), NLM_F_CREATE);
    }
    for rule in rules {
        batch.push(NfTablesMessage::NewRule(rule_message(table, rule)), NLM_F_CREATE | NLM_F_APPEND);
    }
    batch.commit()
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
