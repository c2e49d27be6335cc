//! Addresses of pods, and ports of the host that lead to them: kept in a file so that no address is handed out twice across
//! crashes, and no port is forgotten.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::types::{HostPort, NetworkError};

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

impl Leases {
    /// Reads the leases below `dir`; none is no error, an unreadable file is.
    pub fn open(dir: &Path) -> Result<Self, NetworkError> {
        let file = dir.join("leases.json");
        let failed = |source| NetworkError::Io { what: format!("reading {}", file.display()), source };
        fs::create_dir_all(dir).map_err(failed)?;
        let mut leases: Self = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| failed(e.into()))?,
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
        let mut given = Vec::new();
        for range in ranges {
            let last = self.last.get(range).copied();
            let usable = || hosts(range).skip(1).filter(|ip| !self.held.values().flatten().any(|h| h == ip));
            let free = usable().find(|ip| last.is_none_or(|l| *ip > l)).or_else(|| usable().next());
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

    /// Every sandbox that holds addresses.
    pub fn holders(&self) -> Vec<String> {
        self.held.keys().cloned().collect()
    }

    fn save(&self) -> Result<(), NetworkError> {
        serde_json::to_vec(self)
            .map_err(io::Error::other)
            .and_then(|text| crate::durable::replace(&self.file, &text, false))
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
        let v6 = ["fd00::/64".parse().unwrap()];
        let first = ["fd00::1", "fd00::2"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(gateway(&v6[0]), Some(first[0]));
        assert_eq!(again.take("v6", &v6, &[]).unwrap(), [first[1]]);
        fs::remove_dir_all(dir).unwrap();
    }
}
