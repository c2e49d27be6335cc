//! What is mounted where.

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::MsFlags;

use super::{Failure, RUN, console};

use crate::files;

/// No programs, devices or set-uid files come from there.
pub const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
/// Cgroup that holds the agent, as a service manager would have it.
pub const AGENT_CGROUP: &str = "/sys/fs/cgroup/system.slice/pikelet.service";

/// mount(2), with an error that says what of.
pub fn mount(
    source: impl AsRef<Path>,
    target: impl AsRef<Path>,
    kind: &str,
    flags: MsFlags,
    options: &str,
) -> Result<(), Failure> {
    let (source, target) = (source.as_ref(), target.as_ref());
    let mounted = nix::mount::mount(Some(source), target, Some(kind), flags, Some(options));
    Ok(mounted.map_err(|e| format!("mounting {} ({kind}) on {}: {e}", source.display(), target.display()))?)
}

fn change(source: &Path, target: &Path, flags: MsFlags) -> Result<(), Failure> {
    let changed = nix::mount::mount(Some(source), target, None::<&str>, flags, None::<&str>);
    Ok(changed.map_err(|e| format!("mount {} {}: {e}", source.display(), target.display()))?)
}

/// Moves a mount.
pub fn move_to(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), Failure> {
    change(from.as_ref(), to.as_ref(), MsFlags::MS_MOVE)
}

/// Shows what is at one place at another one as well.
pub fn bind(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), Failure> {
    change(from.as_ref(), to.as_ref(), MsFlags::MS_BIND)
}

/// Makes a mounted file system writable, or no longer so.
pub fn remount(target: &str, writable: bool, flags: MsFlags) -> Result<(), Failure> {
    let read_only = if writable { MsFlags::empty() } else { MsFlags::MS_RDONLY };
    change(Path::new(target), Path::new(target), MsFlags::MS_REMOUNT | flags | read_only)
}

/// The kernel's own file systems.
pub fn kernel() -> Result<(), Failure> {
    for dir in ["/proc", "/sys", "/dev"] {
        files::dir_kept(Path::new(dir), 0o755)?;
    }
    mount("proc", "/proc", "proc", SAFE, "")?;
    mount("sys", "/sys", "sysfs", SAFE, "")?;
    mount("dev", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=0755")
}

/// All others.
pub fn rest() -> Result<(), Failure> {
    // what containers mount into volumes is seen, as on other nodes
    change(Path::new("none"), Path::new("/"), MsFlags::MS_REC | MsFlags::MS_SHARED)?;
    for name in ["/dev/pts", "/dev/shm", "/dev/mqueue"] {
        files::dir_kept(Path::new(name), 0o755).map_err(|e| format!("creating {name}: {e}"))?;
    }
    mount("devpts", "/dev/pts", "devpts", SAFE - MsFlags::MS_NODEV, "mode=0620,ptmxmode=0666")?;
    mount("shm", "/dev/shm", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    mount("mqueue", "/dev/mqueue", "mqueue", SAFE, "")?;
    mount("run", "/run", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755,size=20%")?;
    mount("tmp", "/tmp", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777,size=20%")?;
    files::new_dir(Path::new(RUN), 0o755)?;
    for (source, target, kind) in [
        ("securityfs", "/sys/kernel/security", "securityfs"),
        ("bpf", "/sys/fs/bpf", "bpf"),
        ("cgroup", "/sys/fs/cgroup", "cgroup2"),
    ] {
        mount(source, target, kind, SAFE, if kind == "cgroup2" { "nsdelegate,memory_recursiveprot" } else { "" })?;
    }
    links()?;
    cgroups()?;
    card_folders()
}

/// What `/dev` has beside the kernel's devices.
fn links() -> io::Result<()> {
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
        ("/proc/self/mounts", "/etc/mtab"),
        ("/run", "/var/run"),
    ] {
        let made = std::os::unix::fs::symlink(target, link);
        made.or_else(|e| if e.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(e) })?;
    }
    Ok(())
}

/// The agent's cgroup, with every controller there is handed down to it and to the pods.
fn cgroups() -> Result<(), Failure> {
    let all = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
    files::dir_kept(Path::new(AGENT_CGROUP), 0o755)?;
    for parent in ["/sys/fs/cgroup", "/sys/fs/cgroup/system.slice"] {
        for controller in all.split_whitespace() {
            let file = format!("{parent}/cgroup.subtree_control");
            if let Err(error) = files::set(&file, format!("+{controller}")) {
                console::say(&format!("pikelet: controller {controller} not to be had ({file}): {error}"));
            }
        }
    }
    Ok(())
}

/// Folders of the card, and the logs: those of containers on the card, the system's own in memory. Nothing of the system
/// is ever written to the card while all is well.
fn card_folders() -> Result<(), Failure> {
    files::dir_kept(Path::new("/var/log"), 0o755).map_err(|e| format!("creating /var/log on the card: {e}"))?;
    mount("log", "/var/log", "tmpfs", SAFE, "mode=0755,size=16M")?;
    kept_logs()
}

/// What of other places is kept on the card: logs of containers, and the membership of a k3s cluster.
pub fn kept_logs() -> Result<(), Failure> {
    // by which a k3s server knows the node again
    files::dir_kept(Path::new("/etc/rancher/node"), 0o755)?;
    for (source, target) in [
        ("/var/lib/pikelet/logs/pods", "/var/log/pods"),
        ("/var/lib/pikelet/logs/containers", "/var/log/containers"),
        ("/var/lib/pikelet/node", "/etc/rancher/node"),
    ] {
        for dir in [source, target] {
            files::dir_kept(Path::new(dir), 0o755).map_err(|e| format!("creating {dir}: {e}"))?;
        }
        bind(source, target)?;
    }
    Ok(())
}
