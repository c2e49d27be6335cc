//! A pod's resolv.conf and hosts file (Kubernetes "DNS for Services and Pods"; "Adding entries to Pod /etc/hosts").

use std::fmt::Write;
use std::net::IpAddr;

use super::types::DnsOptions;

/// Kubernetes' limits (`MaxDNSNameservers`, `MaxDNSSearchPaths`, `MaxDNSSearchListChars`, `DNS1123SubdomainMaxLength`).
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_LINE: usize = 2048;
const MAX_SEARCH: usize = 253;
/// Search domains a pod of the cluster has beside the host's.
const OWN_SEARCHES: usize = 3;

/// What a resolv.conf says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl Parsed {
    /// As the kubelet reads it (`parseResolvConf`): the last `search` counts, the root is no search domain, and a dot at the
    /// end none of a name.
    pub fn of(text: &str) -> Self {
        let mut parsed = Self::default();
        for line in text.lines().map(str::trim).filter(|l| !l.starts_with(['#', ';'])) {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => parsed.servers.extend(words.next()),
                Some("search") => {
                    let names = words.map(|name| name.strip_suffix('.').unwrap_or(&name).to_owned());
                    parsed.searches = names.filter(|name| !name.is_empty()).collect();
                }
                Some("options") => add_options(&mut parsed.options, words),
                _ => {}
            }
        }
        parsed
    }
}

/// What of a host's resolv.conf is too much for its pods; the first of it, in the kubelet's words.
pub(super) fn too_much(file: &str, text: &str) -> Option<String> {
    let searches = Parsed::of(text).searches;
    let most = MAX_SEARCHES - OWN_SEARCHES;
    if searches.len() > most {
        Some(format!("Resolv.conf file '{file}' contains search line consisting of more than {most} domains!"))
    } else if searches.iter().any(|name| name.len() > MAX_SEARCH) {
        Some(format!(
            "Resolv.conf file {file:?} contains a search path which length is more than allowed {MAX_SEARCH} chars!"
        ))
    } else if searches.join(" ").len() > MAX_SEARCH_LINE {
        Some(format!(
            "Resolv.conf file '{file}' contains search line which length is more than allowed {MAX_SEARCH_LINE} chars!"
        ))
    } else {
        None
    }
}

/// Without those that were named before.
fn unique(names: Vec<String>) -> Vec<String> {
    let mut unique = Vec::new();
    for name in names {
        if !unique.contains(&name) {
            unique.push(name);
        }
    }
    unique
}

/// One that is named again counts anew.
fn add_options(options: &mut Vec<String>, more: impl Iterator<Item = String>) {
    for option in more {
        let name = option.split(':').next().unwrap_or_default();
        options.retain(|o| o.split(':').next() != Some(name));
        options.push(option);
    }
}

/// Whom a pod asks for names, by its settings and the node's.
#[derive(Debug)]
pub struct Resolver<'a> {
    /// `dnsPolicy`.
    pub policy: &'a str,
    /// The pod shares the host's network.
    pub host_network: bool,
    /// Name servers of the cluster.
    pub cluster_dns: &'a [IpAddr],
    /// Domain of the cluster.
    pub domain: &'a str,
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod's `dnsConfig`.
    pub dns: Option<&'a DnsOptions>,
}

/// A pod's resolv.conf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvConf {
    /// The file.
    pub text: String,
    /// What was left out of it, for an Event (`DNSConfigForming`).
    pub left_out: Vec<String>,
}

impl Resolver<'_> {
    fn wants_cluster(&self) -> bool {
        match self.policy {
            "ClusterFirstWithHostNet" => true,
            "ClusterFirst" => !self.host_network,
            _ => false,
        }
    }

    fn asks_cluster(&self) -> bool {
        self.wants_cluster() && !self.cluster_dns.is_empty()
    }

    /// What is said of a pod that wants the cluster's name servers where none are known, for Events (`MissingClusterDNS`).
    pub fn misses_cluster(&self) -> Option<&'static str> {
        (self.wants_cluster() && self.cluster_dns.is_empty()).then_some(
            "kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back \
             to \"Default\" policy.",
        )
    }

    /// True when the pod asks whom the host asks.
    pub fn follows_host(&self) -> bool {
        !self.asks_cluster() && self.policy != "None"
    }

    /// resolv.conf by `dnsPolicy` and `dnsConfig`; `host`: that of the host.
    pub fn conf(&self, host: &str) -> ResolvConf {
        let mut parsed = if self.policy == "None" { Parsed::default() } else { Parsed::of(host) };
        if self.asks_cluster() {
            parsed.servers = self.cluster_dns.iter().map(IpAddr::to_string).collect();
            let (namespace, domain) = (self.namespace, self.domain);
            let own = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
            parsed.searches.splice(0..0, own);
            parsed.options = vec!["ndots:5".to_owned()];
        } else if !self.host_network {
            // an address at a link of the host means nothing elsewhere
            parsed.servers.retain(|server| !server.contains('%'));
        }
        if let Some(dns) = self.dns {
            parsed.servers.extend(dns.nameservers.iter().cloned());
            parsed.servers = unique(parsed.servers);
            parsed.searches.extend(dns.searches.iter().cloned());
            add_options(&mut parsed.options, dns.options.iter().cloned());
        }
        write(parsed)
    }
}

/// The file, within Kubernetes' limits.
fn write(parsed: Parsed) -> ResolvConf {
    let (mut text, mut left_out) = (String::new(), Vec::new());
    let servers = &parsed.servers[..parsed.servers.len().min(MAX_SERVERS)];
    if servers.len() < parsed.servers.len() {
        left_out.push(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            servers.join(" ")
        ));
    }
    for server in servers {
        // writing to a String cannot fail, here and below
        let _ = writeln!(text, "nameserver {server}");
    }
    let unique = unique(parsed.searches);
    let (all, mut length) = (unique.len(), 0);
    let fits = |name: &String| {
        length += name.len() + 1;
        length <= MAX_SEARCH_LINE + 1
    };
    let searches: Vec<String> =
        unique.into_iter().take(MAX_SEARCHES).filter(|name| name.len() <= MAX_SEARCH).take_while(fits).collect();
    if searches.len() < all {
        left_out.push(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            searches.join(" ")
        ));
    }
    if !searches.is_empty() {
        let _ = writeln!(text, "search {}", searches.join(" "));
    }
    if !parsed.options.is_empty() {
        let _ = writeln!(text, "options {}", parsed.options.join(" "));
    }
    ResolvConf { text, left_out }
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

    fn resolver<'a>(policy: &'a str, host_network: bool, cluster_dns: &'a [IpAddr]) -> Resolver<'a> {
        Resolver { policy, host_network, cluster_dns, domain: "cluster.local", namespace: "ns", dns: None }
    }

    #[test]
    fn policies() {
        let dns = ["10.96.0.10".parse().unwrap()];
        let host = "nameserver 9.9.9.9\nsearch home\n";
        let text = resolver("ClusterFirst", false, &dns).conf(host).text;
        let want = "nameserver 10.96.0.10\nsearch ns.svc.cluster.local svc.cluster.local cluster.local home\noptions ndots:5\n";
        assert_eq!(text, want);
        assert_eq!(resolver("ClusterFirst", true, &dns).conf(host).text, host);
        let own = DnsOptions { nameservers: vec!["1.2.3.4".into()], ..DnsOptions::default() };
        let none = Resolver { dns: Some(&own), ..resolver("None", false, &dns) };
        assert_eq!(none.conf(host).text, "nameserver 1.2.3.4\n");
        let follow = [("Default", false), ("ClusterFirst", true), ("ClusterFirst", false), ("None", false)];
        assert_eq!(
            follow.map(|(policy, host)| resolver(policy, host, &dns).follows_host()),
            [true, true, false, false]
        );
    }

    #[test]
    fn the_host_is_read_as_the_kubelet_reads_it() {
        let of = |host: &str| resolver("Default", false, &[]).conf(host).text;
        assert_eq!(of("nameserver 9.9.9.9\nsearch .\n"), "nameserver 9.9.9.9\n");
        assert_eq!(of("search old\nsearch lan. home\n"), "search lan home\n");
        assert_eq!(
            of("# nameserver 127.0.0.53\n;nameserver 1.1.1.1\nnameserver 8.8.8.8 # why\n"),
            "nameserver 8.8.8.8\n"
        );
        assert_eq!(of("options ndots:1 rotate\noptions ndots:2\n"), "options rotate ndots:2\n");
        let at_link = "nameserver fe80::1%eth0\n";
        assert_eq!(of(at_link), "");
        assert_eq!(resolver("Default", true, &[]).conf(at_link).text, at_link);
    }

    #[test]
    fn what_is_too_much_is_said() {
        let many: String = (1..=4).map(|n| format!("nameserver 10.0.0.{n}\n")).collect();
        let conf = resolver("Default", false, &[]).conf(&many);
        assert_eq!(conf.text.lines().count(), 3);
        assert!(conf.left_out[0].ends_with("nameserver line is: 10.0.0.1 10.0.0.2 10.0.0.3"), "{conf:?}");
        let names = |n: usize, length: usize| (0..n).map(|i| format!(" {i:0length$}")).collect::<String>();
        let searches = |line: &str| {
            let conf = resolver("Default", false, &[]).conf(&format!("search{line}\n"));
            (conf.text.split_whitespace().count() - 1, conf.left_out.len())
        };
        assert_eq!([searches(&names(32, 4)), searches(&names(33, 4))], [(32, 0), (32, 1)]);
        // 16 of 127 and 15 blanks are 2047
        assert_eq!([searches(&names(16, 127)), searches(&names(17, 127))], [(16, 0), (16, 1)]);
        // some resolvers end the program at such a one
        assert_eq!(searches(&format!("{}{} last", names(1, 253), names(1, 254))), (2, 1));
        let of_host = |line: &str| too_much("/r", &format!("search{line}\n"));
        assert_eq!([of_host(&names(29, 4)), of_host(&names(16, 127))], [None, None]);
        for (line, why) in [(names(30, 4), "more than 29 domains"), (names(1, 254), "253"), (names(17, 127), "2048")] {
            assert!(of_host(&line).unwrap().contains(why), "{why}");
        }
    }

    #[test]
    fn a_server_of_the_pod_that_is_there_already_takes_no_place() {
        let dns = ["10.96.0.10".parse().unwrap()];
        let own =
            DnsOptions { nameservers: ["10.96.0.10", "1.1.1.1"].map(str::to_owned).into(), ..DnsOptions::default() };
        let conf = Resolver { dns: Some(&own), ..resolver("ClusterFirst", false, &dns) }.conf("");
        assert_eq!(conf.text.matches("nameserver").count(), 2);
        let missed = |policy, host, dns| resolver(policy, host, dns).misses_cluster().is_some();
        assert!(missed("ClusterFirst", false, &[]) && missed("ClusterFirstWithHostNet", true, &[]));
        assert!(
            !missed("ClusterFirst", true, &[])
                && !missed("Default", false, &[])
                && !missed("ClusterFirst", false, &dns)
        );
    }
}
