//! What a server tells its agents about the cluster (`/v1-k3s/config`).

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

use super::targets::Egress;

/// A network as Go's `net.IPNet` is encoded: the mask is bytes in base64.
#[derive(Deserialize)]
struct GoNet {
    #[serde(rename = "IP")]
    ip: IpAddr,
    #[serde(rename = "Mask")]
    mask: String,
}

impl GoNet {
    fn net(&self) -> Option<IpNet> {
        let mask = STANDARD.decode(&self.mask).ok()?;
        let mask = match <[u8; 4]>::try_from(mask.as_slice()) {
            Ok(v4) => IpAddr::from(v4),
            Err(_) => IpAddr::from(<[u8; 16]>::try_from(mask.as_slice()).ok()?),
        };
        Some(IpNet::with_netmask(self.ip, mask).ok()?.trunc())
    }
}

/// Those of the server's settings that an agent needs. Others, and those of later versions, are left aside.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct ServerConfig {
    #[serde(rename = "ClusterDNS", deserialize_with = "address")]
    dns: Option<IpAddr>,
    #[serde(rename = "ClusterDNSs", deserialize_with = "addresses")]
    all_dns: Vec<IpAddr>,
    /// Cluster domain; empty: not told.
    #[serde(rename = "ClusterDomain", deserialize_with = "or_default")]
    pub domain: String,
    #[serde(rename = "ClusterIPRange", deserialize_with = "network")]
    range: Option<IpNet>,
    #[serde(rename = "ClusterIPRanges", deserialize_with = "networks")]
    ranges: Vec<IpNet>,
    #[serde(rename = "EgressSelectorMode", deserialize_with = "or_default")]
    egress: String,
    /// Which pod network the cluster has: `vxlan`, `host-gw`, `wireguard-native`, `none`, ...
    #[serde(rename = "FlannelBackend", deserialize_with = "or_default")]
    pub flannel: String,
    /// Port of the API server.
    #[serde(rename = "HTTPSPort", deserialize_with = "or_default")]
    pub https_port: u16,
    /// Port of what agents ask; the same one with k3s.
    #[serde(rename = "SupervisorPort", deserialize_with = "or_default")]
    pub supervisor_port: u16,
}

impl ServerConfig {
    /// Reads it.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        // an object first: a list would do for a structure whose fields may all be missing
        serde_json::from_slice::<serde_json::Map<_, _>>(json)
            .and_then(|object| serde_json::from_value(object.into()))
            .map_err(|e| format!("the server's /v1-k3s/config is not understood: {e}"))
    }

    /// Name servers of pods.
    pub fn dns(&self) -> Vec<IpAddr> {
        if self.all_dns.is_empty() { self.dns.into_iter().collect() } else { self.all_dns.clone() }
    }

    /// Ranges of all pods.
    pub fn pods(&self) -> Vec<IpNet> {
        if self.ranges.is_empty() { self.range.into_iter().collect() } else { self.ranges.clone() }
    }

    /// What the server reaches through the tunnel.
    pub fn egress(&self) -> Egress {
        Egress::parse(&self.egress)
    }
}

/// Go writes what is not there as null.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn address<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IpAddr>, D::Error> {
    let text: String = or_default(from)?;
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(serde::de::Error::custom) }
}

fn addresses<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpAddr>, D::Error> {
    let texts: Vec<String> = or_default(from)?;
    texts.iter().filter(|t| !t.is_empty()).map(|t| t.parse().map_err(serde::de::Error::custom)).collect()
}

fn network<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IpNet>, D::Error> {
    let net: Option<GoNet> = Option::deserialize(from)?;
    net.map(|n| n.net().ok_or_else(|| serde::de::Error::custom("a network with an odd mask"))).transpose()
}

fn networks<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpNet>, D::Error> {
    let nets: Vec<GoNet> = or_default(from)?;
    nets.iter().map(|n| n.net().ok_or_else(|| serde::de::Error::custom("a network with an odd mask"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_go_encodes_them() {
        let config = ServerConfig::parse(
            br#"{"ClusterDNS":"10.43.0.10","ClusterDNSs":["10.43.0.10"],"ClusterDomain":"k.local",
            "ClusterIPRange":{"IP":"10.42.0.0","Mask":"//8AAA=="},"ClusterIPRanges":[{"IP":"10.42.0.0","Mask":"//8AAA=="},
            {"IP":"2001:cafe:42::","Mask":"/////////wAAAAAAAAAAAA=="}],"EgressSelectorMode":"agent","FlannelBackend":"vxlan",
            "HTTPSPort":6443,"SupervisorPort":6443,"ServiceIPRange":null,"Unknown":{"a":[1]}}"#,
        )
        .unwrap();
        assert_eq!(config.pods(), ["10.42.0.0/16".parse().unwrap(), "2001:cafe:42::/56".parse::<IpNet>().unwrap()]);
        assert_eq!((config.domain.as_str(), config.https_port, config.egress()), ("k.local", 6443, Egress::Agent));
        assert_eq!(config.dns().len(), 1);
        let empty = ServerConfig::parse(br#"{"ClusterDNS":"","ClusterIPRange":null,"ClusterIPRanges":null}"#).unwrap();
        assert_eq!(empty, ServerConfig::default());
        for wrong in
            [&b""[..], b"[]", b"{", br#"{"ClusterDNS":7}"#, br#"{"ClusterIPRange":{"IP":"10.0.0.0","Mask":"AP8="}}"#]
        {
            assert!(ServerConfig::parse(wrong).is_err(), "{}", String::from_utf8_lossy(wrong));
        }
    }
}
