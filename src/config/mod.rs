//! The settings of an agent: file, flags, defaults, validation. Option names are kubelet's or k3s's where they exist.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::image::RegistryConfig;

/// Where the file is looked for when none is named.
pub const DEFAULT_FILE: &str = "/etc/pikelet/config.yaml";

/// Settings that do not make sense; the message says which, where and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// One source of settings: the file, or the flags.
#[derive(Debug, Clone, Default, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// Kubeconfig of the control plane; without one only static pods run
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of the Node [default: the host name]
    #[arg(long)]
    #[serde(alias = "hostnameOverride", alias = "node-name")]
    pub node_name: Option<String>,
    /// Addresses of the Node
    #[arg(long = "node-ip", value_delimiter = ',')]
    #[serde(rename = "nodeIP", alias = "node-ip")]
    pub node_ip: Vec<IpAddr>,
    /// Ranges pods get their addresses from, instead of the Node's spec.podCIDRs
    #[arg(long = "pod-cidr", value_delimiter = ',')]
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Vec<ipnet::IpNet>,
    /// Ranges of all pods of the cluster (not masqueraded)
    #[arg(long = "cluster-cidr", value_delimiter = ',')]
    #[serde(rename = "clusterCIDR", alias = "cluster-cidr")]
    pub cluster_cidr: Vec<ipnet::IpNet>,
    /// Folder of static pod manifests
    #[arg(long, value_name = "DIR")]
    #[serde(alias = "staticPodPath")]
    pub pod_manifest_path: Option<PathBuf>,
    /// Data that outlives a reboot [default: /var/lib/pikelet]
    #[arg(long, value_name = "DIR")]
    #[serde(alias = "data-dir")]
    pub root_dir: Option<PathBuf>,
    /// Volatile state [default: /run/pikelet]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Container logs [default: /var/log/pods]
    #[arg(long, value_name = "DIR")]
    pub pod_logs_dir: Option<PathBuf>,
    /// Cgroup that holds all pods [default: kubepods]
    #[arg(long)]
    pub cgroup_root: Option<String>,
    /// Bridge interface of the pods [default: pikelet0]
    #[arg(long)]
    pub bridge: Option<String>,
    /// Port of the kubelet API [default: 10250]
    #[arg(long)]
    pub port: Option<u16>,
    /// Name servers of pods
    #[arg(long = "cluster-dns", value_delimiter = ',')]
    #[serde(rename = "clusterDNS", alias = "cluster-dns")]
    pub cluster_dns: Vec<IpAddr>,
    /// Cluster domain [default: cluster.local]
    #[arg(long)]
    #[serde(alias = "cluster-domain")]
    pub cluster_domain: Option<String>,
    /// Largest number of pods [default: 110]
    #[arg(long)]
    pub max_pods: Option<u32>,
    /// Registries that may be reached by plain HTTP
    #[arg(long = "insecure-registry", value_name = "HOST[:PORT]")]
    #[serde(rename = "insecureRegistries")]
    pub insecure_registries: Vec<String>,
    /// How each registry is reached, by host
    #[arg(skip)]
    pub registries: BTreeMap<String, RegistryConfig>,
    /// More labels of the Node
    #[arg(skip)]
    pub node_labels: BTreeMap<String, String>,
    /// Log format: text or json [default: text]
    #[arg(long)]
    pub log_format: Option<String>,
}

/// The settings an agent runs with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Kubeconfig of the control plane.
    pub kubeconfig: Option<PathBuf>,
    /// Name of the Node.
    pub node_name: String,
    /// Addresses of the Node; empty: found out.
    pub node_ips: Vec<IpAddr>,
    /// Fixed pod ranges.
    pub pod_cidrs: Vec<ipnet::IpNet>,
    /// Ranges of the whole cluster.
    pub cluster_cidrs: Vec<ipnet::IpNet>,
    /// Folder of static pods.
    pub manifests: Option<PathBuf>,
    /// Data that outlives a reboot.
    pub root_dir: PathBuf,
    /// Volatile state.
    pub state_dir: PathBuf,
    /// Container logs.
    pub logs_dir: PathBuf,
    /// Cgroup that holds all pods.
    pub cgroup_root: String,
    /// Bridge of the pods.
    pub bridge: String,
    /// Port of the kubelet API.
    pub port: u16,
    /// Name servers of pods.
    pub cluster_dns: Vec<IpAddr>,
    /// Cluster domain.
    pub cluster_domain: String,
    /// Largest number of pods.
    pub max_pods: u32,
    /// How each registry is reached.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// More labels of the Node.
    pub node_labels: BTreeMap<String, String>,
    /// Logs as JSON.
    pub json_logs: bool,
}

fn list<T>(flags: Vec<T>, file: Vec<T>) -> Vec<T> {
    if flags.is_empty() { file } else { flags }
}

impl Config {
    /// Settings from a file (the default one may be missing) and flags, which win.
    pub fn load(file: Option<&Path>, flags: Settings) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let read = match std::fs::read_to_string(path) {
            Ok(text) if text.trim().is_empty() => Settings::default(),
            Ok(text) => serde_saphyr::from_str(&text).map_err(|e| ConfigError(format!("{}: {e}", path.display())))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => Settings::default(),
            Err(error) => return Err(ConfigError(format!("reading {}: {error}", path.display()))),
        };
        Self::resolve(flags, read)
    }

    fn resolve(flags: Settings, file: Settings) -> Result<Self, ConfigError> {
        let mut registries = file.registries;
        for host in file.insecure_registries.into_iter().chain(flags.insecure_registries) {
            registries.entry(host).or_default().insecure = true;
        }
        let host_name = || nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_default();
        let node_name = flags.node_name.or(file.node_name).unwrap_or_else(host_name).to_lowercase();
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if node_name.is_empty() || !node_name.chars().all(valid) {
            return Err(ConfigError(format!(
                "node name {node_name:?}: only lower-case letters, digits, - and . are allowed; set --node-name"
            )));
        }
        let bridge = flags.bridge.or(file.bridge).unwrap_or_else(|| "pikelet0".to_owned());
        if bridge.is_empty() || bridge.len() > 15 {
            return Err(ConfigError(format!("bridge {bridge:?}: an interface name has 1 to 15 characters")));
        }
        let format = flags.log_format.or(file.log_format).unwrap_or_else(|| "text".to_owned());
        if !matches!(format.as_str(), "text" | "json") {
            return Err(ConfigError(format!("log format {format:?}: it is text or json")));
        }
        let path =
            |flag: Option<PathBuf>, file: Option<PathBuf>, default: &str| flag.or(file).unwrap_or(default.into());
        Ok(Self {
            kubeconfig: flags.kubeconfig.or(file.kubeconfig),
            node_name,
            node_ips: list(flags.node_ip, file.node_ip),
            pod_cidrs: list(flags.pod_cidr, file.pod_cidr),
            cluster_cidrs: list(flags.cluster_cidr, file.cluster_cidr),
            manifests: flags.pod_manifest_path.or(file.pod_manifest_path),
            root_dir: path(flags.root_dir, file.root_dir, "/var/lib/pikelet"),
            state_dir: path(flags.state_dir, file.state_dir, "/run/pikelet"),
            logs_dir: path(flags.pod_logs_dir, file.pod_logs_dir, "/var/log/pods"),
            cgroup_root: flags.cgroup_root.or(file.cgroup_root).unwrap_or_else(|| "kubepods".to_owned()),
            bridge,
            port: flags.port.or(file.port).unwrap_or(10250),
            cluster_dns: list(flags.cluster_dns, file.cluster_dns),
            cluster_domain: flags.cluster_domain.or(file.cluster_domain).unwrap_or_else(|| "cluster.local".to_owned()),
            max_pods: flags.max_pods.or(file.max_pods).unwrap_or(110),
            registries,
            node_labels: file.node_labels,
            json_logs: format == "json",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_and_defaults_fill() {
        let file: Settings = serde_saphyr::from_str("nodeName: from-file\nport: 1\nclusterDNS: [10.0.0.10]\n").unwrap();
        let flags = Settings { port: Some(2), ..Settings::default() };
        let config = Config::resolve(flags, file).unwrap();
        assert_eq!((config.node_name.as_str(), config.port, config.max_pods), ("from-file", 2, 110));
        assert_eq!(config.cluster_dns.len(), 1);
    }

    #[test]
    fn mistakes_are_named() {
        let error = serde_saphyr::from_str::<Settings>("nodeNam: x\n").unwrap_err().to_string();
        assert!(error.contains("nodeNam") && error.contains("line 1"), "{error}");
        let flags = Settings { node_name: Some("UPPER_x".into()), ..Settings::default() };
        assert!(Config::resolve(flags, Settings::default()).unwrap_err().to_string().contains("node name"));
    }
}
