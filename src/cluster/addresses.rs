//! Addresses and names of a Node beside those its machine has: by which others reach it.

use std::net::IpAddr;

use serde_json::{Value, json};

/// `status.addresses` of other types than `InternalIP` and `Hostname`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MoreAddresses {
    /// `ExternalIP`.
    pub external_ips: Vec<IpAddr>,
    /// `InternalDNS`.
    pub internal_names: Vec<String>,
    /// `ExternalDNS`.
    pub external_names: Vec<String>,
}

impl MoreAddresses {
    /// As a Node's status has them.
    pub(super) fn written(&self) -> impl Iterator<Item = Value> {
        let ips = self.external_ips.iter().map(|ip| ("ExternalIP", ip.to_string()));
        let internal = self.internal_names.iter().map(|name| ("InternalDNS", name.clone()));
        let external = self.external_names.iter().map(|name| ("ExternalDNS", name.clone()));
        ips.chain(internal).chain(external).map(|(kind, address)| json!({"type": kind, "address": address}))
    }

    /// As annotations that k3s's cloud controller makes a Node's addresses of.
    pub(super) fn of_k3s(&self) -> impl Iterator<Item = (&'static str, String)> {
        let ips = self.external_ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let all = [
            ("k3s.io/external-ip", ips),
            ("k3s.io/internal-dns", self.internal_names.join(",")),
            ("k3s.io/external-dns", self.external_names.join(",")),
        ];
        all.into_iter().filter(|(_, value)| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_written_for_whoever_reads_it() {
        let more = MoreAddresses {
            external_ips: ["198.51.100.2", "2001:db8::2"].map(|ip| ip.parse().unwrap()).to_vec(),
            external_names: vec!["pi.example".to_owned()],
            ..MoreAddresses::default()
        };
        let written: Vec<String> = more.written().map(|a| format!("{} {}", a["type"], a["address"])).collect();
        assert_eq!(
            written,
            [r#""ExternalIP" "198.51.100.2""#, r#""ExternalIP" "2001:db8::2""#, r#""ExternalDNS" "pi.example""#]
        );
        let annotations: Vec<_> = more.of_k3s().collect();
        assert_eq!(
            annotations,
            [
                ("k3s.io/external-ip", "198.51.100.2,2001:db8::2".to_owned()),
                ("k3s.io/external-dns", "pi.example".to_owned())
            ]
        );
    }
}
