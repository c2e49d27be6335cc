//! The host names of a pod (Kubernetes "DNS for Services and Pods": hostname, subdomain, setHostnameAsFQDN,
//! hostnameOverride), and the files that say them.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::PodExt;
use crate::network;

/// Longest label of a DNS name.
const LABEL_MAX: usize = 63;
/// Longest host name the kernel keeps (`sethostname(2)`).
const HOST_NAME_MAX: usize = 64;

/// What a pod is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// As the kernel, `/etc/hostname` and `HOSTNAME` say it.
    pub hostname: String,
    /// Names in `/etc/hosts`: the full one, if the pod has a subdomain, and the short one.
    names: Vec<String>,
}

impl Identity {
    /// The identity of a pod; one that shares the host's network is called as the machine is.
    pub fn of(pod: &Pod, cluster_domain: &str, machine: &str) -> Result<Self, String> {
        let default = PodSpec::default();
        let spec = pod.pod_spec().unwrap_or(&default);
        if pod.host_network() {
            return Ok(Self { hostname: machine.to_owned(), names: Vec::new() });
        }
        if let Some(name) = &spec.hostname_override {
            return Ok(Self { hostname: name.clone(), names: vec![name.clone()] });
        }
        let name = spec.hostname.as_deref().filter(|h| !h.is_empty()).unwrap_or_else(|| pod.name());
        let short = name.chars().take(LABEL_MAX).collect::<String>().trim_end_matches(['-', '.']).to_owned();
        let Some(subdomain) = spec.subdomain.as_deref().filter(|s| !s.is_empty()) else {
            return Ok(Self { hostname: short.clone(), names: vec![short] });
        };
        let full = format!("{short}.{subdomain}.{}.svc.{cluster_domain}", pod.ns());
        let as_full = spec.set_hostname_as_fqdn == Some(true);
        if as_full && full.len() > HOST_NAME_MAX {
            return Err(format!(
                "Failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long \
                 ({HOST_NAME_MAX} characters is the max, {} characters requested)",
                full.len()
            ));
        }
        let hostname = if as_full { full.clone() } else { short.clone() };
        Ok(Self { hostname, names: vec![full, short] })
    }

    /// The managed `/etc/hosts`. `machine`: the machine's own, for a pod that shares its network.
    pub fn hosts_file(&self, spec: &PodSpec, ips: &[IpAddr], machine: Option<&str>) -> String {
        let aliases: Vec<_> = spec
            .host_aliases
            .iter()
            .flatten()
            .map(|a| (a.ip.clone(), a.hostnames.clone().unwrap_or_default()))
            .collect();
        match machine {
            Some(text) => network::host_hosts_file(text, &aliases),
            None => network::hosts_file(ips, &self.names, &aliases),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(spec: serde_json::Value) -> Result<Identity, String> {
        let pod = serde_json::json!({"metadata": {"name": "web-0", "namespace": "ns"}, "spec": spec});
        Identity::of(&serde_json::from_value(pod).unwrap(), "cluster.local", "board")
    }

    #[test]
    fn names_by_the_fields_of_the_pod() {
        let full = "web-0.sub.ns.svc.cluster.local";
        for (spec, hostname, names) in [
            (serde_json::json!({"containers": []}), "web-0", vec!["web-0"]),
            (serde_json::json!({"containers": [], "hostname": "h"}), "h", vec!["h"]),
            (serde_json::json!({"containers": [], "subdomain": "sub"}), "web-0", vec![full, "web-0"]),
            (
                serde_json::json!({"containers": [], "subdomain": "sub", "setHostnameAsFQDN": true}),
                full,
                vec![full, "web-0"],
            ),
            (
                serde_json::json!({"containers": [], "hostname": "h", "subdomain": "sub", "hostnameOverride": "o.x"}),
                "o.x",
                vec!["o.x"],
            ),
            (serde_json::json!({"containers": [], "hostNetwork": true, "hostname": "h"}), "board", vec![]),
        ] {
            let found = identity(spec.clone()).unwrap();
            assert_eq!(
                (found.hostname.as_str(), found.names),
                (hostname, names.into_iter().map(str::to_owned).collect()),
                "{spec}"
            );
        }
        let long = serde_json::json!({"containers": [], "subdomain": "s".repeat(40), "setHostnameAsFQDN": true});
        assert!(identity(long).unwrap_err().contains("64 characters is the max"));
    }
}
