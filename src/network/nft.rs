//! nftables by netlink: one transaction replaces a whole table (kernel `nf_tables`, include/uapi/linux/netfilter).

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DevHookNumber, Hook, HookNumber, InetHookNumber, NfTablesMessage, RuleAttribute,
    RuleMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use super::expressions::{Action, Match};
use super::{netfilter, wire};

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFTA_CHAIN_TABLE` and `NFTA_RULE_TABLE`.
const CHAIN_TABLE: u16 = 1;
const RULE_TABLE: u16 = 1;
/// `NFTA_RULE_CHAIN`.
const RULE_CHAIN: u16 = 2;
/// Before what others have there: their programs see what is true.
const GUARD_PRIORITY: i32 = -500;

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
pub struct Chain<'a> {
    /// Its name in the table.
    pub name: &'a str,
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

fn chain_message(table: &str, chain: Chain<'_>) -> ChainMessage {
    let mut attributes = vec![ChainAttribute::Table(table.to_owned()), ChainAttribute::Name(chain.name.to_owned())];
    if let Some(base) = chain.base {
        let hook = Hook::Number(HookNumber::Inet(base.hook));
        attributes.push(ChainAttribute::Hook(vec![hook, Hook::Priority(base.priority.cast_unsigned())]));
        attributes.push(ChainAttribute::Type(base.kind.to_owned()));
    }
    ChainMessage { attributes }
}

fn expressed((table, chain): (&str, &str), matches: &[Match], action: &Action) -> RuleMessage {
    let mut expressions: Vec<_> = matches.iter().flat_map(Match::expressions).collect();
    expressions.extend(action.expressions());
    RuleMessage {
        attributes: vec![
            RuleAttribute::Table(table.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
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
pub fn replace(family: NetfilterProtoFamily, table: &str, chains: &[Chain<'_>], rules: &[Rule]) -> io::Result<()> {
    let mut batch = emptied(family, table);
    batch.push(NfTablesMessage::NewTable(table_message(table)), NLM_F_CREATE);
    for chain in chains {
        batch.push(NfTablesMessage::NewChain(chain_message(table, *chain)), NLM_F_CREATE);
    }
    for rule in rules {
        batch.push(
            NfTablesMessage::NewRule(expressed((table, rule.chain), &rule.matches, &rule.action)),
            NLM_F_CREATE | NLM_F_APPEND,
        );
    }
    batch.commit()
}

/// Hands what the kernel has of one kind to `take`, as attributes, with the family.
pub fn dump(family: NetfilterProtoFamily, request: NfTablesMessage, mut take: impl FnMut(u8, &[u8])) -> io::Result<()> {
    let socket = netfilter::open()?;
    let mut bytes = Vec::new();
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), request);
    netfilter::append(&mut bytes, message, NLM_F_DUMP, 0);
    netfilter::send(&socket, &bytes)?;
    netfilter::raw_answers(&socket, |body| {
        // `struct nfgenmsg` comes first
        if let (Some(family), Some(attributes)) = (body.first(), body.get(4..)) {
            take(*family, attributes);
        }
    })
}

/// Chains and rules of `table`; none of either when there is no such table.
pub fn size(family: NetfilterProtoFamily, table: &str) -> io::Result<(usize, usize)> {
    let (mut chains, mut rules) = (0, 0);
    dump(family, NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() }), |_, attributes| {
        chains += usize::from(wire::attribute(attributes, CHAIN_TABLE).is_some_and(|t| wire::text(t) == table));
    })?;
    let of_table = RuleMessage { attributes: vec![RuleAttribute::Table(table.to_owned())] };
    dump(family, NfTablesMessage::GetRule(of_table), |_, attributes| {
        rules += usize::from(wire::attribute(attributes, RULE_TABLE).is_some_and(|t| wire::text(t) == table));
    })?;
    Ok((chains, rules))
}

/// A rule in a chain of others, known by what it says of itself.
pub struct Guest<'a> {
    /// Table and chain.
    pub place: (&'a str, &'a str),
    /// Whom it is of, as `nft` and `iptables` show it.
    pub comment: &'a str,
    /// What a packet has to be.
    pub matches: Vec<Match>,
    /// What happens.
    pub action: Action,
}

/// The bytes a comment is kept as (libnftnl `NFTNL_UDATA_RULE_COMMENT`).
pub fn comment(text: &str) -> Vec<u8> {
    let text = &text.as_bytes()[..text.len().min(usize::from(u8::MAX) - 1)];
    [&[0, text.len() as u8 + 1], text, &[0]].concat()
}

/// Removes the rules with these handles from a chain, and puts `guests` at its end, all at once.
pub fn change(
    family: NetfilterProtoFamily,
    (table, chain): (&str, &str),
    remove: &[u64],
    guests: &[Guest<'_>],
) -> io::Result<()> {
    let mut batch = Batch { family, messages: Vec::new() };
    for handle in remove {
        let named = vec![
            RuleAttribute::Table(table.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Handle(*handle),
        ];
        batch.push(NfTablesMessage::DeleteRule(RuleMessage { attributes: named }), 0);
    }
    for guest in guests {
        let mut message = expressed(guest.place, &guest.matches, &guest.action);
        message.attributes.push(RuleAttribute::UserData(comment(guest.comment)));
        batch.push(NfTablesMessage::NewRule(message), NLM_F_CREATE | NLM_F_APPEND);
    }
    batch.commit()
}

/// A chain for what comes in by `link`.
fn guard_message(table: &str, link: &str) -> ChainMessage {
    let hook = vec![
        Hook::Number(HookNumber::Dev(DevHookNumber::Ingress)),
        Hook::Priority(GUARD_PRIORITY.cast_unsigned()),
        Hook::NetDeviceName(link.to_owned()),
    ];
    let mut message = chain_message(table, Chain { name: link, base: None });
    message.attributes.extend([ChainAttribute::Hook(hook), ChainAttribute::Type("filter".to_owned())]);
    message
}

/// A batch that leaves no chain for `link`, but the table.
fn unguarded(table: &str, link: &str) -> Batch {
    let mut batch = Batch { family: NetfilterProtoFamily::NetDev, messages: Vec::new() };
    batch.push(NfTablesMessage::NewTable(table_message(table)), NLM_F_CREATE);
    // created first so that deleting it cannot fail
    batch.push(NfTablesMessage::NewChain(guard_message(table, link)), NLM_F_CREATE);
    let named = chain_message(table, Chain { name: link, base: None });
    batch.push(NfTablesMessage::DeleteChain(named), 0);
    batch
}

/// Puts `rules` in the place of those for what comes in by `link`.
pub fn put_guard(table: &str, link: &str, rules: &[(Vec<Match>, Action)]) -> io::Result<()> {
    let mut batch = unguarded(table, link);
    batch.push(NfTablesMessage::NewChain(guard_message(table, link)), NLM_F_CREATE);
    for (matches, action) in rules {
        let rule = NfTablesMessage::NewRule(expressed((table, link), matches, action));
        batch.push(rule, NLM_F_CREATE | NLM_F_APPEND);
    }
    batch.commit()
}

/// Whether the kernel has such chains; an error says why not.
pub fn try_guard(table: &str) -> io::Result<()> {
    unguarded(table, "lo").commit()
}

/// Removes the rules of `link`. Repeatable.
pub fn remove_guard(table: &str, link: &str) -> io::Result<()> {
    let mut batch = Batch { family: NetfilterProtoFamily::NetDev, messages: Vec::new() };
    let named = chain_message(table, Chain { name: link, base: None });
    batch.push(NfTablesMessage::DeleteChain(named), 0);
    match batch.commit() {
        // the kernel removes some with their links
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// The links with rules of their own, and how many.
pub fn guards(table: &str) -> io::Result<BTreeMap<String, usize>> {
    let mut found = BTreeMap::new();
    let of_table = RuleMessage { attributes: vec![RuleAttribute::Table(table.to_owned())] };
    dump(NetfilterProtoFamily::NetDev, NfTablesMessage::GetRule(of_table), |_, attributes| {
        if wire::attribute(attributes, RULE_TABLE).is_some_and(|t| wire::text(t) == table)
            && let Some(chain) = wire::attribute(attributes, RULE_CHAIN)
        {
            *found.entry(wire::text(chain)).or_default() += 1;
        }
    })?;
    Ok(found)
}

/// Removes `table`. Safe to repeat.
pub fn remove(table: &str) -> io::Result<()> {
    for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6, NetfilterProtoFamily::NetDev] {
        match emptied(family, table).commit() {
            // a kernel without nftables, or without the family, has no such table either
            Err(e) if matches!(e.raw_os_error(), Some(nix::libc::EOPNOTSUPP | nix::libc::EPROTONOSUPPORT)) => {}
            other => other?,
        }
    }
    Ok(())
}
