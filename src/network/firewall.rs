//! Firewalls that drop what a machine forwards: in nftables an accept of one table does not help against a drop of another. The
//! chains that iptables made are opened for the pods' bridge (Docker sets their policy to drop); of others a person is told
//! what to do.

use std::fs;
use std::io;

use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage};

use super::expressions::{Action, Match, padded};
use super::nft::{self, Guest};
use super::wire;

/// Attributes of chains: `NFTA_CHAIN_TABLE`, `_NAME`, `_HOOK`, `_POLICY`, and `NFTA_HOOK_HOOKNUM`.
const TABLE: u16 = 1;
const NAME: u16 = 3;
const HOOK: u16 = 4;
const POLICY: u16 = 5;
const HOOK_NUMBER: u16 = 1;
/// Attributes of rules: `NFTA_RULE_CHAIN`, `_HANDLE`, `_EXPRESSIONS`, `_USERDATA`.
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
/// `NF_INET_FORWARD` and `NF_DROP`.
const FORWARD: u32 = 2;
const DROP: u32 = 0;
/// `NFPROTO_INET`, `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// What iptables calls its table and chain.
const IPTABLES: (&str, &str) = ("filter", "FORWARD");

/// A chain of nftables.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    family: u8,
    table: String,
    name: String,
    /// It is where packets are forwarded.
    forwards: bool,
    /// What it does not decide is lost.
    drops: bool,
}

impl Chain {
    fn of(family: u8, attributes: &[u8]) -> Option<Self> {
        let text = |kind| wire::attribute(attributes, kind).map(wire::text);
        let hook = wire::attribute(attributes, HOOK).and_then(|hook| wire::attribute(hook, HOOK_NUMBER));
        Some(Self {
            family,
            table: text(TABLE)?,
            name: text(NAME)?,
            forwards: hook.and_then(wire::number) == Some(FORWARD) && [INET, IPV4, IPV6].contains(&family),
            drops: wire::attribute(attributes, POLICY).and_then(wire::number) == Some(DROP),
        })
    }

    fn of_iptables(&self) -> bool {
        self.family != INET && (self.table.as_str(), self.name.as_str()) == IPTABLES
    }
}

/// A rule as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    family: u8,
    table: String,
    chain: String,
    handle: u64,
    /// It names the bridge.
    names_bridge: bool,
    /// It is one of ours.
    own: bool,
}

impl Rule {
    fn of(family: u8, attributes: &[u8], bridge: &str) -> Option<Self> {
        let text = |kind| wire::attribute(attributes, kind).map(wire::text);
        let handle = wire::attribute(attributes, RULE_HANDLE)?;
        let expressions = wire::attribute(attributes, RULE_EXPRESSIONS).unwrap_or_default();
        // exact ones end with a NUL
        let named = &padded(bridge)[..=bridge.len()];
        Some(Self {
            family,
            table: text(TABLE)?,
            chain: text(RULE_CHAIN)?,
            handle: u64::from_be_bytes(handle.try_into().ok()?),
            names_bridge: expressions.windows(named.len()).any(|w| w == named),
            own: wire::attribute(attributes, RULE_USERDATA) == Some(&nft::comment(&comment(bridge))),
        })
    }
}

fn comment(bridge: &str) -> String {
    format!("pods of {bridge} (pikelet)")
}

/// What to do about the chains there are.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Chains that get our rules, with those of ours they have already.
    open: Vec<(Chain, Vec<u64>)>,
    /// Chains whose rules of ours are of no use.
    close: Vec<(Chain, Vec<u64>)>,
    /// What a person is told.
    told: Vec<String>,
}

/// `v4`, `v6`: the families pods have.
fn plan(bridge: &str, chains: &[Chain], rules: &[Rule]) -> Plan {
    let mut plan = Plan::default();
    let ufw = chains.iter().any(|c| c.name.starts_with("ufw-") || c.name.starts_with("ufw6-"));
    for chain in chains.iter().filter(|c| c.forwards) {
        let in_table = |r: &&Rule| r.family == chain.family && r.table == chain.table;
        let own: Vec<u64> =
            rules.iter().filter(in_table).filter(|r| r.own && r.chain == chain.name).map(|r| r.handle).collect();
        // whoever wrote a rule for the bridge knows what he wants
        let settled = rules.iter().filter(in_table).any(|r| r.names_bridge && !r.own);
        let wanted = chain.drops && chain.of_iptables() && !ufw;
        if wanted && own.len() != 2 {
            plan.open.push((chain.clone(), own));
        } else if !wanted && !own.is_empty() {
            plan.close.push((chain.clone(), own));
        }
        let firewalld = chain.table == "firewalld";
        if wanted || settled || (!chain.drops && !firewalld) {
            continue;
        }
        let message = if ufw && chain.of_iptables() {
            format!("ufw drops what pods send and get: ufw route allow in on {bridge}; ufw route allow out on {bridge}")
        } else if firewalld {
            format!(
                "firewalld rejects what pods send and get: firewall-cmd --permanent --zone=trusted --add-interface={bridge} && \
                 firewall-cmd --reload"
            )
        } else {
            let family = match chain.family {
                INET => "inet",
                IPV4 => "ip",
                _ => "ip6",
            };
            let place = format!("{family} {} {}", chain.table, chain.name);
            format!(
                "chain {place} of nftables drops what pods send and get: nft add rule {place} iifname {bridge} accept; nft add \
                 rule {place} oifname {bridge} accept (and the same in the file it is made from)"
            )
        };
        if !plan.told.contains(&message) {
            plan.told.push(message);
        }
    }
    plan
}

fn look(bridge: &str) -> io::Result<(Vec<Chain>, Vec<Rule>)> {
    let (mut chains, mut rules) = (Vec::new(), Vec::new());
    let all = NetfilterProtoFamily::Unspec;
    let request = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
    nft::dump(all, request, |family, attributes| chains.extend(Chain::of(family, attributes)))?;
    let mut tables: Vec<(u8, String)> =
        chains.iter().filter(|c: &&Chain| c.forwards).map(|c| (c.family, c.table.clone())).collect();
    tables.dedup();
    for (family, table) in tables {
        let request = NfTablesMessage::GetRule(RuleMessage { attributes: vec![RuleAttribute::Table(table.clone())] });
        nft::dump(family.into(), request, |family, attributes| {
            rules.extend(Rule::of(family, attributes, bridge).filter(|r| r.table == table));
        })?;
    }
    Ok((chains, rules))
}

/// Nobody sees the rules of the older iptables but itself.
fn legacy() -> bool {
    ["ip_tables_names", "ip6_tables_names"].iter().any(|file| {
        fs::read_to_string(format!("/proc/thread-self/net/{file}"))
            .is_ok_and(|names| names.lines().any(|n| n == "filter"))
    })
}

/// What stands in the way of pods, without changing anything. `Err`: it cannot be seen.
pub fn obstacles(bridge: &str) -> io::Result<Vec<String>> {
    let (chains, rules) = look(bridge)?;
    let mut told = plan(bridge, &chains, &rules).told;
    if legacy() {
        told.push(
            "the older iptables has a filter table, which cannot be looked at: if `iptables-legacy -S FORWARD` says `-P FORWARD \
             DROP`, pods reach this node only"
                .to_owned(),
        );
    }
    Ok(told)
}

/// Opens chains of iptables that drop what they do not know, and closes those that do not drop any more. What is left in the
/// way of pods is in the answer.
pub fn open(bridge: &str) -> Vec<String> {
    let (chains, rules) = match look(bridge) {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(%error, "nftables cannot be looked at");
            return Vec::new();
        }
    };
    let mut plan = plan(bridge, &chains, &rules);
    let comment = comment(bridge);
    for (chain, own) in &plan.open {
        let place = (chain.table.as_str(), chain.name.as_str());
        let guest = |link| Guest { place, comment: &comment, matches: vec![link], action: Action::Accept };
        let guests = [guest(Match::Link(bridge.to_owned())), guest(Match::OutLink(bridge.to_owned()))];
        match nft::change(chain.family.into(), place, own, &guests) {
            Ok(()) => tracing::warn!(
                "policy of chain {} {} is drop (Docker sets it): packets of pods are accepted there by two rules at its end",
                chain.table,
                chain.name
            ),
            Err(error) => plan.told.push(format!(
                "chain {} {} of iptables drops what pods send and get, and is not opened: {error}",
                chain.table, chain.name
            )),
        }
    }
    for (chain, own) in &plan.close {
        if let Err(error) = nft::change(chain.family.into(), (&chain.table, &chain.name), own, &[]) {
            tracing::warn!(%error, chain = chain.name, "rules that let pods through a firewall are not removed");
        }
    }
    plan.told
}

/// Removes what [`open`] has put into chains of others. Repeatable.
pub fn close(bridge: &str) -> io::Result<()> {
    let (_, rules) = match look(bridge) {
        Ok(found) => found,
        // a kernel without nftables has no such rules
        Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EOPNOTSUPP | nix::libc::EPROTONOSUPPORT)) => {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    for rule in rules.iter().filter(|r| r.own) {
        nft::change(rule.family.into(), (&rule.table, &rule.chain), &[rule.handle], &[])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(family: u8, table: &str, name: &str, drops: bool) -> Chain {
        Chain { family, table: table.into(), name: name.into(), forwards: true, drops }
    }

    #[test]
    fn chains_of_iptables_are_opened_and_others_told() {
        let docker = chain(IPV4, "filter", "FORWARD", true);
        let opened = plan("b0", std::slice::from_ref(&docker), &[]);
        assert!(opened.told.is_empty() && opened.open == [(docker.clone(), Vec::new())]);
        let own = |handle| Rule {
            family: IPV4,
            table: "filter".into(),
            chain: "FORWARD".into(),
            handle,
            names_bridge: true,
            own: true,
        };
        assert_eq!(plan("b0", std::slice::from_ref(&docker), &[own(1), own(2)]), Plan::default());
        let accepts = chain(IPV4, "filter", "FORWARD", false);
        let closed = plan("b0", std::slice::from_ref(&accepts), &[own(1), own(2)]);
        assert_eq!(closed.close, [(accepts, vec![1, 2])]);
        let ufw = Chain { forwards: false, ..chain(IPV4, "filter", "ufw-before-forward", false) };
        let told = plan("b0", &[docker, ufw], &[]);
        assert!(told.open.is_empty() && told.told[0].contains("ufw route allow in on b0"), "{told:?}");
        let by_hand = chain(INET, "filter", "forward", true);
        let told = plan("b0", std::slice::from_ref(&by_hand), &[]);
        assert!(told.told[0].contains("nft add rule inet filter forward iifname b0 accept"), "{told:?}");
        let knows = Rule { family: INET, chain: "forward".into(), own: false, ..own(7) };
        assert_eq!(plan("b0", &[by_hand], std::slice::from_ref(&knows)), Plan::default());
        let firewalld = chain(INET, "firewalld", "filter_FORWARD", false);
        assert!(plan("b0", &[firewalld], &[]).told[0].contains("--add-interface=b0"));
    }
}
