//! From a [`ContainerSpec`] to the OCI runtime configuration libcontainer reads.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::{Value, json};

use super::device_nodes::{self, Device};
use super::seccomp;
use super::types::{ContainerSpec, Mount, Propagation};

/// All capabilities by number, without `CAP_`.
const CAPABILITIES: [&str; 41] = [
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

/// The number of a capability by its name with `CAP_`.
pub fn capability_number(name: &str) -> Option<usize> {
    CAPABILITIES.iter().position(|known| name.strip_prefix("CAP_") == Some(known))
}

/// What a container may do unless its pod says otherwise.
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

const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// The counters of each processor that tell what others do on it (Intel's), where the machine has them.
static THERMAL_THROTTLE: LazyLock<Vec<PathBuf>> = LazyLock::new(|| {
    let cpus = std::fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
    cpus.map(|cpu| cpu.path().join("thermal_throttle")).filter(|dir| dir.is_dir()).collect()
});

const READ_ONLY_PATHS: [&str; 6] = [
    "/proc/bus",
    "/proc/dynamic_debug", // what the kernel logs: not among other runtimes' paths, but any root may write it
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Where a container's devices are.
pub const DEV: &str = "/dev";

/// Most pseudoterminals of a container, those of `kubectl exec` among them: all containers have what `kernel.pty.max` leaves.
const TERMINALS: &str = "max=256";

/// `PATH` of a container whose image and pod set none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the sandbox and the machine add to a container.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Network namespace to join; `None` for the host's.
    pub network: Option<PathBuf>,
    /// IPC namespace to join; `None` for the host's.
    pub ipc: Option<PathBuf>,
    /// UTS namespace to join; `None` for the host's.
    pub uts: Option<PathBuf>,
    /// User namespace to join; `None` for the host's.
    pub user: Option<PathBuf>,
    /// PID namespace.
    pub pid: PidNamespace,
    /// The container's cgroup from the hierarchies' roots.
    pub cgroup: String,
    /// cgroup version 2.
    pub unified: bool,
    /// Bit set of the capabilities this process may hand on.
    pub capabilities: u64,
    /// Adjusted to what this process may set.
    pub oom_score_adj: i32,
    /// The host's devices, given to privileged containers.
    pub devices: Vec<Device>,
    /// Devices this container was given, with what of `rwm` it may do.
    pub granted: Vec<(Device, String)>,
}

/// A container's PID namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PidNamespace {
    /// One of its own.
    #[default]
    New,
    /// The host's.
    Host,
    /// The pod's, by path.
    Join(PathBuf),
}

/// The OCI configuration (`config.json`) of a container.
pub fn oci_config(spec: &ContainerSpec, around: &Surroundings) -> Result<Value, String> {
    if spec.args.is_empty() {
        return Err("no command specified".into());
    }
    if around.user.is_some() && volume_at_dev(spec).is_some() {
        return Err("a volume at /dev shows the node's devices, which users of the pod's own may not use: leave \
                    hostUsers: false out"
            .into());
    }
    let capabilities = capability_set(spec, around.capabilities)?;
    // Without ambient capabilities a program of an ordinary user gains nothing from the effective set.
    let (effective, none) = (&capabilities, BTreeSet::<String>::new());
    let effective = if spec.user.uid == 0 { effective } else { &none };
    let mut env: Vec<String> = spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    if !spec.env.iter().any(|(k, _)| k == "PATH") {
        env.push(DEFAULT_PATH.into());
    }
    if spec.tty && !spec.env.iter().any(|(k, _)| k == "TERM") {
        env.push("TERM=xterm".into());
    }
    let cwd = if spec.cwd.is_empty() { "/" } else { &spec.cwd };
    let mut linux = json!({
        "namespaces": namespaces(around),
        "cgroupsPath": format!("/{}", around.cgroup.trim_start_matches('/')),
        // limits are written to the cgroup by the shim itself
        "resources": {},
        "rootfsPropagation": match root_propagation(spec, around.user.is_some()) {
            Propagation::None => "private",
            Propagation::HostToContainer => "slave",
            Propagation::Bidirectional => "shared",
        },
        "maskedPaths": [],
        "readonlyPaths": [],
    });
    let (nodes, rules) = device_nodes::access(spec, around);
    linux["devices"] = nodes;
    linux["resources"]["devices"] = rules;
    if !spec.privileged && !spec.unmasked_proc {
        let fixed = MASKED_PATHS.iter().map(PathBuf::from);
        linux["maskedPaths"] = json!(fixed.chain(THERMAL_THROTTLE.iter().cloned()).collect::<Vec<_>>());
        linux["readonlyPaths"] = json!(READ_ONLY_PATHS);
    }
    if !spec.privileged
        && let Some(seccomp) = seccomp::section(&spec.seccomp, &capabilities)?
    {
        linux["seccomp"] = seccomp;
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": { "path": spec.rootfs, "readonly": spec.read_only_rootfs },
        "process": {
            "terminal": spec.tty,
            "user": { "uid": spec.user.uid, "gid": spec.user.gid, "additionalGids": spec.user.additional_gids },
            "args": spec.args,
            "env": env,
            "cwd": cwd,
            "capabilities": {
                "bounding": capabilities, "permitted": effective, "effective": effective,
                "inheritable": [], "ambient": [],
            },
            // libcontainer loads the seccomp filter while it may only where nothing is said of this
            "noNewPrivileges": spec.no_new_privileges.then_some(true),
            "apparmorProfile": spec.apparmor.as_ref().filter(|_| !spec.privileged),
            "oomScoreAdj": around.oom_score_adj,
        },
        "mounts": mounts(spec, around),
        "linux": linux,
    }))
}

/// Whether a container has the capability `name` (without `CAP_`).
pub fn has_capability(spec: &ContainerSpec, name: &str) -> bool {
    capability_set(spec, u64::MAX).is_ok_and(|set| set.contains(&format!("CAP_{name}")))
}

fn capability_set(spec: &ContainerSpec, held: u64) -> Result<BTreeSet<String>, String> {
    let named = |name: &String| {
        let upper = name.to_ascii_uppercase();
        upper.strip_prefix("CAP_").map(str::to_owned).unwrap_or(upper)
    };
    let (add, drop): (Vec<_>, Vec<_>) =
        (spec.capabilities_add.iter().map(named).collect(), spec.capabilities_drop.iter().map(named).collect());
    for name in add.iter().chain(&drop) {
        if name != "ALL" && !CAPABILITIES.contains(&name.as_str()) {
            return Err(format!("unknown capability {name:?}; use ALL or a name of capabilities(7) without CAP_"));
        }
    }
    let has = |list: &[String], name: &str| list.iter().any(|n| n == name);
    let chosen = |name: &str| {
        if spec.privileged {
            return true;
        }
        let base = !has(&drop, "ALL") && DEFAULT_CAPABILITIES.contains(&name) || has(&add, "ALL");
        (base || has(&add, name)) && !has(&drop, name)
    };
    let available = |number: usize| held >> number & 1 == 1;
    let kept = CAPABILITIES.iter().enumerate().filter(|&(number, name)| chosen(name) && available(number));
    Ok(kept.map(|(_, name)| format!("CAP_{name}")).collect())
}

fn namespaces(around: &Surroundings) -> Vec<Value> {
    let mut out = vec![json!({ "type": "mount" })];
    match &around.pid {
        PidNamespace::New => out.push(json!({ "type": "pid" })),
        PidNamespace::Join(path) => out.push(json!({ "type": "pid", "path": path })),
        PidNamespace::Host => {}
    }
    let others = [("user", &around.user), ("network", &around.network), ("ipc", &around.ipc), ("uts", &around.uts)];
    for (kind, path) in others {
        if let Some(path) = path {
            out.push(json!({ "type": kind, "path": path }));
        }
    }
    if around.unified {
        out.push(json!({ "type": "cgroup" }));
    }
    out
}

/// What libcontainer makes of all a container's mounts: the most that one of its volumes asks for.
pub fn root_propagation(spec: &ContainerSpec, mapped: bool) -> Propagation {
    let own = || spec.mounts.iter().filter(|m| !is_dev(m) && !is_late(spec, mapped, m));
    let any = |p: &Propagation| own().any(|m| m.propagation == *p);
    let most = [Propagation::Bidirectional, Propagation::HostToContainer].into_iter().find(any);
    most.unwrap_or_default()
}

/// The volume that takes the place of the container's own `/dev`. libcontainer would make nodes and links in it, so it is
/// no mount of the configuration.
pub fn volume_at_dev(spec: &ContainerSpec) -> Option<&Mount> {
    spec.mounts.iter().rfind(|m| is_dev(m))
}

/// Whether it is mounted at `/dev`.
pub fn is_dev(mount: &Mount) -> bool {
    Path::new(&mount.destination) == Path::new(DEV)
}

/// Whether it lies in another volume: links there may lead anywhere, and elsewhere the next moment, so it is mounted when the
/// container has a root of its own. In a pod with users of its own (`mapped`) whoever mounts is none of the host's, and can do
/// nothing there.
pub fn is_late(spec: &ContainerSpec, mapped: bool, mount: &Mount) -> bool {
    !mapped && !is_dev(mount) && spec.mounts.iter().any(|o| !is_dev(o) && is_below(mount, &o.destination))
}

/// Whether it is mounted below `path`.
pub fn is_below(mount: &Mount, path: &str) -> bool {
    Path::new(&mount.destination) != Path::new(path) && Path::new(&mount.destination).starts_with(path)
}

fn mounts(spec: &ContainerSpec, around: &Surroundings) -> Vec<Value> {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let safe = ["nosuid", "noexec", "nodev"];
    let with = |more: &[&'static str]| [&safe[..], more].concat();
    let access = if spec.privileged { "rw" } else { "ro" };
    let mut out = vec![
        mount("/proc", "proc", &safe),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5", TERMINALS],
        ),
        mount("/dev/mqueue", "mqueue", &safe),
        mount("/dev/shm", "tmpfs", &with(&["mode=1777", "size=65536k"])),
        mount("/sys", "sysfs", &with(&[access])),
    ];
    if around.unified {
        out.push(mount("/sys/fs/cgroup", "cgroup", &with(&["relatime", access])));
    }
    // A volume may take the place of a default; parents come before what lies below them.
    let depth = |path: &str| path.split('/').filter(|p| !p.is_empty()).count();
    let late = |m: &Mount| is_late(spec, around.user.is_some(), m);
    let mut own: Vec<_> = spec.mounts.iter().filter(|m| !is_dev(m) && !late(m)).collect();
    own.sort_by_key(|m| depth(&m.destination));
    out.retain(|m| !own.iter().any(|o| m["destination"] == *o.destination));
    for m in own {
        let propagation = match m.propagation {
            Propagation::None => "rprivate",
            Propagation::HostToContainer => "rslave",
            Propagation::Bidirectional => "rshared",
        };
        let access = match (m.read_only, m.recursive_read_only) {
            (false, _) => "rw",
            (true, false) => "ro",
            (true, true) => "rro",
        };
        let mut options = vec!["rbind", propagation, access];
        options.extend(m.no_exec.then_some("noexec"));
        out.push(json!({ "destination": m.destination, "type": "bind", "source": m.source, "options": options }));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::types::User;
    use super::*;

    fn spec() -> ContainerSpec {
        ContainerSpec { id: "c".into(), args: vec!["true".into()], rootfs: "/r".into(), ..Default::default() }
    }

    fn caps(change: impl FnOnce(&mut ContainerSpec)) -> BTreeSet<String> {
        let mut spec = spec();
        change(&mut spec);
        capability_set(&spec, u64::MAX).unwrap()
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        assert_eq!(caps(|_| {}).len(), 14);
        assert_eq!(caps(|s| s.privileged = true).len(), 41);
        assert_eq!(caps(|s| s.capabilities_drop = vec!["ALL".into()]).len(), 0);
        let one = caps(|s| {
            s.capabilities_drop = vec!["ALL".into()];
            s.capabilities_add = vec!["CAP_net_admin".into()];
        });
        assert_eq!(one.into_iter().collect::<Vec<_>>(), ["CAP_NET_ADMIN"]);
        let most = caps(|s| {
            s.capabilities_add = vec!["ALL".into()];
            s.capabilities_drop = vec!["SYS_ADMIN".into()];
        });
        assert_eq!(most.len(), 40);
        let bad = ContainerSpec { capabilities_add: vec!["NONSENSE".into()], ..spec() };
        assert!(capability_set(&bad, u64::MAX).unwrap_err().contains("NONSENSE"));
        assert!(!capability_set(&spec(), !1).unwrap().contains("CAP_CHOWN"));
    }

    #[test]
    fn libcontainer_reads_it() {
        let mut spec = spec();
        spec.user = User { uid: 7, gid: 8, additional_gids: vec![9] };
        spec.mounts = vec![Mount {
            source: "/a".into(),
            destination: "/dev/shm".into(),
            read_only: true,
            recursive_read_only: false,
            no_exec: false,
            propagation: Propagation::HostToContainer,
            mapped: false,
        }];
        let around = Surroundings {
            network: Some("/proc/1/ns/net".into()),
            capabilities: u64::MAX,
            cgroup: "k/p/c".into(),
            ..Default::default()
        };
        let config = oci_config(&spec, &around).unwrap();
        let oci: libcontainer::oci_spec::runtime::Spec = serde_json::from_value(config.clone()).unwrap();
        assert_eq!(oci.process().as_ref().unwrap().user().uid(), 7);
        assert_eq!(config["linux"]["cgroupsPath"], "/k/p/c");
        let shm: Vec<_> =
            config["mounts"].as_array().unwrap().iter().filter(|m| m["destination"] == "/dev/shm").collect();
        assert_eq!(shm.len(), 1);
        assert_eq!(shm[0]["options"], json!(["rbind", "rslave", "ro"]));
        assert_eq!(config["process"]["capabilities"]["effective"], json!([]));
    }

    #[test]
    fn an_empty_command_is_an_error() {
        let spec = ContainerSpec { args: vec![], ..spec() };
        assert!(oci_config(&spec, &Surroundings::default()).is_err());
    }
}
