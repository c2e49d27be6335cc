//! A [`ContainerSpec`] as an OCI runtime configuration (`config.json`, OCI Runtime Specification 1.0).

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use super::types::{ContainerSpec, Propagation, SandboxSpec};

/// What a container may do unless told otherwise: the set container engines give by default.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Every capability of Linux, by number (`linux/capability.h`).
const ALL_CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const MASKED: [&str; 9] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Namespaces and cgroup a container joins.
pub struct Place<'a> {
    /// Its sandbox.
    pub sandbox: &'a SandboxSpec,
    /// Process whose namespaces it joins.
    pub holder: i32,
    /// PID 1 of the pod's shared PID namespace, if it has one.
    pub pid_holder: Option<i32>,
    /// Absolute cgroup path of the container.
    pub cgroup: &'a str,
    /// Lowest `oom_score_adj` this system lets us set; `None`: any.
    pub oom_floor: Option<i32>,
    /// Capabilities this agent itself holds; none beyond them can be given.
    pub bounding: u64,
}

/// The capabilities of a container, as `CAP_*`.
fn capabilities(spec: &ContainerSpec, bounding: u64) -> Vec<String> {
    let name = |c: &String| c.to_uppercase().trim_start_matches("CAP_").to_owned();
    let drop: BTreeSet<String> = spec.capabilities_drop.iter().map(name).collect();
    let add: BTreeSet<String> = spec.capabilities_add.iter().map(name).collect();
    ALL_CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(bit, _)| bounding & (1 << bit) != 0)
        .map(|(_, c)| *c)
        .filter(|c| {
            if spec.privileged {
                return true;
            }
            let base = DEFAULT_CAPABILITIES.contains(c) && !drop.contains("ALL");
            ((base || add.contains("ALL")) && !drop.contains(*c)) || add.contains(*c)
        })
        .map(|c| format!("CAP_{c}"))
        .collect()
}

fn namespaces(place: &Place) -> Vec<Value> {
    let join = |kind: &str, file: &str, pid: i32| json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")});
    let mut list = vec![json!({"type": "mount"})];
    if !place.sandbox.host_network {
        list.push(join("network", "net", place.holder));
        list.push(join("uts", "uts", place.holder));
    }
    if !place.sandbox.host_ipc {
        list.push(join("ipc", "ipc", place.holder));
    }
    match (place.pid_holder, place.sandbox.host_pid) {
        (_, true) => {}
        (Some(pid), _) => list.push(join("pid", "pid", pid)),
        (None, _) => list.push(json!({"type": "pid"})),
    }
    list
}

fn mounts(spec: &ContainerSpec) -> Vec<Value> {
    let sys_mode = if spec.privileged { "rw" } else { "ro" };
    let mut list = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", sys_mode]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
    ];
    let mut own: Vec<_> = spec.mounts.iter().collect();
    // a mount point below another one must come after it
    own.sort_by_key(|m| m.destination.trim_end_matches('/').matches('/').count());
    for mount in own {
        list.retain(|m| m["destination"] != json!(mount.destination));
        let propagation = match mount.propagation {
            Propagation::None => "rprivate",
            Propagation::HostToContainer => "rslave",
            Propagation::Bidirectional => "rshared",
        };
        let mode = if mount.read_only { "ro" } else { "rw" };
        list.push(json!({"destination": mount.destination, "type": "bind", "source": mount.source,
            "options": ["rbind", propagation, mode]}));
    }
    list
}

fn devices(spec: &ContainerSpec) -> Value {
    if spec.privileged {
        return json!([{"allow": true, "access": "rwm"}]);
    }
    let allow = |major: i64, minor: Option<i64>| match minor {
        Some(minor) => json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm"}),
        None => json!({"allow": true, "type": "c", "major": major, "access": "rwm"}),
    };
    json!([
        {"allow": false, "access": "rwm"},
        allow(1, Some(3)), allow(1, Some(5)), allow(1, Some(7)), allow(1, Some(8)), allow(1, Some(9)),
        allow(5, Some(0)), allow(5, Some(2)), allow(136, None),
    ])
}

/// The whole configuration.
pub fn to_oci(spec: &ContainerSpec, place: &Place) -> Value {
    let caps = capabilities(spec, place.bounding);
    // a user other than root has capabilities only through files
    let held = if spec.user.uid == 0 { caps.clone() } else { Vec::new() };
    let oom = place.oom_floor.map_or(spec.oom_score_adj, |floor| spec.oom_score_adj.max(floor));
    let r = &spec.resources;
    let mut memory = json!({});
    let mut cpu = json!({});
    let mut resources = json!({"devices": devices(spec)});
    if let Some(limit) = r.memory_limit {
        memory["limit"] = json!(limit);
        resources["memory"] = memory;
    }
    for (key, value) in [
        ("shares", r.cpu_shares.map(|v| json!(v))),
        ("quota", r.cpu_quota.map(|v| json!(v))),
        ("period", r.cpu_period.map(|v| json!(v))),
    ] {
        if let Some(value) = value {
            cpu[key] = value;
        }
    }
    if cpu.as_object().is_some_and(|c| !c.is_empty()) {
        resources["cpu"] = cpu;
    }
    if let Some(limit) = r.pids_limit {
        resources["pids"] = json!({"limit": limit});
    }
    let mut linux = json!({
        "namespaces": namespaces(place),
        "cgroupsPath": place.cgroup,
        "resources": resources,
    });
    if !spec.privileged {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
    }
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": spec.rootfs, "readonly": spec.read_only_rootfs},
        "process": {
            "terminal": false,
            "user": {"uid": spec.user.uid, "gid": spec.user.gid, "additionalGids": spec.user.additional_gids},
            "args": spec.args,
            "env": spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(),
            "cwd": spec.cwd,
            "capabilities": {"bounding": caps, "effective": held, "permitted": held},
            "noNewPrivileges": spec.no_new_privileges && !spec.privileged,
            "oomScoreAdj": oom,
        },
        "mounts": mounts(spec),
        "linux": linux,
    })
}

/// Writes `config.json` into the bundle.
pub fn write_bundle(bundle: &Path, config: &Value) -> std::io::Result<()> {
    std::fs::write(bundle.join("config.json"), serde_json::to_vec(config)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(add: &[&str], drop: &[&str]) -> Vec<String> {
        let list = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
        let spec =
            ContainerSpec { capabilities_add: list(add), capabilities_drop: list(drop), ..ContainerSpec::default() };
        capabilities(&spec, u64::MAX)
    }

    #[test]
    fn capability_rules() {
        assert_eq!(caps(&[], &[]).len(), 14);
        assert_eq!(caps(&["NET_ADMIN"], &["ALL"]), ["CAP_NET_ADMIN"]);
        assert!(!caps(&[], &["MKNOD"]).contains(&"CAP_MKNOD".to_owned()));
        assert_eq!(caps(&["ALL"], &[]).len(), 41);
    }
}
