//! The settings of an agent: file, flags, defaults, validation. Option names are kubelet's or k3s's where they exist.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;

use crate::cluster::{EventRate, Given, Heartbeat, Join, MoreAddresses};
use crate::image::{GcPolicy, StoreConfig};
use crate::machine::devices::DeviceResource;
use crate::network::{LEAST_MTU, MOST_MTU};
use crate::pod::LimitPolicy;
use crate::pod::backoff;
use crate::pod::eviction::threshold::Policy;
use crate::pod::shutdown::Group;
use crate::pod::source::Sources;
use crate::quantity;
use crate::runtime::Rotation;

mod devices;
pub mod edit;
mod eviction;
mod foreign;
mod forms;
mod heartbeat;
mod images;
mod join;
mod limits;
mod lines;
mod manifests;
pub(crate) mod mistake;
mod nested;
mod providers;
mod read;
#[cfg(test)]
mod reference;
mod settings;
mod shown;
mod shutdown;
mod storage;
mod values;

use read::{parse, read};
pub use settings::Settings;
pub(crate) use shown::hidden;
pub use storage::{Place, Storage};
pub(crate) use values::duration;
use values::{labels, taint};

/// Where the file is looked for when none is named.
pub const DEFAULT_FILE: &str = "/etc/pikelet/config.yaml";

/// The verbosity of `debug`.
const DEBUG: u8 = 4;

/// Settings that do not make sense; the message says which, where and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// The settings an agent runs with.
#[derive(Debug, Clone)]
pub struct Config {
    /// How the control plane is joined; `None`: there is none, only static pods run.
    pub join: Option<Join>,
    /// The Node.
    pub node: NodeConfig,
    /// Fixed pod ranges.
    pub pod_cidrs: Vec<ipnet::IpNet>,
    /// Ranges of the whole cluster.
    pub cluster_cidrs: Vec<ipnet::IpNet>,
    /// Where static pods come from.
    pub manifests: Sources,
    /// Data that outlives a reboot.
    pub root_dir: PathBuf,
    /// Volatile state.
    pub state_dir: PathBuf,
    /// Container logs.
    pub logs_dir: PathBuf,
    /// Where what containers write lies.
    pub storage: Storage,
    /// When a container's log file is put aside.
    pub log_rotation: Rotation,
    /// Containers that name no seccomp profile get `RuntimeDefault`.
    pub seccomp_default: bool,
    /// What pods use of the API is kept on disk.
    pub keep_objects: bool,
    /// Sysctls pods may set beside the safe ones.
    pub unsafe_sysctls: Vec<String>,
    /// Limits of pods and containers.
    pub limits: LimitPolicy,
    /// Cgroup that holds all pods.
    pub cgroup_root: String,
    /// Bridge of the pods.
    pub bridge: String,
    /// MTU of pods' links; `None`: that of the machine's way out.
    pub pod_mtu: Option<u32>,
    /// The kubelet API.
    pub api: ApiConfig,
    /// The resolv.conf pods follow; `None`: the one that is found, an empty one: none.
    pub resolv_conf: Option<PathBuf>,
    /// Name servers of pods.
    pub cluster_dns: Vec<IpAddr>,
    /// Cluster domain; `None`: the cluster's, or `cluster.local`.
    pub cluster_domain: Option<String>,
    /// The image store.
    pub images: StoreConfig,
    /// When images are removed by themselves.
    pub image_gc: GcPolicy,
    /// When pods are evicted.
    pub eviction: Policy,
    /// Which pods a shutdown of the machine waits for, and how long.
    pub shutdown: Vec<Group>,
    /// How many events are written.
    pub event_rate: EventRate,
    /// Longest wait of a CrashLoopBackOff.
    pub max_restart_period: Duration,
    /// Logs as JSON.
    pub json_logs: bool,
    /// How much is logged, as `--v`.
    pub verbosity: u8,
    /// Settings that were taken and change nothing, for the log.
    pub notices: Vec<String>,
}

/// What a person chose for the Node.
#[derive(Debug, Clone, Default)]
pub struct NodeConfig {
    /// Name.
    pub name: String,
    /// Addresses; empty: found out.
    pub ips: Vec<IpAddr>,
    /// More addresses and names.
    pub more: MoreAddresses,
    /// When it gives signs of life.
    pub heartbeat: Heartbeat,
    /// More labels.
    pub labels: BTreeMap<String, String>,
    /// Taints at registration.
    pub taints: Vec<Taint>,
    /// Largest number of pods.
    pub max_pods: u32,
    /// Devices that pods may ask for.
    pub devices: Vec<DeviceResource>,
    /// The kernel holds all pods together to what is not reserved.
    pub enforce_allocatable: bool,
    /// Kept from pods: cpu in thousandths, memory and ephemeral-storage in bytes.
    pub reserved: BTreeMap<String, u64>,
}

/// Where and for whom the kubelet API is served.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// Listening address.
    pub address: IpAddr,
    /// Listening port.
    pub port: u16,
    /// Port of `/healthz` on loopback; 0: none.
    pub healthz_port: u16,
    /// CAs of client certificates.
    pub client_ca_file: Option<PathBuf>,
    /// Ask the cluster's signer for a serving certificate.
    pub server_tls_bootstrap: bool,
    /// Serving certificate and key; `None`: self-signed.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// How long a connection may be silent; zero: for ever.
    pub idle_timeout: Duration,
}

impl Config {
    /// Takes from the cluster what was not set on the node.
    pub fn complete(&mut self, given: &Given) {
        if self.cluster_dns.is_empty() {
            self.cluster_dns.clone_from(&given.cluster_dns);
        }
        if self.cluster_cidrs.is_empty() {
            self.cluster_cidrs.clone_from(&given.cluster_cidrs);
        }
        if self.cluster_domain.is_none() {
            self.cluster_domain.clone_from(&given.cluster_domain);
        }
        if self.api.client_ca_file.is_none() {
            self.api.client_ca_file.clone_from(&given.client_ca_file);
        }
        if self.api.certificate.is_none() {
            self.api.certificate = given.serving.as_ref().map(|(files, _)| files.clone());
        }
    }

    /// Cluster domain.
    pub fn cluster_domain(&self) -> &str {
        self.cluster_domain.as_deref().unwrap_or("cluster.local")
    }

    /// The settings as a `KubeletConfiguration` (v1beta1), for `/configz`.
    pub fn configuration(&self) -> serde_json::Value {
        let (mut configuration, manifests) = (eviction::written(&self.eviction), manifests::written(&self.manifests));
        let reserved = |key: &str, unit: &str| self.node.reserved.get(key).map(|n| format!("{n}{unit}"));
        let rest = serde_json::json!({
            "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "address": self.api.address, "port": self.api.port,
            "healthzPort": self.api.healthz_port, "healthzBindAddress": "127.0.0.1",
            "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true, "cacheTTL": "2m0s"},
                "x509": {"clientCAFile": self.api.client_ca_file}},
            "authorization": {"mode": "Webhook",
                "webhook": {"cacheAuthorizedTTL": "5m0s", "cacheUnauthorizedTTL": "30s"}},
            "resolvConf": self.resolv_conf.as_deref().unwrap_or(Path::new("/etc/resolv.conf")),
            "clusterDNS": self.cluster_dns, "clusterDomain": self.cluster_domain(), "maxPods": self.node.max_pods,
            "serverTLSBootstrap": self.api.server_tls_bootstrap,
            "streamingConnectionIdleTimeout": format!("{}s", self.api.idle_timeout.as_secs_f64()),
            "podLogsDir": self.logs_dir, "seccompDefault": self.seccomp_default,
            "allowedUnsafeSysctls": self.unsafe_sysctls, "cgroupRoot": self.cgroup_root, "enableServer": true,
            "podPidsLimit": self.limits.pids.unwrap_or(-1), "cpuCFSQuota": self.limits.cpu_quota,
            "cpuCFSQuotaPeriod": format!("{}s", Duration::from_micros(self.limits.cpu_period).as_secs_f64()),
            "memorySwap": {"swapBehavior": if self.limits.limited_swap { "LimitedSwap" } else { "NoSwap" }},
            "singleProcessOOMKill": self.limits.single_process_oom_kill,
            "containerLogMaxSize": self.log_rotation.max_size.to_string(),
            "containerLogMaxFiles": self.log_rotation.max_files,
            "nodeStatusUpdateFrequency": format!("{}s", self.node.heartbeat.look.as_secs_f64()),
            "nodeStatusReportFrequency": format!("{}s", self.node.heartbeat.report.as_secs_f64()),
            "nodeLeaseDurationSeconds": self.node.heartbeat.lease_seconds,
            "kubeReserved": {"cpu": reserved("cpu", "m"), "memory": reserved("memory", ""),
                "ephemeral-storage": reserved("ephemeral-storage", "")},
            "enforceNodeAllocatable": [if self.node.enforce_allocatable { "pods" } else { "none" }],
            "serializeImagePulls": self.images.max_parallel_pulls == Some(1),
            "maxParallelImagePulls": self.images.max_parallel_pulls.unwrap_or(crate::image::PULLS),
            "imagePullCredentialsVerificationPolicy": self.images.verification.name(),
            "imageGCHighThresholdPercent": self.image_gc.high_percent,
            "imageGCLowThresholdPercent": self.image_gc.low_percent,
            "imageMinimumGCAge": format!("{}s", self.image_gc.min_age.as_secs_f64()),
            "imageMaximumGCAge": format!("{}s", self.image_gc.max_age.as_secs_f64()),
            "logging": {"format": if self.json_logs { "json" } else { "text" }, "verbosity": self.verbosity},
        });
        let more = serde_json::json!({
            "shutdownGracePeriodByPodPriority": self.shutdown.iter().map(|g| serde_json::json!({
                "priority": g.priority, "shutdownGracePeriodSeconds": g.time.as_secs()})).collect::<Vec<_>>(),
            "eventRecordQPS": self.event_rate.per_second, "eventBurst": self.event_rate.burst,
            "crashLoopBackOff": {
                "maxContainerRestartPeriod": format!("{}s", self.max_restart_period.as_secs_f64())},
        });
        if let Some(all) = configuration.as_object_mut() {
            all.extend([rest, more, manifests].iter().filter_map(|part| part.as_object().cloned()).flatten());
        }
        configuration
    }
}

fn list<T>(flags: Vec<T>, file: Vec<T>) -> Vec<T> {
    if flags.is_empty() { file } else { flags }
}

fn wrong<T>(message: String) -> Result<T, ConfigError> {
    Err(ConfigError(message))
}

impl Config {
    /// Settings from a file (the default one may be missing) and flags, which win.
    pub fn load(file: Option<&Path>, flags: Settings) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound || file.is_some() => {
                return wrong(format!("reading {}: {error}", path.display()));
            }
            read => read.unwrap_or_default(),
        };
        Self::of(path, &text, flags)
    }

    /// Settings from the text of a file and flags, which win.
    pub fn of(path: &Path, text: &str, flags: Settings) -> Result<Self, ConfigError> {
        let named = |message| ConfigError(format!("{}: {message}", path.display()));
        let (file, notices) = read(text).map_err(named)?;
        Self::resolve(flags, file, notices)
    }

    /// Settings from the text of a file, and whether it names the Node; the error is worded without a file's name.
    pub fn check(text: &str) -> Result<(Self, bool), ConfigError> {
        let (file, notices) = read(text).map_err(ConfigError)?;
        let named = file.node_name.is_some();
        Ok((Self::resolve(Settings::default(), file, notices)?, named))
    }

    fn resolve(flags: Settings, file: Settings, mut notices: Vec<String>) -> Result<Self, ConfigError> {
        let file = read::with_args(&flags, file, &mut notices).map_err(ConfigError)?;
        nested::check(&file)?;
        if let Some(kind) = file.kind.as_ref().filter(|k| *k != "KubeletConfiguration") {
            return wrong(format!("kind {kind:?}: it is KubeletConfiguration, or left out"));
        }
        let policy = eviction::policy(&flags, &file)?;
        let period = file.crash_loop_back_off.max_container_restart_period.as_ref();
        let max_restart_period = period.map_or(Ok(backoff::MAX), |text| duration("maxContainerRestartPeriod", text))?;
        if max_restart_period < Duration::from_secs(1) || max_restart_period > backoff::MAX {
            return wrong("crashLoopBackOff.maxContainerRestartPeriod: it is from 1s to 300s".to_owned());
        }
        let root_dir = flags.root_dir.as_ref().or(file.root_dir.as_ref());
        let root_dir = root_dir.cloned().unwrap_or_else(|| "/var/lib/pikelet".into());
        let (images, image_gc) = (images::store(&root_dir, &flags, &file)?, images::collection(&flags, &file)?);
        let (limits, manifests) = (limits::limits(&flags, &file)?, manifests::sources(&flags, &file)?);
        let storage = storage::storage(&flags, &file)?;
        let shutdown = shutdown::groups(&flags, &file)?;
        let heartbeat = heartbeat::heartbeat(&flags, &file)?;
        let join = join::join(&root_dir, &flags, &file)?;
        let bridge = flags.bridge.or(file.bridge).unwrap_or_else(|| "pikelet0".to_owned());
        if bridge.is_empty() || bridge.len() > 15 {
            return wrong(format!("bridge {bridge:?}: an interface name has 1 to 15 characters"));
        }
        let pod_mtu = flags.pod_mtu.or(file.pod_mtu);
        if let Some(mtu) = pod_mtu.filter(|mtu| !(LEAST_MTU..=MOST_MTU).contains(mtu)) {
            return wrong(format!("podMTU {mtu}: it is from {LEAST_MTU} to {MOST_MTU}"));
        }
        let debug = flags.debug.or(file.debug).filter(|debug| *debug).map(|_| DEBUG);
        let format = flags.log_format.or(file.log_format).or(file.logging.format).unwrap_or_else(|| "text".to_owned());
        if !matches!(format.as_str(), "text" | "json") {
            return wrong(format!("log format {format:?}: it is text or json"));
        }
        let name = flags.node_name.filter(|n| !n.is_empty()).or(file.node_name);
        let name = name.unwrap_or_else(crate::machine::hostname).to_lowercase();
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if name.is_empty() || !name.chars().all(valid) {
            return wrong(format!(
                "node name {name:?}: only lower-case letters, digits, - and . are allowed; set --node-name"
            ));
        }
        let taints = list(flags.register_with_taints, file.register_with_taints);
        let max_pods = flags.max_pods.or(file.max_pods).unwrap_or(110);
        let per_core = flags.pods_per_core.or(file.pods_per_core).filter(|n| *n > 0);
        let node = NodeConfig {
            name,
            ips: list(flags.node_ip, file.node_ip),
            more: MoreAddresses {
                external_ips: list(flags.node_external_ip, file.node_external_ip),
                internal_names: list(flags.node_internal_dns, file.node_internal_dns),
                external_names: list(flags.node_external_dns, file.node_external_dns),
            },
            heartbeat,
            labels: labels(&list(flags.node_labels, file.node_labels))?,
            taints: taints.iter().map(|t| taint(t)).collect::<Result<_, _>>()?,
            max_pods: per_core.map_or(max_pods, |n| max_pods.min(n.saturating_mul(crate::machine::cpus()))),
            devices: devices::devices(file.devices)?,
            enforce_allocatable: eviction::enforced(flags.enforce_node_allocatable.or(file.enforce_node_allocatable))?,
            reserved: eviction::reserved([
                &list(flags.kube_reserved, file.kube_reserved),
                &list(flags.system_reserved, file.system_reserved),
            ])?,
        };
        let idle = flags.streaming_connection_idle_timeout.or(file.streaming_connection_idle_timeout);
        let api = ApiConfig {
            address: flags.address.or(file.address).unwrap_or(IpAddr::from([0, 0, 0, 0])),
            port: flags.port.or(file.port).unwrap_or(10250),
            healthz_port: flags.healthz_port.or(file.healthz_port).unwrap_or(10248),
            client_ca_file: flags.client_ca_file.or(file.client_ca_file).or(file.authentication.x509.client_ca_file),
            server_tls_bootstrap: flags.server_tls_bootstrap.or(file.server_tls_bootstrap).unwrap_or(false),
            certificate: flags
                .tls_cert_file
                .zip(flags.tls_private_key_file)
                .or(file.tls_cert_file.zip(file.tls_private_key_file)),
            idle_timeout: duration("streamingConnectionIdleTimeout", idle.as_deref().unwrap_or("4h"))?,
        };
        let mut log_rotation = match storage.logs {
            Place::Disk => Rotation::default(),
            // of memory there is less
            Place::Memory => Rotation { max_size: 1 << 20, max_files: 2 },
        };
        if let Some(size) = flags.container_log_max_size.or(file.container_log_max_size) {
            log_rotation.max_size = quantity::whole(&size)
                .and_then(|n| u64::try_from(n).ok())
                .filter(|n| *n > 0)
                .ok_or_else(|| ConfigError(format!("containerLogMaxSize {size:?}: it is a quantity such as 10Mi")))?;
        }
        if let Some(files) = flags.container_log_max_files.or(file.container_log_max_files) {
            if files < 2 {
                return wrong(format!("containerLogMaxFiles {files}: at least 2 are needed"));
            }
            log_rotation.max_files = files;
        }
        let path = |flag: Option<PathBuf>, file: Option<_>, default: &str| flag.or(file).unwrap_or(default.into());
        Ok(Self {
            join,
            node,
            pod_cidrs: list(flags.pod_cidr, file.pod_cidr),
            cluster_cidrs: list(flags.cluster_cidr, file.cluster_cidr),
            manifests,
            root_dir,
            state_dir: path(flags.state_dir, file.state_dir, "/run/pikelet"),
            logs_dir: path(flags.pod_logs_dir, file.pod_logs_dir, "/var/log/pods"),
            storage,
            log_rotation,
            seccomp_default: flags.seccomp_default.or(file.seccomp_default).unwrap_or(false),
            keep_objects: flags.keep_objects.or(file.keep_objects).unwrap_or(true),
            unsafe_sysctls: list(flags.allowed_unsafe_sysctls, file.allowed_unsafe_sysctls),
            limits,
            cgroup_root: flags.cgroup_root.or(file.cgroup_root).unwrap_or_else(|| "kubepods".to_owned()),
            bridge,
            pod_mtu,
            api,
            resolv_conf: flags.resolv_conf.or(file.resolv_conf),
            cluster_dns: list(flags.cluster_dns, file.cluster_dns),
            cluster_domain: flags.cluster_domain.or(file.cluster_domain),
            images,
            image_gc,
            eviction: policy,
            shutdown,
            event_rate: EventRate {
                per_second: flags.event_qps.or(file.event_qps).unwrap_or(50),
                burst: flags.event_burst.or(file.event_burst).unwrap_or(100),
            },
            max_restart_period,
            json_logs: format == "json",
            verbosity: flags.verbosity.or(file.verbosity).or(file.logging.verbosity).or(debug).unwrap_or(0),
            notices,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_and_defaults_fill() {
        let file = parse("nodeName: from-file\nport: 1\nclusterDNS: [10.0.0.10]\n").unwrap();
        let flags = Settings { port: Some(2), ..Settings::default() };
        let config = Config::resolve(flags, file, vec![]).unwrap();
        assert_eq!((config.node.name.as_str(), config.api.port, config.node.max_pods), ("from-file", 2, 110));
        assert_eq!((config.cluster_dns.len(), config.log_rotation.max_files), (1, 5));
        let logs = parse("logStorage: memory\ncontainerLogMaxFiles: 3").unwrap();
        let rotation = Config::resolve(Settings::default(), logs, vec![]).unwrap().log_rotation;
        assert_eq!((rotation.max_size, rotation.max_files), (1 << 20, 3), "less where logs are in memory");
    }

    #[test]
    fn files_of_a_kubelet_and_of_k3s_are_taken() {
        let kubelet = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nstaticPodPath: /m\n\
                       authentication: {x509: {clientCAFile: /ca}}\nkubeReserved: {cpu: 100m, memory: 64Mi}\n\
                       registerWithTaints: [{key: a, value: b, effect: NoSchedule}]\n";
        let config = Config::resolve(Settings::default(), parse(kubelet).unwrap(), vec![]).unwrap();
        assert_eq!(config.api.client_ca_file, Some("/ca".into()));
        assert_eq!(config.node.reserved["memory"], 64 << 20);
        assert_eq!(config.node.taints[0].effect, "NoSchedule");
        let k3s = "node-name: pi\nnode-ip: 10.0.0.1,fd00::1\nnode-label: [a=b]\ncluster-dns: 10.43.0.10\n";
        let config = Config::resolve(Settings::default(), parse(k3s).unwrap(), vec![]).unwrap();
        assert_eq!((config.node.ips.len(), config.node.labels["a"].as_str()), (2, "b"));
    }

    #[test]
    fn a_mistake_shows_nothing_of_what_stands_around_it() {
        let secret = "K10deadbeef::server:hunter2";
        for after in ["port: abc", "port: [1", "token: x", "nodeNam: x", "\"", "maxPods: {a: hunter2}", "port: hunter2"]
        {
            let error = parse(&format!("nodeName: n\ntoken: {secret}\n{after}\n")).unwrap_err();
            assert!(!error.contains("hunter2") && error.contains("line ") && error.lines().count() == 1, "{error}");
        }
        for wrong in ["token:hunter2", "nodeIP: hunter2", "{token:hunter2}", "registries: {r: {username: hunter2}}"] {
            let error = parse(&format!("{wrong}\n")).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let error = parse("port: 1\nnodeNam: x\n").unwrap_err();
        assert_eq!(error, "line 2: there is no setting \"nodeNam\": did you mean \"nodeName\"?");
        assert!(parse("qqq: 1").unwrap_err().contains("\"qqq\": `pikelet"));
        let of = |flags| Config::resolve(flags, Settings::default(), vec![]).unwrap_err().to_string();
        assert!(of(Settings { node_name: Some("UPPER_x".into()), ..Settings::default() }).contains("node name"));
        assert!(of(Settings { register_with_taints: vec!["a:No".into()], ..Settings::default() }).contains("taint"));
        assert!(of(Settings { node_labels: vec!["a".into()], ..Settings::default() }).contains("key=value"));
        assert_eq!(of(Settings { pod_mtu: Some(500), ..Settings::default() }), "podMTU 500: it is from 576 to 65535");
    }
}
