//! The values that cross the border between the pod room and the runtime.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::cri_log::Rotation;

/// Where a runtime keeps its state and which cgroup it lives under.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RuntimeConfig {
    /// Volatile state (`/run/pikelet`): `sandboxes/<sandbox id>/...`; gone at reboot.
    pub state_dir: PathBuf,
    /// Parent cgroup of everything this agent creates, relative to each hierarchy's root, e.g. `kubepods`.
    pub cgroup_root: String,
    /// The binary re-executed as `<exe> shim ...`.
    pub shim_exe: PathBuf,
}

/// What a pod sandbox (the shim and the namespaces it holds) is made from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// 64 hex digits.
    pub id: String,
    /// The pod this sandbox belongs to.
    pub pod_uid: String,
    /// Pod name, for messages and logs.
    pub pod_name: String,
    /// Pod namespace, for messages and logs.
    pub pod_namespace: String,
    /// Sandboxes of one pod, counted from 0.
    pub attempt: u32,
    /// Host name set in the pod's UTS namespace (none with the host's network).
    pub hostname: Option<String>,
    /// Share the host's network namespace (and its UTS namespace).
    pub host_network: bool,
    /// Share the host's IPC namespace.
    pub host_ipc: bool,
    /// Share the host's PID namespace.
    pub host_pid: bool,
    /// One PID namespace for all containers of the pod.
    pub share_process_namespace: bool,
    /// Pod cgroup relative to [`RuntimeConfig::cgroup_root`], e.g. `burstable/pod<uid>` or `pod<uid>`.
    pub cgroup: String,
    /// Limits of the pod cgroup.
    pub resources: Resources,
    /// Kernel settings of the pod's namespaces, names with dots.
    #[serde(default)]
    pub sysctls: Vec<(String, String)>,
    /// The containers' users are these of the host (`hostUsers: false`); else they are the host's own. Such a pod has
    /// network, IPC, UTS and PID namespaces of its own.
    #[serde(default)]
    pub user_namespace: Option<IdRange>,
}

/// Ids of the host that a user namespace has as its own, from 0: of users and of groups alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The host's id of the namespace's root.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

/// cgroup limits in kernel units; `None` leaves the kernel's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// cgroup v1 CPU shares (2..=262144); turned to a weight on v2.
    pub cpu_shares: Option<u64>,
    /// CFS quota in microseconds per `cpu_period`.
    pub cpu_quota: Option<i64>,
    /// CFS period in microseconds.
    pub cpu_period: Option<u64>,
    /// Memory limit in bytes.
    pub memory_limit: Option<i64>,
    /// Largest number of processes.
    pub pids_limit: Option<i64>,
    /// Bytes of swap beside the memory limit. On v1 it takes a memory limit.
    #[serde(default)]
    pub swap_limit: Option<i64>,
    /// On v2, when memory runs out all processes of the cgroup are killed rather than one of them.
    #[serde(default)]
    pub oom_group: bool,
    /// Bytes of huge pages by page size in bytes; a size that is not named is limited to 0.
    #[serde(default)]
    pub hugepage_limits: Option<BTreeMap<u64, i64>>,
}

/// One mount of a container beyond the runtime's own defaults (`/proc`, `/dev`, `/sys`, ...).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Mount {
    /// Path on the host that is bind-mounted.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub destination: String,
    /// Mounted read-only.
    pub read_only: bool,
    /// With `read_only`: what is mounted below the source is read-only too (kernel 5.12).
    #[serde(default)]
    pub recursive_read_only: bool,
    /// Programs in it cannot be started.
    #[serde(default)]
    pub no_exec: bool,
    /// `None`, `HostToContainer` or `Bidirectional` (Kubernetes' mountPropagation).
    #[serde(default)]
    pub propagation: Propagation,
    /// Its files have owners as the pod's user namespace sees them already.
    #[serde(default)]
    pub mapped: bool,
}

/// Kubernetes' `mountPropagation`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Private (`rprivate`).
    #[default]
    None,
    /// `rslave`.
    HostToContainer,
    /// `rshared`.
    Bidirectional,
}

/// Kubernetes' `seccompProfile`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// All the kernel has.
    #[default]
    Unconfined,
    /// What container engines allow unless told otherwise.
    RuntimeDefault,
    /// The profile in a file, in the format of the OCI runtime specification.
    Localhost(PathBuf),
}

/// Who a container's process runs as, already resolved to numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
}

/// A device of the host that a container may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceGrant {
    /// Where it is, on the host and in the container.
    pub path: PathBuf,
    /// Of `r`, `w` and `m` (mknod).
    pub permissions: String,
}

/// A device of the host that a volume is (`volumeMode: Block`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeDevice {
    /// The device, by its path on the host.
    pub grant: DeviceGrant,
    /// Where it is in the container.
    pub destination: PathBuf,
}

/// What one container is made from. The root file system is mounted already.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// 64 hex digits; `pikelet://<id>` in the API.
    pub id: String,
    /// Container name in the pod.
    pub name: String,
    /// How often a container of this name was started before (the restart count).
    pub attempt: u32,
    /// Mounted root file system.
    pub rootfs: PathBuf,
    /// Whole command line.
    pub args: Vec<String>,
    /// Environment, in order.
    pub env: Vec<(String, String)>,
    /// Working directory; created when missing.
    pub cwd: String,
    /// Process owner.
    pub user: User,
    /// Volumes and managed files.
    pub mounts: Vec<Mount>,
    /// Root file system mounted read-only.
    pub read_only_rootfs: bool,
    /// All capabilities and devices, nothing masked.
    pub privileged: bool,
    /// `allowPrivilegeEscalation: false` sets `no_new_privs`.
    pub no_new_privileges: bool,
    /// Added to the default capability set; `ALL` or names without `CAP_`.
    pub capabilities_add: Vec<String>,
    /// Taken from the default capability set; `ALL` or names without `CAP_`.
    pub capabilities_drop: Vec<String>,
    /// System calls it may make; nothing is refused to a privileged one.
    #[serde(default)]
    pub seccomp: Seccomp,
    /// `AppArmor` profile the kernel has loaded.
    #[serde(default)]
    pub apparmor: Option<String>,
    /// `procMount: Unmasked`: nothing of `/proc` is masked or read-only.
    #[serde(default)]
    pub unmasked_proc: bool,
    /// Devices of the host beside those every container has of its own.
    #[serde(default)]
    pub devices: Vec<DeviceGrant>,
    /// Volumes that are devices.
    #[serde(default)]
    pub volume_devices: Vec<VolumeDevice>,
    /// cgroup limits.
    pub resources: Resources,
    /// `oom_score_adj` of the process.
    pub oom_score_adj: i32,
    /// CRI log file (`/var/log/pods/<ns>_<name>_<uid>/<container>/<attempt>.log`); directories are created.
    pub log_path: PathBuf,
    /// When a log file is put aside.
    #[serde(default)]
    pub log_rotation: Rotation,
    /// Allocate a terminal.
    pub tty: bool,
    /// Id of the container whose PID namespace it joins, instead of one of its own.
    #[serde(default)]
    pub target: Option<String>,
    /// Keep stdin open.
    pub stdin: bool,
    /// Close stdin when the first attach ends.
    pub stdin_once: bool,
    /// Host file mounted as the termination message file; read by the pod room after exit.
    pub termination_log: Option<PathBuf>,
    /// Free labels kept with the container and given back by [`super::Runtime::recover`] (image, image id, ...).
    pub labels: BTreeMap<String, String>,
}

/// How a container ended. Times are nanoseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit code; 128 + signal for a killed process.
    pub code: i32,
    /// Signal number when killed by one.
    pub signal: Option<i32>,
    /// Killed by the kernel's OOM killer.
    pub oom_killed: bool,
    /// When it was seen to end.
    pub finished_at: i64,
}

/// State of a container as its shim knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerInfo {
    /// What it was made from.
    pub spec: ContainerSpec,
    /// Process id on the host, 0 when it never ran.
    pub pid: i32,
    /// Nanoseconds since the epoch; `None` until started.
    pub started_at: Option<i64>,
    /// When it was created, nanoseconds since the epoch.
    pub created_at: i64,
    /// Set once it ended.
    pub exit: Option<ExitRecord>,
}

/// State of a sandbox found by [`super::Runtime::recover`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxInfo {
    /// What it was made from.
    pub spec: SandboxSpec,
    /// False when the shim is dead: containers are gone, only [`super::Runtime::remove_sandbox`] makes sense.
    pub alive: bool,
    /// Created at, nanoseconds since the epoch.
    pub created_at: i64,
    /// Its containers, in order of creation.
    pub containers: Vec<ContainerInfo>,
}

/// What the runtime tells the pod room without being asked.
#[derive(Debug, Clone)]
pub enum RuntimeEvent {
    /// A container's process ended.
    ContainerExited {
        /// Sandbox id.
        sandbox: String,
        /// Pod uid.
        pod_uid: String,
        /// Container id.
        container: String,
        /// How.
        exit: ExitRecord,
    },
    /// The shim is gone and every container with it.
    SandboxLost {
        /// Sandbox id.
        sandbox: String,
        /// Pod uid.
        pod_uid: String,
    },
}

/// Errors of the runtime; the message is fit for a pod's status.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The shim refused or failed; message as the shim gave it.
    #[error("{0}")]
    Shim(String),
    /// The shim could not be started or reached.
    #[error("shim of sandbox {sandbox}: {message}")]
    Unreachable {
        /// Sandbox id.
        sandbox: String,
        /// What happened.
        message: String,
    },
    /// The shim lives, but does not answer.
    #[error("shim of sandbox {sandbox}: no answer within {seconds} s")]
    Silent {
        /// Sandbox id.
        sandbox: String,
        /// How long it had.
        seconds: u64,
    },
    /// A file or directory could not be used.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
}
