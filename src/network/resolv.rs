//! A pod's resolv.conf and hosts file (Kubernetes "DNS for Services and Pods"; "Adding entries to Pod /etc/hosts").

use std::fmt::Write;
use std::net::IpAddr;

use super::types::DnsOptions;

/// Kubernetes' limits.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;

/// The host's resolv.conf; the real one where systemd-resolved puts a stub in front.
pub fn host_resolv_conf() -> String {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    if text.contains("127.0.0.53") {
        return std::fs::read_to_string("/run/systemd/resolve/resolv.conf").unwrap_or(text);
    }
    text
}

fn values(host: &str, key: &str) -> Vec<String> {
    let lines = host.lines().filter_map(|l| l.trim().strip_prefix(key)?.strip_prefix([' ', '\t']));
    lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
}

/// resolv.conf by `dnsPolicy` and `dnsConfig`.
pub fn resolv_conf(
    policy: &str,
    host_network: bool,
    host: &str,
    cluster_dns: &[IpAddr],
    domain: &str,
    namespace: &str,
    dns: Option<&DnsOptions>,
) -> String {
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !host_network,
        _ => false,
    } && !cluster_dns.is_empty();
    let (mut servers, mut searches, mut options) = match policy {
        "None" => (Vec::new(), Vec::new(), Vec::new()),
        _ => (values(host, "nameserver"), values(host, "search"), values(host, "options")),
    };
    if cluster {
        servers = cluster_dns.iter().map(IpAddr::to_string).collect();
        let own = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
        searches.splice(0..0, own);
        options = vec!["ndots:5".to_owned()];
    }
    if let Some(dns) = dns {
        servers.extend(dns.nameservers.iter().cloned());
        searches.extend(dns.searches.iter().cloned());
        for option in &dns.options {
            let name = option.split(':').next().unwrap_or_default();
            options.retain(|o| o.split(':').next() != Some(name));
            options.push(option.clone());
        }
    }
    let mut text = String::new();
    for server in servers.iter().take(MAX_SERVERS) {
        // writing to a String cannot fail, here and below
        let _ = writeln!(text, "nameserver {server}");
    }
    let mut unique = Vec::new();
    for search in searches {
        if !unique.contains(&search) && unique.len() < MAX_SEARCHES {
            unique.push(search);
        }
    }
    if !unique.is_empty() {
        let _ = writeln!(text, "search {}", unique.join(" "));
    }
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}

/// The managed hosts file of a pod with these names.
pub fn hosts_file(ips: &[IpAddr], names: &[String], aliases: &[(String, Vec<String>)]) -> String {
    let mut text =
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                    fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned();
    for ip in ips {
        let _ = writeln!(text, "{ip}\t{}", names.join("\t"));
    }
    add_aliases(text, aliases)
}

/// The managed hosts file of a pod that shares the host's network: the host's own, and the pod's aliases.
pub fn host_hosts_file(host: &str, aliases: &[(String, Vec<String>)]) -> String {
    add_aliases(format!("# Kubernetes-managed hosts file (host network).\n{host}"), aliases)
}

fn add_aliases(mut text: String, aliases: &[(String, Vec<String>)]) -> String {
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for (ip, names) in aliases {
            let _ = writeln!(text, "{ip}\t{}", names.join("\t"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies() {
        let dns = ["10.96.0.10".parse().unwrap()];
        let host = "nameserver 9.9.9.9\nsearch home\n";
        let text = resolv_conf("ClusterFirst", false, host, &dns, "cluster.local", "ns", None);
        let want = "nameserver 10.96.0.10\nsearch ns.svc.cluster.local svc.cluster.local cluster.local home\noptions ndots:5\n";
        assert_eq!(text, want);
        assert_eq!(resolv_conf("ClusterFirst", true, host, &dns, "cluster.local", "ns", None), host);
        let own = DnsOptions { nameservers: vec!["1.2.3.4".into()], ..DnsOptions::default() };
        assert_eq!(resolv_conf("None", false, host, &dns, "c", "ns", Some(&own)), "nameserver 1.2.3.4\n");
    }
}
