//! What a person can set: one source of settings, the file or the flags.
//!
//! Names are those of the kubelet's `KubeletConfiguration` and flags, with k3s's (`data-dir`, `node-label`, ...) as
//! aliases; the agent's own are the rest.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::forms::{below, equal, headers, labels, one_or_many, taints, texts};
use super::nested::{Authentication, Authorization, CrashLoopBackOff, Logging, MemorySwap, UserNamespaces};
use crate::image::RegistryConfig;
use crate::machine::devices::DeviceResource;

/// One source of settings. What is unset leaves the next source, then the default, in force.
#[derive(Debug, Clone, Default, Deserialize, Serialize, clap::Args)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// Of a kubelet's own file; taken so that one can be used as it is
    #[arg(skip)]
    pub api_version: Option<String>,
    /// Of a kubelet's own file; `KubeletConfiguration` if given
    #[arg(skip)]
    pub kind: Option<String>,
    /// Kubeconfig of the control plane; without one only static pods run
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Kubeconfig that may only ask for a certificate; the member's own one is then written to --kubeconfig [default:
    /// kubeconfig in --root-dir]
    #[arg(long, value_name = "FILE", conflicts_with = "server")]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// Server to join, by a token
    #[arg(short, long, env = "K3S_URL", value_name = "URL")]
    pub server: Option<String>,
    /// Token to join with
    #[arg(short, long, env = "K3S_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<String>,
    /// File the token is in
    #[arg(long, env = "K3S_TOKEN_FILE", value_name = "FILE")]
    #[serde(alias = "token-file")]
    pub token_file: Option<PathBuf>,
    /// Hash of the public key of the cluster's CA: no other cluster is joined with a bootstrap token
    #[arg(
        long = "ca-cert-hash",
        alias = "discovery-token-ca-cert-hash",
        value_delimiter = ',',
        value_name = "sha256:HEX"
    )]
    #[serde(alias = "ca-cert-hash", with = "one_or_many")]
    pub ca_cert_hash: Vec<String>,
    /// Show a token with no hash in it to a k3s server whose CA nothing vouches for: whoever answers gets the token, and
    /// this node
    #[arg(
        long = "unsafe-skip-ca-verification",
        alias = "discovery-token-unsafe-skip-ca-verification",
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "BOOL"
    )]
    #[serde(rename = "unsafeSkipCAVerification", alias = "unsafe-skip-ca-verification")]
    pub unsafe_skip_ca_verification: Option<bool>,
    /// Name of the Node [default: the host name]
    #[arg(long, alias = "hostname-override", env = "K3S_NODE_NAME", value_name = "NAME")]
    #[serde(alias = "hostnameOverride", alias = "node-name")]
    pub node_name: Option<String>,
    /// Addresses of the Node [default: the one of the default route]
    #[arg(long = "node-ip", value_delimiter = ',', value_name = "IP")]
    #[serde(rename = "nodeIP", alias = "node-ip", with = "one_or_many")]
    pub node_ip: Vec<IpAddr>,
    /// More addresses of the Node, by which others reach it
    #[arg(long = "node-external-ip", value_delimiter = ',', value_name = "IP")]
    #[serde(rename = "nodeExternalIP", alias = "node-external-ip", with = "one_or_many")]
    pub node_external_ip: Vec<IpAddr>,
    /// Names of the Node within its network
    #[arg(long = "node-internal-dns", value_delimiter = ',', value_name = "NAME")]
    #[serde(rename = "nodeInternalDNS", alias = "node-internal-dns", with = "one_or_many")]
    pub node_internal_dns: Vec<String>,
    /// Names of the Node for others
    #[arg(long = "node-external-dns", value_delimiter = ',', value_name = "NAME")]
    #[serde(rename = "nodeExternalDNS", alias = "node-external-dns", with = "one_or_many")]
    pub node_external_dns: Vec<String>,
    /// How often the Node's status is looked at; what changes is written at once [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub node_status_update_frequency: Option<String>,
    /// How often it is written though nothing changed [default: 5m, or the frequency above where that is set]
    #[arg(skip)]
    pub node_status_report_frequency: Option<String>,
    /// How long the Node counts as up without a sign of life, of which it gives four in that time [default: 40]
    #[arg(skip)]
    pub node_lease_duration_seconds: Option<i32>,
    /// More labels of the Node
    #[arg(long = "node-labels", alias = "node-label", value_delimiter = ',', value_name = "KEY=VALUE")]
    #[serde(alias = "node-label", alias = "node-labels", deserialize_with = "labels")]
    pub node_labels: Vec<String>,
    /// Taints the Node is registered with
    #[arg(
        long = "register-with-taints",
        alias = "node-taint",
        value_delimiter = ',',
        value_name = "KEY[=VALUE]:EFFECT"
    )]
    #[serde(alias = "node-taint", deserialize_with = "taints")]
    pub register_with_taints: Vec<String>,
    /// Ranges pods get their addresses from, instead of the Node's spec.podCIDRs
    #[arg(long = "pod-cidr", value_delimiter = ',', value_name = "CIDR")]
    #[serde(rename = "podCIDR", with = "one_or_many")]
    pub pod_cidr: Vec<ipnet::IpNet>,
    /// Ranges of all pods of the cluster: what goes there is not masqueraded
    #[arg(long = "cluster-cidr", value_delimiter = ',', value_name = "CIDR")]
    #[serde(rename = "clusterCIDR", alias = "cluster-cidr", with = "one_or_many")]
    pub cluster_cidr: Vec<ipnet::IpNet>,
    /// Folder of static pod manifests
    #[arg(long, value_name = "DIR")]
    #[serde(alias = "staticPodPath", alias = "pod-manifest-path")]
    pub pod_manifest_path: Option<PathBuf>,
    /// Fallback poll interval for that folder, should no change event arrive [default: 20s]
    #[arg(long, value_name = "DURATION")]
    pub file_check_frequency: Option<String>,
    /// Web server that gives manifests of static pods
    #[arg(long = "manifest-url", value_name = "URL")]
    #[serde(rename = "staticPodURL")]
    pub static_pod_url: Option<String>,
    /// Headers of the requests to that server
    #[arg(long = "manifest-url-header", value_delimiter = ',', value_name = "KEY:VALUE")]
    #[serde(rename = "staticPodURLHeader", deserialize_with = "headers")]
    pub static_pod_url_header: Vec<String>,
    /// How often that server is asked [default: 20s]
    #[arg(long, value_name = "DURATION")]
    pub http_check_frequency: Option<String>,
    /// Data that outlives a reboot [default: /var/lib/pikelet]
    #[arg(long, alias = "data-dir", value_name = "DIR")]
    #[serde(alias = "data-dir")]
    pub root_dir: Option<PathBuf>,
    /// Volatile state [default: /run/pikelet]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Container logs [default: /var/log/pods]
    #[arg(long, value_name = "DIR")]
    pub pod_logs_dir: Option<PathBuf>,
    /// Where container write layers are stored: disk or memory [default: disk]
    #[arg(long, value_name = "PLACE")]
    pub container_storage: Option<String>,
    /// Where container logs are stored: disk or memory [default: disk]
    #[arg(long, value_name = "PLACE")]
    pub log_storage: Option<String>,
    /// Most that each of the two may hold in memory [default: an eighth of the memory]
    #[arg(long, value_name = "QUANTITY")]
    pub memory_storage_size: Option<String>,
    /// Cgroup that holds all pods [default: kubepods]
    #[arg(long, value_name = "NAME")]
    pub cgroup_root: Option<String>,
    /// Bridge interface of the pods [default: pikelet0]
    #[arg(long, value_name = "NAME")]
    pub bridge: Option<String>,
    /// MTU of pods' links [default: the least of this node's way out and its ways to pods of other nodes]
    #[arg(long = "pod-mtu", value_name = "BYTES")]
    #[serde(rename = "podMTU", alias = "pod-mtu")]
    pub pod_mtu: Option<u32>,
    /// Address the kubelet API listens on [default: 0.0.0.0]
    #[arg(long, alias = "bind-address", value_name = "IP")]
    #[serde(alias = "bind-address")]
    pub address: Option<IpAddr>,
    /// Port of the kubelet API [default: 10250]
    #[arg(long)]
    pub port: Option<u16>,
    /// Port of /healthz on loopback, 0 for none [default: 10248]
    #[arg(long, value_name = "PORT")]
    pub healthz_port: Option<u16>,
    /// CAs whose client certificates the kubelet API accepts
    #[arg(long = "client-ca-file", value_name = "FILE")]
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: Option<PathBuf>,
    /// The kubelet's own place for `clientCAFile`
    #[arg(skip)]
    #[serde(skip_serializing)]
    pub authentication: Authentication,
    /// Who may use the kubelet API is for the API server to say: `Webhook`
    #[arg(skip)]
    #[serde(skip_serializing)]
    pub authorization: Authorization,
    /// Serving certificate of the kubelet API [default: self-signed]
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    /// Ask the cluster's signer for a serving certificate, and renew it
    #[arg(long = "rotate-server-certificates", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    #[serde(rename = "serverTLSBootstrap")]
    pub server_tls_bootstrap: Option<bool>,
    /// How long a connection of the kubelet API may be silent, 0 for ever [default: 4h]
    #[arg(long, value_name = "DURATION")]
    pub streaming_connection_idle_timeout: Option<String>,
    /// The resolv.conf pods get name servers from, none where it is empty [default: /etc/resolv.conf, or
    /// systemd-resolved's own where pods cannot reach the servers in it]
    #[arg(long, env = "K3S_RESOLV_CONF", value_name = "FILE")]
    #[serde(alias = "resolv-conf")]
    pub resolv_conf: Option<PathBuf>,
    /// Name servers of pods
    #[arg(long = "cluster-dns", value_delimiter = ',', value_name = "IP")]
    #[serde(rename = "clusterDNS", alias = "cluster-dns", with = "one_or_many")]
    pub cluster_dns: Vec<IpAddr>,
    /// Cluster domain [default: cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    #[serde(alias = "cluster-domain")]
    pub cluster_domain: Option<String>,
    /// Largest number of pods [default: 110]
    #[arg(long, value_name = "NUMBER")]
    pub max_pods: Option<u32>,
    /// The same for each processor, 0 for no such bound [default: 0]
    #[arg(long, value_name = "NUMBER")]
    pub pods_per_core: Option<u32>,
    /// Processes a pod may have, -1 for any number [default: -1]
    #[arg(long = "pod-max-pids", value_name = "NUMBER", allow_negative_numbers = true)]
    pub pod_pids_limit: Option<i64>,
    /// Enforce CPU limits [default: true]
    #[arg(long = "cpu-cfs-quota", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    #[serde(rename = "cpuCFSQuota")]
    pub cpu_cfs_quota: Option<bool>,
    /// Period of CPU limits, 1ms to 1s [default: 100ms]
    #[arg(long = "cpu-cfs-quota-period", value_name = "DURATION")]
    #[serde(rename = "cpuCFSQuotaPeriod")]
    pub cpu_cfs_quota_period: Option<String>,
    /// Which pods may use swap
    #[arg(skip)]
    #[serde(skip_serializing)]
    pub memory_swap: MemorySwap,
    /// When a container's memory runs out, end one process rather than all of it (cgroup version 2)
    #[arg(skip)]
    #[serde(rename = "singleProcessOOMKill")]
    pub single_process_oom_kill: Option<bool>,
    /// Use the seccomp profile `RuntimeDefault` where a container names none
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub seccomp_default: Option<bool>,
    /// Sysctls pods may set beside the safe ones; a name that ends in * stands for all that begin so
    #[arg(long = "allowed-unsafe-sysctls", value_delimiter = ',', value_name = "NAME")]
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Size at which a container's log file is put aside [default: 10Mi, 1Mi in memory]
    #[arg(long, value_name = "QUANTITY")]
    pub container_log_max_size: Option<String>,
    /// Log files of a container, at least 2 [default: 5, 2 in memory]
    #[arg(long, value_name = "NUMBER")]
    pub container_log_max_files: Option<u32>,
    /// Devices of the board that pods may ask for as resources
    #[arg(skip)]
    pub devices: Vec<DeviceResource>,
    /// Kept from pods for Kubernetes' own parts (cpu, memory, ephemeral-storage)
    #[arg(long, value_delimiter = ',', value_name = "RESOURCE=QUANTITY")]
    #[serde(deserialize_with = "labels")]
    pub kube_reserved: Vec<String>,
    /// Kept from pods for the system (cpu, memory, ephemeral-storage)
    #[arg(long, value_delimiter = ',', value_name = "RESOURCE=QUANTITY")]
    #[serde(deserialize_with = "labels")]
    pub system_reserved: Vec<String>,
    /// Whom the kernel holds to what is not reserved: `pods` [default] or `none`
    #[arg(long, value_delimiter = ',', value_name = "WHOM")]
    pub enforce_node_allocatable: Option<Vec<String>>,
    /// Pods are evicted at once below these [default: memory.available<100Mi (a tenth of less than 1 GB),
    /// nodefs.available<5%, nodefs.inodesFree<5%, imagefs.available<5%, imagefs.inodesFree<5%]
    #[arg(long, value_delimiter = ',', value_name = "SIGNAL<AMOUNT")]
    #[serde(deserialize_with = "below", serialize_with = "super::edit::map")]
    pub eviction_hard: Option<Vec<String>>,
    /// Pods are evicted below these when it lasts
    #[arg(long, value_delimiter = ',', value_name = "SIGNAL<AMOUNT")]
    #[serde(deserialize_with = "below", serialize_with = "super::edit::map")]
    pub eviction_soft: Option<Vec<String>>,
    /// How long each soft threshold may be passed
    #[arg(long, value_delimiter = ',', value_name = "SIGNAL=DURATION")]
    #[serde(deserialize_with = "equal", serialize_with = "super::edit::map")]
    pub eviction_soft_grace_period: Option<Vec<String>>,
    /// How much more than its threshold must be free again
    #[arg(long, value_delimiter = ',', value_name = "SIGNAL=AMOUNT")]
    #[serde(deserialize_with = "equal", serialize_with = "super::edit::map")]
    pub eviction_minimum_reclaim: Option<Vec<String>>,
    /// Most seconds a pod has to end that a soft threshold evicts [default: 0]
    #[arg(long, value_name = "SECONDS")]
    pub eviction_max_pod_grace_period: Option<u32>,
    /// How long a pressure condition stays after its cause [default: 5m]
    #[arg(long, value_name = "DURATION")]
    pub eviction_pressure_transition_period: Option<String>,
    /// Thresholds that `evictionHard` does not name keep their default
    #[arg(skip)]
    pub merge_default_eviction_settings: Option<bool>,
    /// Events written in a second, 0 for as many as there are [default: 50]
    #[arg(long, value_name = "NUMBER")]
    #[serde(rename = "eventRecordQPS")]
    pub event_qps: Option<u32>,
    /// Events written at once [default: 100]
    #[arg(long, value_name = "NUMBER")]
    pub event_burst: Option<u32>,
    /// How long a shutdown of the machine waits for pods, if systemd-logind runs; that of critical ones is part of it
    /// [default: 0s]
    #[arg(long, value_name = "DURATION")]
    pub shutdown_grace_period: Option<String>,
    /// How much of it is for critical pods, which end last [default: 0s]
    #[arg(long, value_name = "DURATION")]
    pub shutdown_grace_period_critical_pods: Option<String>,
    /// The same for groups of any priorities, instead of these two
    #[arg(skip)]
    #[serde(skip_serializing)]
    pub shutdown_grace_period_by_pod_priority: Vec<super::shutdown::ByPriority>,
    /// CrashLoopBackOff
    #[arg(skip)]
    #[serde(skip_serializing)]
    pub crash_loop_back_off: CrashLoopBackOff,
    /// Registries that may be reached by plain HTTP
    #[arg(long = "insecure-registry", value_name = "HOST[:PORT]")]
    #[serde(rename = "insecureRegistries")]
    pub insecure_registries: Vec<String>,
    /// How each registry is reached, by host
    #[arg(skip)]
    #[serde(skip_serializing)]
    pub registries: BTreeMap<String, RegistryConfig>,
    /// Mirrors, logins and certificates of registries in k3s's format [default: /etc/pikelet/registries.yaml, else
    /// /etc/rancher/k3s/registries.yaml]
    #[arg(long, value_name = "FILE")]
    #[serde(alias = "private-registry")]
    pub private_registry: Option<PathBuf>,
    /// Registries that have mirrors there, or all where `*` has, are asked at these alone
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    #[serde(alias = "disable-default-registry-endpoint")]
    pub disable_default_registry_endpoint: Option<bool>,
    /// Keep the ConfigMaps, Secrets and tokens of this node's pods in the root directory, for root alone, so that pods
    /// come back after a reboot with no API server [default: true]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    #[serde(alias = "keep-objects")]
    pub keep_objects: Option<bool>,
    /// Keep compressed layers too: the store is a complete OCI image layout then, of about twice the size
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    #[serde(alias = "keep-blobs")]
    pub keep_blobs: Option<bool>,
    /// Maximum ratio of unpacked to packed size for a layer or archive of more than 256 MiB unpacked [default: 100]
    #[arg(long, value_name = "NUMBER")]
    #[serde(alias = "max-image-unpack-ratio")]
    pub max_image_unpack_ratio: Option<u64>,
    /// Folder of image archives that are imported at start [default: images-import in the root directory]
    #[arg(long, value_name = "DIR")]
    #[serde(alias = "image-import-dir")]
    pub image_import_dir: Option<PathBuf>,
    /// Credential provider programs: a file of kind `CredentialProviderConfig`
    #[arg(long, value_name = "FILE", requires = "image_credential_provider_bin_dir")]
    #[serde(alias = "image-credential-provider-config")]
    pub image_credential_provider_config: Option<PathBuf>,
    /// Folder of the credential provider programs
    #[arg(long, value_name = "DIR", requires = "image_credential_provider_config")]
    #[serde(alias = "image-credential-provider-bin-dir")]
    pub image_credential_provider_bin_dir: Option<PathBuf>,
    /// Pull one image at a time
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub serialize_image_pulls: Option<bool>,
    /// Images pulled at once [default: 3]
    #[arg(long, value_name = "NUMBER")]
    pub max_parallel_image_pulls: Option<i32>,
    /// Which images that are here already need no login: `NeverVerify`, `NeverVerifyPreloadedImages`,
    /// `NeverVerifyAllowlistedImages` or `AlwaysVerify` [default: `NeverVerifyPreloadedImages`]
    #[arg(long, value_name = "POLICY")]
    pub image_pull_credentials_verification_policy: Option<String>,
    /// Images of `NeverVerifyAllowlistedImages`, all below a name with /* at its end
    #[arg(long, value_delimiter = ',', value_name = "IMAGE")]
    pub preloaded_images_verification_allowlist: Vec<String>,
    /// Percentage of disk use above which unused images are removed, 100 for never [default: 85]
    #[arg(long = "image-gc-high-threshold", value_name = "PERCENT")]
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub image_gc_high_threshold: Option<u8>,
    /// Percentage of disk use down to which they are removed [default: 80]
    #[arg(long = "image-gc-low-threshold", value_name = "PERCENT")]
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub image_gc_low_threshold: Option<u8>,
    /// Age below which an unused image is kept [default: 2m]
    #[arg(long = "minimum-image-ttl-duration", value_name = "DURATION")]
    #[serde(rename = "imageMinimumGCAge")]
    pub image_minimum_gc_age: Option<String>,
    /// Time without use after which an image is removed whatever the disk use, 0 for never [default: 0]
    #[arg(skip)]
    #[serde(rename = "imageMaximumGCAge")]
    pub image_maximum_gc_age: Option<String>,
    /// The size of ranges of user ids: 65536
    #[arg(skip)]
    #[serde(skip_serializing)]
    pub user_namespaces: UserNamespaces,
    /// Flags of a kubelet, `NAME=VALUE`; those of this program win
    #[arg(long = "kubelet-arg", value_name = "NAME=VALUE")]
    #[serde(alias = "kubelet-arg", deserialize_with = "texts")]
    pub kubelet_arg: Vec<String>,
    /// Flags of a kube-proxy: taken, and named as without meaning
    #[arg(long = "kube-proxy-arg", value_name = "NAME=VALUE")]
    #[serde(alias = "kube-proxy-arg", deserialize_with = "texts")]
    pub kube_proxy_arg: Vec<String>,
    /// The kubelet's own place for `logFormat` and `verbosity`
    #[arg(skip)]
    #[serde(skip_serializing)]
    pub logging: Logging,
    /// Log as with --v 4
    #[arg(long, env = "K3S_DEBUG", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub debug: Option<bool>,
    /// Log format: text or json [default: text]
    #[arg(long, alias = "logging-format", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// How much is logged: 0 to 3 as info, 4 and 5 as debug, more as trace
    #[arg(short, long = "v", value_name = "LEVEL")]
    #[serde(alias = "v")]
    pub verbosity: Option<u8>,
}
