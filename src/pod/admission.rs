//! Pods this node cannot run as they are: they fail at once, with the kubelet's reasons.

use k8s_openapi::api::core::v1::Pod;

use super::PodExt;
use crate::machine::apparmor::AppArmor;

/// Reason and message of a pod that is refused.
pub type Rejection = (&'static str, String);

/// Sysctls that belong to a pod's own namespaces and harm nobody else (Kubernetes' "safe" set).
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// What of the node decides.
pub struct Node<'a> {
    /// `allowedUnsafeSysctls`: names, or beginnings that end in `*`.
    pub unsafe_sysctls: &'a [String],
    /// What there is of `AppArmor`.
    pub apparmor: &'a AppArmor,
}

/// Why the node will not run the pod; `None` when it will.
pub fn refuse(pod: &Pod, node: &Node<'_>) -> Option<Rejection> {
    let refused = |(reason, message): (&'static str, String)| (reason, format!("Pod was rejected: {message}"));
    other_system(pod)
        .or_else(|| sysctls(pod, node.unsafe_sysctls))
        .or_else(|| apparmor(pod, node.apparmor))
        .map(refused)
}

fn other_system(pod: &Pod) -> Option<Rejection> {
    let system = &pod.pod_spec()?.os.as_ref()?.name;
    let message = "Failed to admit pod as the OS field doesn't match node OS";
    (system != "linux").then(|| ("PodOSNotSupported", message.to_owned()))
}

/// Names may be written with slashes.
pub fn sysctl_name(written: &str) -> String {
    written.replace('/', ".")
}

/// The namespace a sysctl belongs to: `net`, `ipc` or `uts`; `None` for those of the whole machine.
fn namespace(name: &str) -> Option<&'static str> {
    let ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
    if name.starts_with("net.") {
        Some("net")
    } else if ipc.iter().any(|start| name.starts_with(start)) {
        Some("ipc")
    } else {
        matches!(name, "kernel.domainname" | "kernel.hostname").then_some("uts")
    }
}

fn sysctls(pod: &Pod, allowed: &[String]) -> Option<Rejection> {
    let spec = pod.pod_spec()?;
    for sysctl in spec.security_context.as_ref()?.sysctls.iter().flatten() {
        let name = sysctl_name(&sysctl.name);
        let forbidden = |why: &str| Some(("SysctlForbidden", format!("forbidden sysctl: {name:?} {why}")));
        let listed = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => *pattern == name,
        };
        if !SAFE_SYSCTLS.contains(&name.as_str()) && !allowed.iter().any(listed) {
            return forbidden("not allowlisted");
        }
        match namespace(&name) {
            None => return forbidden("belongs to the whole machine, not to a pod"),
            Some("net") if pod.host_network() => return forbidden("not allowed with host net enabled"),
            Some("ipc") if spec.host_ipc == Some(true) => return forbidden("not allowed with host ipc enabled"),
            Some(_) => {}
        }
    }
    None
}

fn apparmor(pod: &Pod, machine: &AppArmor) -> Option<Rejection> {
    let whole = pod.pod_spec()?.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
    let own = super::containers(pod).filter_map(|c| c.security_context.as_ref()?.app_armor_profile.as_ref());
    let kinds: Vec<&str> = whole.into_iter().chain(own).map(|p| p.type_.as_str()).collect();
    let refused = |why: &str| Some(("AppArmor", format!("Cannot enforce AppArmor: {why}")));
    match machine {
        AppArmor::Off if kinds.iter().any(|k| *k != "Unconfined") => refused("AppArmor is not enabled on the host"),
        AppArmor::NoDefault(why) if kinds.contains(&"RuntimeDefault") => refused(&format!("RuntimeDefault: {why}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(spec: &serde_json::Value) -> Option<&'static str> {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {}, "spec": spec})).unwrap();
        let unsafe_sysctls =
            ["kernel.msg*".to_owned(), "vm.overcommit_memory".to_owned(), "net.core.somaxconn".to_owned()];
        refuse(&pod, &Node { unsafe_sysctls: &unsafe_sysctls, apparmor: &AppArmor::Off }).map(|r| r.0)
    }

    #[test]
    fn sysctls_are_safe_or_allowed() {
        let with = |name: &str, host: bool| {
            serde_json::json!({"containers": [], "hostNetwork": host,
                "securityContext": {"sysctls": [{"name": name, "value": "1"}]}})
        };
        for good in ["net.ipv4.tcp_syncookies", "net/ipv4/tcp_syncookies", "kernel.msgmax", "net.core.somaxconn"] {
            assert_eq!(reason(&with(good, false)), None, "{good}");
        }
        for bad in ["kernel.sem", "net.ipv4.ip_forward", "vm.overcommit_memory"] {
            assert_eq!(reason(&with(bad, false)), Some("SysctlForbidden"), "{bad}");
        }
        assert_eq!(reason(&with("net.ipv4.tcp_syncookies", true)), Some("SysctlForbidden"));
        assert_eq!(reason(&with("kernel.msgmax", true)), None);
    }

    #[test]
    fn other_systems_and_missing_enforcement_are_refused() {
        assert_eq!(
            reason(&serde_json::json!({"containers": [], "os": {"name": "windows"}})),
            Some("PodOSNotSupported")
        );
        let profile = |kind: &str| serde_json::json!({"containers": [{"name": "c", "securityContext": {"appArmorProfile": {"type": kind}}}]});
        assert_eq!(reason(&profile("Localhost")), Some("AppArmor"));
        assert_eq!(reason(&profile("RuntimeDefault")), Some("AppArmor"));
        assert_eq!(reason(&profile("Unconfined")), None);
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": profile("RuntimeDefault")})).unwrap();
        let with = |apparmor: &AppArmor| refuse(&pod, &Node { unsafe_sysctls: &[], apparmor }).map(|r| r.1);
        assert!(with(&AppArmor::NoDefault("no parser".into())).unwrap().contains("RuntimeDefault: no parser"));
        assert_eq!(with(&AppArmor::Ready), None);
    }
}
