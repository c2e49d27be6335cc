//! Flags of `k3s agent`, which are the keys of its file too, beside those pikelet has.

use super::Fate::{Moot, Only};
use super::{Fate, Foreign};

const fn flag(flag: &'static str, fate: Fate) -> Foreign {
    Foreign { field: "", flag, fate }
}

const NO_CONTAINERD: &str = "containers are run by this agent, not by containerd or docker";
const NO_FLANNEL: &str = "this agent makes no network between nodes";
const LOG: &str = "the log goes to standard error, which systemd keeps (journalctl -u pikelet)";

/// See the module.
pub(super) const FLAGS: &[Foreign] = &[
    flag("vmodule", Moot("RUST_LOG says what each part logs")),
    flag("log", Only(&[], LOG)),
    flag("alsologtostderr", Moot(LOG)),
    flag("cluster-secret", Only(&[], "it was k3s's before there were tokens: use token")),
    flag("with-node-id", Only(&["false"], "the Node has the name that node-name says")),
    flag("selinux", Only(&["false"], "containers get no SELinux labels")),
    flag("disable-selinux", Only(&["true"], "containers get no SELinux labels")),
    flag("protect-kernel-defaults", Moot("no tunables of the kernel are changed by the agent")),
    flag("lb-server-port", Moot("the agent itself asks the servers in turn, there is no local port")),
    flag("disable-apiserver-lb", Moot("the agent itself asks the servers in turn, there is no local port")),
    flag("docker", Moot(NO_CONTAINERD)),
    flag("container-runtime-endpoint", Moot(NO_CONTAINERD)),
    flag("image-service-endpoint", Moot(NO_CONTAINERD)),
    flag("default-runtime", Moot(NO_CONTAINERD)),
    flag("snapshotter", Moot(NO_CONTAINERD)),
    flag("pause-image", Moot("a pod's sandbox needs no image")),
    flag("nonroot-devices", Moot("devices that were granted belong to the container's user")),
    flag("airgap-extra-registry", Only(&[], "archives are imported with the names they have")),
    flag("flannel-iface", Moot(NO_FLANNEL)),
    flag("flannel-conf", Moot(NO_FLANNEL)),
    flag("flannel-cni-conf", Moot(NO_FLANNEL)),
    flag("no-flannel", Moot(NO_FLANNEL)),
    flag("vpn-auth", Only(&[], "this agent joins no VPN: let the system do it, and set node-ip")),
    flag("vpn-auth-file", Only(&[], "this agent joins no VPN: let the system do it, and set node-ip")),
    flag("enable-pprof", Only(&["false"], "there is no profiler in this agent")),
    flag("rootless", Only(&["false"], "this agent is root")),
    flag("prefer-bundled-bin", Moot("no other programs are used")),
    flag("supervisor-metrics", Only(&["false"], "the agent's figures are at /metrics of the kubelet API")),
];
