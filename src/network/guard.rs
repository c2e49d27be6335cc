//! What a pod may send: only what says that it comes from the pod itself. Each pod's link has a chain of the family `netdev`, in a
//! table in the name of the bridge, which a packet meets before the bridge does. Pods with `NET_RAW` or `NET_ADMIN` make up
//! packets as they like: without it one of them is the gateway, or another pod, for its neighbours and for the node.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use nix::libc::{EAFNOSUPPORT, ENOENT, EOPNOTSUPP, EPROTONOSUPPORT};
use tokio::task::spawn_blocking;

use super::bandwidth::shaper;
use super::expressions::{Action, Match};
use super::types::NetworkError;
use super::{Network, link, locked, nft, outside};

/// `ETH_P_IP`, `ETH_P_ARP` and `ETH_P_IPV6`.
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
/// Types of `ICMPv6` (RFC 4861): what only routers send, and who asks or says which address is where.
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// What pods can do without.
const MISSED: &str = "pods of this node can pose as the gateway and as each other (a kernel with CONFIG_NETFILTER_INGRESS and \
                      CONFIG_NF_TABLES_NETDEV is needed)";

/// Who a pod is to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Of the link inside.
    pub hardware: [u8; 6],
    /// Of the pod.
    pub addresses: Vec<IpAddr>,
    /// The link that what it sends goes through (`bandwidth`).
    pub through: Option<u32>,
}

/// The address a link gives itself (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let pair = |high, low| u16::from_be_bytes([high, low]);
    let interface = [pair(mac[0] ^ 2, mac[1]), pair(mac[2], 0xff), pair(0xfe, mac[3]), pair(mac[4], mac[5])];
    let [first, second, third, fourth] = interface;
    Ipv6Addr::new(0xfe80, 0, 0, 0, first, second, third, fourth)
}

impl Identity {
    /// The rules of its chain: what none of them accepts is lost.
    pub fn rules(&self) -> Vec<(Vec<Match>, Action)> {
        let accept = self.through.map_or(Action::Accept, Action::Through);
        let mut rules = vec![(vec![Match::NotOfHardware(self.hardware)], Action::Drop)];
        let from = |kind, ip: IpAddr| vec![Match::EtherType(kind), Match::Source(ip.into())];
        let mut own = Vec::new();
        for address in &self.addresses {
            match address {
                IpAddr::V4(ip) => {
                    rules.push((from(IPV4, *address), accept.clone()));
                    let sender = Match::ArpSender(self.hardware, *ip);
                    rules.push((vec![Match::EtherType(ARP), sender], accept.clone()));
                }
                IpAddr::V6(ip) => own.push(*ip),
            }
        }
        if !own.is_empty() {
            own.push(link_local(self.hardware));
            let nobody = || Match::Source(IpAddr::from(Ipv6Addr::UNSPECIFIED).into());
            let others = || own.iter().map(|ip| Match::NotNeighbour(*ip));
            let icmp = |kind| vec![Match::EtherType(IPV6), Match::Icmpv6, Match::IcmpType(kind)];
            rules.push((icmp(ROUTER_ADVERTISEMENT), Action::Drop));
            rules.push((icmp(REDIRECT), Action::Drop));
            rules.push((icmp(ADVERTISEMENT).into_iter().chain(others()).collect(), Action::Drop));
            // who asks for its own address looks for others who have it already, and these give it up
            let claim = icmp(SOLICITATION).into_iter().chain([nobody()]).chain(others());
            rules.push((claim.collect(), Action::Drop));
            rules.extend(own.iter().map(|ip| (from(IPV6, (*ip).into()), accept.clone())));
            rules.push((vec![Match::EtherType(IPV6), nobody(), Match::Icmpv6], accept));
        }
        rules.push((Vec::new(), Action::Drop));
        rules
    }
}

/// True when the kernel has no such chains.
fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EOPNOTSUPP | EPROTONOSUPPORT | EAFNOSUPPORT | ENOENT))
}

/// Without its chain a pod would send as fast as it can.
fn not_limited(source: io::Error) -> NetworkError {
    let needs = if unsupported(&source) {
        "; a kernel with CONFIG_NETFILTER_INGRESS, CONFIG_NF_TABLES_NETDEV and CONFIG_NFT_FWD_NETDEV is needed"
    } else {
        ""
    };
    NetworkError::Io { what: format!("limiting what the pod sends (kubernetes.io/egress-bandwidth{needs})"), source }
}

impl Network {
    fn identity(&self, sandbox: &str, through: Option<u32>) -> Option<Identity> {
        let addresses = locked(&self.inner.leases).of(sandbox)?.clone();
        let hardware = link::hardware_address_of(*addresses.first()?);
        Some(Identity { hardware, addresses, through })
    }

    async fn put(&self, sandbox: &str, identity: Identity) -> io::Result<()> {
        let (table, link) = (self.inner.config.bridge.clone(), outside(sandbox));
        let put = spawn_blocking(move || nft::put_guard(&table, &link, &identity.rules()));
        put.await.map_err(io::Error::other)?
    }

    /// Lets a sandbox with a link send in its own name alone, by its shaper if it has one. A kernel without such chains is told
    /// of by [`Network::settle`].
    pub(super) async fn guard(&self, sandbox: &str, through: Option<u32>) -> Result<(), NetworkError> {
        let Some(identity) = self.identity(sandbox, through) else { return Ok(()) };
        let _turn = self.inner.guards.lock().await;
        match self.put(sandbox, identity).await {
            Err(source) if through.is_some() => Err(not_limited(source)),
            Err(error) if unsupported(&error) => {
                tracing::debug!(sandbox, %error, "not guarded: {MISSED}");
                Ok(())
            }
            other => other.map_err(|source| NetworkError::Io {
                what: format!("setting by nftables what link {} lets in", outside(sandbox)),
                source,
            }),
        }
    }

    /// Removes what [`Network::guard`] has made. Repeatable; what stays is removed later, and lets nothing in.
    pub(super) async fn unguard(&self, sandbox: &str) {
        let (table, link) = (self.inner.config.bridge.clone(), outside(sandbox));
        match spawn_blocking(move || nft::remove_guard(&table, &link)).await {
            Ok(Err(error)) if !unsupported(&error) => {
                tracing::warn!(sandbox, %error, "rules of a link that is no more are not removed");
            }
            _ => {}
        }
    }

    /// Guards the pods that are not, and removes what is left of others. What is wrong is in the answer.
    pub(super) async fn mend_guards(&self) -> Option<String> {
        let table = self.inner.config.bridge.clone();
        let look = move || {
            let standing = nft::guards(&table)?;
            if standing.is_empty() {
                nft::try_guard(&table)?;
            }
            Ok(standing)
        };
        let standing: BTreeMap<String, usize> = match spawn_blocking(look).await.map_err(io::Error::other).flatten() {
            Ok(found) => found,
            Err(error) => return Some(format!("{error}: {MISSED}")),
        };
        // a lease comes before its chain, and goes after it
        let holders = locked(&self.inner.leases).holders();
        let mut wrong = None;
        for sandbox in &holders {
            let Some(mut identity) = self.identity(sandbox, None) else { continue };
            let name = outside(sandbox);
            if standing.get(&name) == Some(&identity.rules().len()) {
                continue;
            }
            if link::index(&self.inner.handle, &name).await.is_none() {
                continue;
            }
            let put = {
                let _turn = self.inner.guards.lock().await;
                let looked = async { Ok(link::index(&self.inner.handle, &shaper(sandbox)).await) };
                match link::in_turn("looking for a pod's limit", looked).await {
                    Ok(through) => identity.through = through,
                    Err(error) => {
                        wrong = Some(format!("{error}: {MISSED}"));
                        continue;
                    }
                }
                self.put(sandbox, identity).await
            };
            match put {
                // it has gone meanwhile
                Err(_) if link::index(&self.inner.handle, &name).await.is_none() => {}
                Err(error) => wrong = Some(format!("{error}: {MISSED}")),
                Ok(()) => {}
            }
        }
        for name in standing.keys().filter(|name| !holders.iter().any(|s| outside(s) == **name)) {
            let (table, link) = (self.inner.config.bridge.clone(), name.clone());
            if let Ok(Err(error)) = spawn_blocking(move || nft::remove_guard(&table, &link)).await {
                tracing::debug!(link = name, %error, "rules of a link that is no more are not removed");
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_gives_itself_this_address() {
        let local = link_local([0x0a, 0x58, 10, 42, 0, 5]);
        assert_eq!(local, "fe80::858:aff:fe2a:5".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn a_kernel_is_blamed_for_what_it_lacks() {
        let [lacks, busy] =
            [EOPNOTSUPP, nix::libc::EBUSY].map(|errno| not_limited(io::Error::from_raw_os_error(errno)).to_string());
        assert!(lacks.contains("egress-bandwidth; a kernel with CONFIG_NETFILTER_INGRESS, CONFIG_"), "{lacks}");
        assert!(busy.contains("egress-bandwidth): ") && !busy.contains("CONFIG_"), "{busy}");
        assert!(!lacks.contains("  "), "{lacks}");
    }

    #[test]
    fn nothing_but_the_own_addresses_is_accepted() {
        let hardware = [0x0a, 0x58, 10, 42, 0, 5];
        let v4: IpAddr = "10.42.0.5".parse().unwrap();
        let of_v4 = Identity { hardware, addresses: vec![v4], through: None }.rules();
        assert_eq!(of_v4.first().unwrap().0, [Match::NotOfHardware(hardware)]);
        assert_eq!(of_v4.last().unwrap(), &(Vec::new(), Action::Drop));
        let accepted = |rules: &[(Vec<Match>, Action)]| {
            rules.iter().filter(|r| r.1 == Action::Accept).map(|r| r.0.clone()).collect::<Vec<_>>()
        };
        let v4_only = [
            vec![Match::EtherType(IPV4), Match::Source(v4.into())],
            vec![Match::EtherType(ARP), Match::ArpSender(hardware, "10.42.0.5".parse().unwrap())],
        ];
        assert_eq!(accepted(&of_v4), v4_only, "without an IPv6 range there is no IPv6");
        let both = Identity { hardware, addresses: vec![v4, "fd00::5".parse().unwrap()], through: None };
        let limited = Identity { through: Some(7), ..both.clone() }.rules();
        let both = both.rules();
        assert_eq!(limited.iter().filter(|r| r.1 == Action::Through(7)).count(), 5, "all that is let in");
        assert_eq!(accepted(&limited), Vec::<Vec<Match>>::new(), "nothing gets past the limit");
        assert_eq!(limited.len(), both.len());
        let accepted = accepted(&both);
        for source in ["fd00::5", "fe80::858:aff:fe2a:5"] {
            let source = source.parse::<IpAddr>().unwrap().into();
            assert!(accepted.contains(&vec![Match::EtherType(IPV6), Match::Source(source)]));
        }
        assert_eq!(accepted.len(), 5);
        let first = both.iter().position(|r| r.1 == Action::Accept && r.0[0] == Match::EtherType(IPV6)).unwrap();
        let last = both.iter().rposition(|r| r.1 == Action::Drop && r.0.contains(&Match::Icmpv6)).unwrap();
        assert!(last < first, "what is said of other addresses is lost before the own ones count");
    }
}
