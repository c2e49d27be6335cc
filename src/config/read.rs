//! A settings file as text, and flags in settings, as one source of settings.

use clap::Parser;
use serde_json::{Map, Value};

use super::{Settings, edit, foreign, mistake};

/// The settings of a file, and what is to be told of others it has.
pub(super) fn read(text: &str) -> Result<(Settings, Vec<String>), String> {
    let sifted = foreign::sift(text)?;
    Ok((parse_own(&sifted.text)?, sifted.notices))
}

/// The settings of a text.
pub(super) fn parse(text: &str) -> Result<Settings, String> {
    read(text).map(|(settings, _)| settings)
}

fn parse_own(text: &str) -> Result<Settings, String> {
    let says_nothing = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    if text.lines().all(says_nothing) {
        return Ok(Settings::default());
    }
    serde_saphyr::from_str(text).map_err(|e| mistake::explain(&e))
}

/// Flags of a kubelet.
#[derive(clap::Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct KubeletArgs {
    #[command(flatten)]
    settings: Settings,
}

/// `file` with the flags of a kubelet that it and `flags` have in `kubeletArg`.
pub(super) fn with_args(flags: &Settings, file: Settings, notices: &mut Vec<String>) -> Result<Settings, String> {
    let args: Vec<String> = file.kubelet_arg.iter().chain(&flags.kubelet_arg).cloned().collect();
    let proxy: Vec<String> = file.kube_proxy_arg.iter().chain(&flags.kube_proxy_arg).cloned().collect();
    notices.extend(foreign::kube_proxy_args(&proxy));
    let own = foreign::kubelet_args(&args, notices)?;
    if own.is_empty() {
        return Ok(file);
    }
    let given = KubeletArgs::try_parse_from(own).map_err(|e| foreign::explain_flag(&e))?.settings;
    over(file, &given)
}

/// `file`, and over it what `given` sets; both of them are written and read again.
fn over(file: Settings, given: &Settings) -> Result<Settings, String> {
    let mut all: Map<String, Value> = edit::written(&file)?;
    all.extend(edit::written(given)?);
    let read = parse_own(&Value::Object(all).to_string())?;
    // what is in no flag is not written
    Ok(Settings {
        authentication: file.authentication,
        authorization: file.authorization,
        memory_swap: file.memory_swap,
        shutdown_grace_period_by_pod_priority: file.shutdown_grace_period_by_pod_priority,
        crash_loop_back_off: file.crash_loop_back_off,
        registries: file.registries,
        user_namespaces: file.user_namespaces,
        logging: file.logging,
        ..read
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;
    use super::*;

    /// As kubeadm writes it (`kubeadm config print init-defaults --component-configs KubeletConfiguration`, and what it adds for
    /// a node with systemd-resolved).
    const KUBEADM: &str = r#"apiVersion: kubelet.config.k8s.io/v1beta1
authentication:
  anonymous:
    enabled: false
  webhook:
    cacheTTL: 0s
    enabled: true
  x509:
    clientCAFile: /etc/kubernetes/pki/ca.crt
authorization:
  mode: Webhook
  webhook:
    cacheAuthorizedTTL: 0s
    cacheUnauthorizedTTL: 0s
cgroupDriver: systemd
clusterDNS:
- 10.96.0.10
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///var/run/containerd/containerd.sock
cpuManagerReconcilePeriod: 0s
crashLoopBackOff: {}
evictionPressureTransitionPeriod: 0s
fileCheckFrequency: 0s
healthzBindAddress: 127.0.0.1
healthzPort: 10248
httpCheckFrequency: 0s
imageMaximumGCAge: 0s
imageMinimumGCAge: 0s
kind: KubeletConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
memorySwap: {}
nodeStatusReportFrequency: 0s
nodeStatusUpdateFrequency: 0s
resolvConf: /run/systemd/resolve/resolv.conf
rotateCertificates: true
runtimeRequestTimeout: 0s
shutdownGracePeriod: 0s
shutdownGracePeriodCriticalPods: 0s
staticPodPath: /etc/kubernetes/manifests
streamingConnectionIdleTimeout: 0s
syncFrequency: 0s
volumeStatsAggPeriod: 0s
"#;

    fn of(text: &str) -> Result<Config, String> {
        Config::of(Path::new("f"), text, Settings::default()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_file_of_kubeadm_is_taken_as_it_is() {
        let config = of(KUBEADM).unwrap();
        assert_eq!(config.api.client_ca_file, Some("/etc/kubernetes/pki/ca.crt".into()));
        assert_eq!(config.resolv_conf, Some("/run/systemd/resolve/resolv.conf".into()));
        assert_eq!(config.api.idle_timeout.as_secs(), 4 * 3600, "zero is unset");
        assert_eq!(config.image_gc.min_age.as_secs(), 120);
        let told: Vec<&str> = config.notices.iter().filter_map(|n| n.split(' ').next()).collect();
        assert_eq!(told, ["cgroupDriver", "containerRuntimeEndpoint", "rotateCertificates"]);
    }

    /// Twenty keys and more that files of k3s agents have.
    const K3S: &str = r#"server: https://10.0.0.1:6443
token: plain-secret
node-name: pi
node-ip: 10.0.0.2
node-external-ip: 198.51.100.2
node-label:
  - disk=ssd
node-taint:
  - edge=true:NoSchedule
data-dir: /var/lib/rancher/k3s
resolv-conf: /etc/resolv.k3s
flannel-iface: eth0
snapshotter: native
pause-image: rancher/mirrored-pause:3.6
protect-kernel-defaults: true
selinux: false
with-node-id: false
lb-server-port: 6444
prefer-bundled-bin: true
debug: true
v: 2
kubelet-arg:
  - max-pods=50
  - "eviction-hard=memory.available<50Mi,nodefs.available<5%"
  - kube-reserved=cpu=100m,memory=64Mi
  - "--image-gc-high-threshold=70"
  - image-gc-low-threshold=60
  - cgroup-driver=systemd
  - feature-gates=GracefulNodeShutdown=true
  - node-status-update-frequency=4s
  - container-log-max-files=3
kube-proxy-arg: [proxy-mode=ipvs, metrics-bind-address=0.0.0.0]
"#;

    #[test]
    fn a_file_of_k3s_is_taken_as_it_is() {
        let config = of(K3S).unwrap();
        assert_eq!((config.node.max_pods, config.log_rotation.max_files, config.verbosity), (50, 3, 2));
        assert_eq!((config.image_gc.high_percent, config.image_gc.low_percent), (70, 60));
        assert_eq!(config.node.reserved["memory"], 64 << 20);
        assert_eq!(config.node.heartbeat.look.as_secs(), 4);
        assert_eq!(config.node.more.external_ips, ["198.51.100.2".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(config.node.labels["disk"], "ssd");
        let told = config.notices.join("\n");
        for name in ["flannel-iface", "snapshotter", "pause-image", "cgroup-driver", "feature-gates", "kube-proxy-arg"]
        {
            assert!(told.contains(&format!("{name} has no meaning here")), "{name}: {told}");
        }
        assert!(!told.contains("secret") && !told.contains("0.0.0.0"), "{told}");
    }

    #[test]
    fn mistakes_in_flags_of_a_kubelet_are_named_without_their_values() {
        let error = of("kubelet-arg: [max-pods=hunter2]\n").unwrap_err();
        assert!(error.contains("--max-pods") && !error.contains("hunter2"), "{error}");
        let error = of("kubelet-arg: unheard-of=hunter2\n").unwrap_err();
        assert!(error.contains("--unheard-of") && !error.contains("hunter2"), "{error}");
        assert!(of("authorization: {mode: AlwaysAllow}\n").unwrap_err().contains("AlwaysAllow"));
        assert!(of("authentication: {anonymous: {enabled: true}}\n").is_err());
        assert!(of("userNamespaces: {idsPerPod: 131072}\n").is_err());
    }

    #[test]
    fn settings_in_no_flag_outlive_flags_of_a_kubelet() {
        let config =
            of("memorySwap: {swapBehavior: LimitedSwap}\nlogging: {format: json}\nkubelet-arg: max-pods=9\n").unwrap();
        assert!(config.limits.limited_swap && config.json_logs && config.node.max_pods == 9);
        let flags = Settings { kubelet_arg: vec!["max-pods=8".into()], max_pods: None, ..Settings::default() };
        assert_eq!(Config::of(Path::new("f"), "maxPods: 7\n", flags).unwrap().node.max_pods, 8);
    }
}
