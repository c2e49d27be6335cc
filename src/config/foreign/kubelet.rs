//! Fields of a `KubeletConfiguration` and flags of the kubelet, beside those pikelet has.

use super::Fate::{Moot, Only};
use super::{Fate, Foreign};

const fn both(field: &'static str, flag: &'static str, fate: Fate) -> Foreign {
    Foreign { field, flag, fate }
}

const EVENTS: &str = "what changes is told to this agent, it need not look";
const RUNTIME: &str = "containers are run by this agent, there is no other runtime";
const CGROUPS: &str = "cgroups are those of systemd's unit, or of whoever started the agent";
const DIRECT: &str = "cgroups of pods are made by this agent itself";
const CPUS: &str = "containers are not pinned to processors or memory";
const IPTABLES: &str = "no rules of iptables are made";
const CLIENT: &str = "requests to the API server are few, and are not held back";
const STRONG: &str = "TLS is 1.2 and 1.3, with forward secrecy and authenticated encryption alone";
const HANDLERS: &str = "there is no such handler";
const LOGS: &str = "logs are put aside by whoever writes them";
const OLD: &str = "it was deprecated by the kubelet itself";

/// See the module.
pub(super) const FIELDS: &[Foreign] = &[
    both("enableServer", "enable-server", Only(&["true"], "the API server asks the kubelet API for logs and metrics")),
    both("syncFrequency", "sync-frequency", Moot(EVENTS)),
    both("readOnlyPort", "read-only-port", Only(&["0"], "there is no port without authentication")),
    both("tlsCipherSuites", "tls-cipher-suites", Moot(STRONG)),
    both("tlsCurvePreferences", "", Moot(STRONG)),
    both(
        "tlsMinVersion",
        "tls-min-version",
        Only(&["VersionTLS12", "VersionTLS11", "VersionTLS10"], "TLS is 1.2 or 1.3, by what a client can"),
    ),
    both("rotateCertificates", "rotate-certificates", Moot("the node's certificate is always renewed in time")),
    both("registryPullQPS", "registry-qps", Moot("maxParallelImagePulls bounds pulls")),
    both("registryBurst", "registry-burst", Moot("maxParallelImagePulls bounds pulls")),
    both(
        "enableDebuggingHandlers",
        "enable-debugging-handlers",
        Only(&["true"], "logs, exec and port-forward are allowed or not by the cluster's RBAC"),
    ),
    both("enableContentionProfiling", "contention-profiling", Moot(HANDLERS)),
    both("healthzBindAddress", "healthz-bind-address", Only(&["127.0.0.1"], "/healthz is served on loopback only")),
    both("oomScoreAdj", "oom-score-adj", Only(&["-999"], "OOMScoreAdjust= of the unit sets it")),
    both("volumeStatsAggPeriod", "volume-stats-agg-period", Moot("volumes are measured when they may have grown")),
    both("kubeletCgroups", "kubelet-cgroups", Moot(CGROUPS)),
    both("systemCgroups", "system-cgroups", Moot(CGROUPS)),
    both("", "runtime-cgroups", Moot(CGROUPS)),
    both("cgroupsPerQOS", "cgroups-per-qos", Only(&["true"], "pods have cgroups by their QoS class")),
    both("cgroupDriver", "cgroup-driver", Moot(DIRECT)),
    both("cpuManagerPolicy", "cpu-manager-policy", Only(&["none"], CPUS)),
    both("cpuManagerPolicyOptions", "cpu-manager-policy-options", Only(&[], CPUS)),
    both("cpuManagerReconcilePeriod", "cpu-manager-reconcile-period", Moot(CPUS)),
    both("memoryManagerPolicy", "memory-manager-policy", Only(&["None"], CPUS)),
    both("reservedMemory", "reserved-memory", Only(&[], CPUS)),
    both("reservedSystemCPUs", "reserved-cpus", Only(&[], CPUS)),
    both("topologyManagerPolicy", "topology-manager-policy", Only(&["none"], CPUS)),
    both("topologyManagerScope", "topology-manager-scope", Moot(CPUS)),
    both("topologyManagerPolicyOptions", "topology-manager-policy-options", Only(&[], CPUS)),
    both("qosReserved", "qos-reserved", Only(&[], "memory of a QoS class is not kept from the others")),
    both("runtimeRequestTimeout", "runtime-request-timeout", Moot(RUNTIME)),
    both("hairpinMode", "hairpin-mode", Moot("a pod reaches itself by its host ports always")),
    both("runOnce", "runonce", Only(&["false"], "the agent runs until it is ended")),
    both("nodeStatusMaxImages", "node-status-max-images", Only(&["50"], "the Node names 50 images")),
    both("maxOpenFiles", "max-open-files", Moot("LimitNOFILE= of the unit sets it")),
    both("contentType", "kube-api-content-type", Moot("requests to the API server are JSON")),
    both("kubeAPIQPS", "kube-api-qps", Moot(CLIENT)),
    both("kubeAPIBurst", "kube-api-burst", Moot(CLIENT)),
    both(
        "enableControllerAttachDetach",
        "enable-controller-attach-detach",
        Only(&["true"], "this agent attaches no volumes"),
    ),
    both(
        "protectKernelDefaults",
        "protect-kernel-defaults",
        Moot("no tunables of the kernel are changed by the agent"),
    ),
    both("makeIPTablesUtilChains", "make-iptables-util-chains", Moot(IPTABLES)),
    both("iptablesMasqueradeBit", "iptables-masquerade-bit", Moot(IPTABLES)),
    both("iptablesDropBit", "iptables-drop-bit", Moot(IPTABLES)),
    both("featureGates", "feature-gates", Moot("what is done here is done without gates")),
    both("failSwapOn", "fail-swap-on", Moot("memorySwap says which pods use swap, the node itself may")),
    both("failCgroupV1", "fail-cgroupv1", Moot("both versions of cgroups will do")),
    both("containerLogMaxWorkers", "", Moot(LOGS)),
    both("containerLogMonitorInterval", "", Moot(LOGS)),
    both("configMapAndSecretChangeDetectionStrategy", "", Moot("changes of objects that pods use are watched")),
    both("showHiddenMetricsForVersion", "show-hidden-metrics-for-version", Moot("no metrics are hidden")),
    both("systemReservedCgroup", "system-reserved-cgroup", Only(&[], "pods are held to what is not reserved")),
    both("kubeReservedCgroup", "kube-reserved-cgroup", Only(&[], "pods are held to what is not reserved")),
    both("volumePluginDir", "volume-plugin-dir", Moot("there are no FlexVolumes")),
    both("providerID", "provider-id", Only(&[], "a cloud's controller writes it")),
    both("kernelMemcgNotification", "kernel-memcg-notification", Moot(EVENTS)),
    both("enableSystemLogHandler", "", Moot(HANDLERS)),
    both("enableSystemLogQuery", "", Only(&["false"], HANDLERS)),
    both("enableProfilingHandler", "", Moot(HANDLERS)),
    both("enableDebugFlagsHandler", "", Moot(HANDLERS)),
    both("memoryThrottlingFactor", "", Moot("memory is not throttled below its limit")),
    both("memoryReservationPolicy", "", Only(&["None"], "memory of requests is not reserved in cgroups")),
    both("registerNode", "register-node", Only(&["true"], "a member is a Node; without a server pods are static")),
    both("tracing", "", Only(&[], "there are no traces")),
    both(
        "localStorageCapacityIsolation",
        "local-storage-capacity-isolation",
        Only(&["true"], "limits of ephemeral storage are always kept"),
    ),
    both("containerRuntimeEndpoint", "container-runtime-endpoint", Moot(RUNTIME)),
    both("imageServiceEndpoint", "image-service-endpoint", Moot(RUNTIME)),
    both("", "pod-infra-container-image", Moot("a pod's sandbox needs no image")),
    both("", "cert-dir", Moot("certificates are in pki in the root directory")),
    both("", "cloud-provider", Moot("a Node is taken over from a cloud's controller as it is")),
    both("", "lock-file", Moot("the agent locks its own folders")),
    both("", "exit-on-lock-contention", Moot("the agent locks its own folders")),
    both("", "minimum-container-ttl-duration", Moot(OLD)),
    both("", "maximum-dead-containers-per-container", Moot(OLD)),
    both("", "maximum-dead-containers", Moot(OLD)),
    both("", "experimental-mounter-path", Only(&[], OLD)),
    both("", "experimental-allocatable-ignore-eviction", Moot(OLD)),
];

/// Fields of which a zero is a value: they are pointers to the kubelet, or zero is their default.
const ZEROS: [&str; 11] = [
    "healthzPort",
    "eventRecordQPS",
    "imageGCHighThresholdPercent",
    "imageGCLowThresholdPercent",
    "podPidsLimit",
    "maxParallelImagePulls",
    "containerLogMaxFiles",
    "enforceNodeAllocatable",
    "evictionHard",
    "cpuCFSQuotaPeriod",
    "resolvConf",
];

/// Whether a zero, an empty text or an empty list in that field of a kubelet's own file means its default.
pub(super) fn zero_is_unset(field: &str) -> bool {
    !ZEROS.contains(&field)
}
