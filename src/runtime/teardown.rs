//! Removing what is left of a sandbox, with or without its shim.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroup::Hierarchies;
use super::store::{self, SandboxFile};
use crate::{files, metrics};

/// How long an ending or killed shim may take to be gone.
const SHIM_END: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(5);

/// Kills the shim and all processes of the sandbox, removes its cgroups and its directory. `all` holds the directories
/// of all sandboxes: the pod cgroup stays while another sandbox of the pod uses it. A sandbox whose file is cut off or of
/// another version is removed as well; one whose files cannot be read for another reason is kept.
pub fn remove_sandbox(dir: &Path, all: &Path, hierarchies: &Hierarchies) -> Result<(), String> {
    let mut errors = Vec::new();
    errors.extend(end_shim(dir).err());
    match cgroups(dir, all) {
        Ok(cgroups) => {
            for cgroup in cgroups {
                let began = Instant::now();
                errors.extend(hierarchies.remove(&cgroup).err().map(|e| format!("removing the cgroup {cgroup}: {e}")));
                metrics::CGROUPS.observe(["destroy".into()], began.elapsed());
            }
        }
        Err(e) => errors.push(format!("finding the cgroup of the pod: {e}")),
    }
    // The directory is what a later attempt finds the rest by.
    if errors.is_empty() {
        errors.extend(remove_dir(dir).err());
    }
    if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
}

/// Sends a signal to a container's first process, or to all of them, with no shim.
pub fn signal(dir: &Path, container: &str, signal: i32, all: bool, hierarchies: &Hierarchies) -> Result<(), String> {
    let signal = Signal::try_from(signal).map_err(|e| format!("signal {signal}: {e}"))?;
    let file = SandboxFile::read(dir).map_err(|e| format!("reading the sandbox file in {}: {e}", dir.display()))?;
    let cgroup = file.container_cgroup(container);
    if all || signal == Signal::SIGKILL {
        hierarchies.signal_all(&cgroup, signal);
        return Ok(());
    }
    let infos = store::read_infos(dir);
    let first = infos.iter().find(|i| i.spec.id == container).map(|i| Pid::from_raw(i.pid));
    match first.filter(|pid| hierarchies.processes(&cgroup).contains(pid)) {
        Some(pid) => match kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(e) => Err(format!("signal {signal} to process {pid} of container {container}: {e}")),
        },
        None => Err(format!("container {container} has no first process any more")),
    }
}

/// Kills the shim and every process of the sandbox; what they had stays.
pub fn kill_sandbox(dir: &Path, all: &Path, hierarchies: &Hierarchies) -> Result<(), String> {
    let ended = end_shim(dir);
    let cgroups = cgroups(dir, all).map_err(|e| format!("finding the cgroup of the pod: {e}"))?;
    for cgroup in cgroups {
        hierarchies.signal_all(&cgroup, Signal::SIGKILL);
    }
    ended
}

/// Those that are only this sandbox's.
fn cgroups(dir: &Path, all: &Path) -> io::Result<Vec<String>> {
    let Some(pod) = store::pod_cgroup(dir)? else { return Ok(Vec::new()) };
    for other in fs::read_dir(all)? {
        let other = other?.path();
        if other != dir && store::pod_cgroup(&other)?.as_ref() == Some(&pod) {
            return Ok(store::container_ids(dir).iter().map(|id| format!("{pod}/{id}")).collect());
        }
    }
    Ok(vec![pod])
}

fn end_shim(dir: &Path) -> Result<(), String> {
    let failed = |e: io::Error| format!("looking for the shim: {e}");
    if gone(dir).map_err(failed)? {
        return Ok(());
    }
    if let Some(pid) = store::living_shim(dir).map_err(failed)? {
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => return Err(format!("killing the shim {pid}: {e}")),
        }
    }
    if gone(dir).map_err(failed)? { Ok(()) } else { Err("the shim was killed but has not ended".into()) }
}

fn gone(dir: &Path) -> io::Result<bool> {
    let deadline = Instant::now() + SHIM_END;
    while store::living_shim(dir)?.is_some() {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(true)
}

/// Removes a directory tree after taking off whatever is mounted in it.
pub fn remove_dir(dir: &Path) -> Result<(), String> {
    let mounts = fs::read("/proc/self/mountinfo").map_err(|e| format!("reading the mounts: {e}"))?;
    for point in mounts_below(&mounts, dir) {
        umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|e| format!("unmounting {}: {e}", point.display()))?;
    }
    files::remove_tree(dir).map_err(|e| format!("removing {}: {e}", dir.display()))
}

/// Mount points at or below `dir`, latest first.
fn mounts_below(mountinfo: &[u8], dir: &Path) -> Vec<PathBuf> {
    let points = mountinfo.split(|&b| b == b'\n').filter_map(|line| line.split(|&b| b == b' ').nth(4)).map(unescape);
    let mut below: Vec<_> = points.filter(|p| p.starts_with(dir)).collect();
    below.reverse();
    below
}

/// Decodes the kernel's `\040` for a space and the like.
fn unescape(field: &[u8]) -> PathBuf {
    let (mut out, mut rest) = (Vec::new(), field);
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|d| byte == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        if let Some(digits) = digits {
            out.push(digits.iter().fold(0_u8, |value, d| value.wrapping_mul(8).wrapping_add(d - b'0')));
            rest = &tail[3..];
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_are_found() {
        let info =
            b"1 0 0:1 / /run rw - t t rw\n2 1 0:1 / /run/a\\040b rw - t t rw\n3 1 0:1 / /run/a\\040b/c rw - t t rw\n";
        let found = mounts_below(info, Path::new("/run/a b"));
        assert_eq!(found, [PathBuf::from("/run/a b/c"), PathBuf::from("/run/a b")]);
        assert!(mounts_below(info, Path::new("/run/a")).is_empty());
    }
}
