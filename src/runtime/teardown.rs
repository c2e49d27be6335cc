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

/// How long an ending or killed shim may take to be gone.
const SHIM_END: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(5);

/// Kills the shim and all processes of the sandbox, removes its cgroups and its directory. `all` holds the directories
/// of all sandboxes: the pod cgroup stays while another sandbox of the pod uses it.
pub fn remove_sandbox(dir: &Path, all: &Path, hierarchies: &Hierarchies) -> Result<(), String> {
    let mut errors = Vec::new();
    errors.extend(end_shim(dir).err());
    if let Ok(file) = SandboxFile::read(dir) {
        let pod = file.pod_cgroup();
        let cgroups = if shared(dir, all, &pod) {
            store::container_ids(dir).iter().map(|id| file.container_cgroup(id)).collect()
        } else {
            vec![pod]
        };
        for cgroup in cgroups {
            errors.extend(hierarchies.remove(&cgroup).err().map(|e| format!("removing the cgroup {cgroup}: {e}")));
        }
    }
    // The directory is what a later attempt finds the rest by.
    if errors.is_empty() {
        errors.extend(remove_dir(dir).err());
    }
    if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
}

fn end_shim(dir: &Path) -> Result<(), String> {
    if gone(dir) {
        return Ok(());
    }
    if let Some(pid) = store::living_shim(dir) {
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => return Err(format!("killing the shim {pid}: {e}")),
        }
    }
    if gone(dir) { Ok(()) } else { Err("the shim was killed but has not ended".into()) }
}

fn gone(dir: &Path) -> bool {
    let deadline = Instant::now() + SHIM_END;
    while store::living_shim(dir).is_some() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
    true
}

fn shared(dir: &Path, all: &Path, pod_cgroup: &str) -> bool {
    let entries = fs::read_dir(all).into_iter().flatten().flatten().map(|e| e.path());
    let mut others = entries.filter(|other| other != dir);
    others.any(|other| SandboxFile::read(&other).is_ok_and(|f| f.pod_cgroup() == pod_cgroup))
}

/// Removes a directory tree after taking off whatever is mounted in it.
pub fn remove_dir(dir: &Path) -> Result<(), String> {
    let mounts = fs::read("/proc/self/mountinfo").map_err(|e| format!("reading the mounts: {e}"))?;
    for point in mounts_below(&mounts, dir) {
        umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|e| format!("unmounting {}: {e}", point.display()))?;
    }
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(format!("removing {}: {e}", dir.display())),
        _ => Ok(()),
    }
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
