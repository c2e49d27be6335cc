//! Addresses of pods, and ports of the host that lead to them: kept in a file so that no address is handed out twice across
//! crashes, and no port is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::types::{HostPort, NetworkError};

use crate::files::{self, Durability};

/// Leases by sandbox id, written before an address is used.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Leases {
    held: BTreeMap<String, Vec<IpAddr>>,
    /// The last address given of each range: freed ones are used again as late as possible.
    last: BTreeMap<IpNet, IpAddr>,
    /// Ports of the host, of sandboxes that have any.
    #[serde(default)]
    ports: BTreeMap<String, Vec<HostPort>>,
    #[serde(skip)]
    file: PathBuf,
}

/// What machines of a range may be called: the first address of an IPv6 range means any router there (RFC 4291, 2.6.1).
fn hosts(range: &IpNet) -> impl Iterator<Item = IpAddr> {
    range.hosts().filter(|ip| ip.is_ipv4() || *ip != range.network())
}

/// The bridge's own address: the first of the range.
pub fn gateway(range: &IpNet) -> Option<IpAddr> {
    hosts(range).next()
}

/// The free address after `last`, from the beginning again behind the end. Its cost does not grow with the addresses that
/// were given before.
fn free(range: &IpNet, last: Option<IpAddr>, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let number = |ip| match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    };
    let address = |n: u128| match range {
        IpNet::V4(_) => u32::try_from(n).map(Ipv4Addr::from).map(IpAddr::V4).ok(),
        IpNet::V6(_) => Some(IpAddr::V6(n.into())),
    };
    // the first is the bridge's own
    let first = number(gateway(range)?) + 1;
    // the last one of IPv4 is for all of them
    let end = number(range.broadcast()) + u128::from(range.addr().is_ipv6());
    let next = last.filter(|ip| range.contains(ip)).map_or(first, |ip| number(ip) + 1).max(first);
    (next..end).chain(first..next.min(end)).filter_map(address).find(|ip| !taken.contains(ip))
}

impl Leases {
    /// Reads the leases below `dir`. None is no error; a damaged file (its folder may be on a disk, and the power have failed)
    /// is set aside, and all addresses are free.
    pub fn open(dir: &Path) -> Result<Self, NetworkError> {
        let file = dir.join("leases.json");
        let failed = |source| NetworkError::Io { what: format!("reading {}", file.display()), source };
        files::dir(dir, 0o700).map_err(failed)?;
        let mut leases: Self = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).or_else(|error| {
                let aside = file.with_extension("json.damaged");
                tracing::warn!(file = %file.display(), aside = %aside.display(), %error, "leases cannot be read: addresses are given anew");
                fs::rename(&file, &aside).map(|()| Self::default()).map_err(failed)
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => return Err(failed(error)),
        };
        leases.file = file;
        Ok(leases)
    }

    /// Addresses of a sandbox.
    pub fn of(&self, sandbox: &str) -> Option<&Vec<IpAddr>> {
        self.held.get(sandbox)
    }

    /// One address of each range, and `ports` beside; the same again for the same sandbox.
    pub fn take(&mut self, sandbox: &str, ranges: &[IpNet], ports: &[HostPort]) -> Result<Vec<IpAddr>, NetworkError> {
        if let Some(held) = self.held.get(sandbox) {
            return Ok(held.clone());
        }
        let taken: BTreeSet<IpAddr> = self.held.values().flatten().copied().collect();
        let mut given = Vec::new();
        for range in ranges {
            let free = free(range, self.last.get(range).copied(), &taken);
            let ip = free.ok_or_else(|| NetworkError::Exhausted(range.to_string()))?;
            self.last.insert(*range, ip);
            given.push(ip);
        }
        self.held.insert(sandbox.to_owned(), given.clone());
        if !ports.is_empty() {
            self.ports.insert(sandbox.to_owned(), ports.to_vec());
        }
        self.save()?;
        Ok(given)
    }

    /// Every port of the host, with each address it leads to.
    pub fn ports(&self) -> Vec<(IpAddr, HostPort)> {
        let ips = |sandbox| self.held.get(sandbox).into_iter().flatten();
        let each = |(sandbox, ports): (_, &'_ Vec<HostPort>)| {
            let ports = ports.clone();
            ips(sandbox).flat_map(move |ip| ports.clone().into_iter().map(|port| (*ip, port))).collect::<Vec<_>>()
        };
        self.ports.iter().flat_map(each).collect()
    }

    /// Takes the ports of a sandbox from it; its addresses it has still. Written when those are freed.
    pub fn close(&mut self, sandbox: &str) -> Vec<HostPort> {
        self.ports.remove(sandbox).unwrap_or_default()
    }

    /// Frees what a sandbox holds.
    pub fn free(&mut self, sandbox: &str) -> Result<(), NetworkError> {
        if self.held.remove(sandbox).is_some() { self.save() } else { Ok(()) }
    }

    /// True when a sandbox has an address there.
    pub fn any_in(&self, range: &IpNet) -> bool {
        self.held.values().flatten().any(|ip| range.contains(ip))
    }

    /// Every sandbox that holds addresses.
    pub fn holders(&self) -> Vec<String> {
        self.held.keys().cloned().collect()
    }

    fn save(&self) -> Result<(), NetworkError> {
        serde_json::to_vec(self)
            .map_err(io::Error::other)
            .and_then(|text| files::write(&self.file, &text, 0o600, Durability::Volatile))
            .map_err(|source| NetworkError::Io { what: format!("writing {}", self.file.display()), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::types::Protocol;

    #[test]
    fn addresses_are_unique_kept_and_freed() {
        let dir = std::env::temp_dir().join(format!("pikelet-ipam-{}", std::process::id()));
        let ranges = ["10.1.2.0/29".parse().unwrap()];
        let port = HostPort { ip: None, protocol: Protocol::Udp, port: 53, container_port: 5353 };
        let mut leases = Leases::open(&dir).unwrap();
        let mut given = Vec::new();
        for i in 0..5 {
            let ports: &[HostPort] = if i == 1 { &[port] } else { &[] };
            given.extend(leases.take(&format!("s{i}"), &ranges, ports).unwrap());
        }
        assert_eq!(given.iter().collect::<std::collections::BTreeSet<_>>().len(), 5);
        assert!(!given.contains(&gateway(&ranges[0]).unwrap()));
        assert!(matches!(leases.take("more", &ranges, &[]), Err(NetworkError::Exhausted(_))));
        let mut again = Leases::open(&dir).unwrap();
        assert_eq!(again.take("s1", &ranges, &[]).unwrap(), [given[1]]);
        assert_eq!(again.ports(), [(given[1], port)], "an agent that starts again knows them");
        assert_eq!(again.close("s1"), [port]);
        again.free("s1").unwrap();
        assert_eq!(again.take("more", &ranges, &[]).unwrap(), [given[1]]);
        assert!(Leases::open(&dir).unwrap().ports().is_empty());
        // as a power cut leaves it
        std::fs::write(dir.join("leases.json"), "").unwrap();
        assert!(Leases::open(&dir).unwrap().holders().is_empty());
        assert!(dir.join("leases.json.damaged").exists());
        let v6 = ["fd00::/64".parse().unwrap()];
        let first = ["fd00::1", "fd00::2"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(gateway(&v6[0]), Some(first[0]));
        assert_eq!(again.take("v6", &v6, &[]).unwrap(), [first[1]]);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_next_one_is_found_at_once() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let next = |range: &str, last: Option<&str>, taken: &[&str]| {
            free(&range.parse().unwrap(), last.map(ip), &taken.iter().map(|t| ip(t)).collect()).map(|ip| ip.to_string())
        };
        let some = |text: &str| Some(text.to_owned());
        // counting from the start would take years
        assert_eq!(next("fd00::/64", Some("fd00::7fff:ffff:ffff:ffff"), &[]), some("fd00::8000:0:0:0"));
        assert_eq!(next("fd00::/64", Some("fd00::ffff:ffff:ffff:ffff"), &["fd00::2"]), some("fd00::3"));
        assert_eq!(next("10.0.0.0/30", None, &[]), some("10.0.0.2"));
        assert_eq!(
            next("10.0.0.0/30", Some("10.0.0.2"), &["10.0.0.2"]),
            None,
            "first, last and the bridge's are no pod's"
        );
        assert_eq!(next("10.0.0.0/29", Some("10.0.0.6"), &[]), some("10.0.0.2"));
        assert_eq!(next("10.0.0.0/29", Some("192.168.0.1"), &[]), some("10.0.0.2"), "of another range");
    }
}
