//! tmpfs mounts below a pod's directory, and its removal. Nothing here follows a link out of the directory.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use tracing::warn;

use crate::files;
use crate::mount_tree::{self, Follow};

/// How long unmounting what another machine has is waited for.
const UNMOUNT: Duration = Duration::from_secs(5);

/// Makes the directory with its parents; a directory that is there keeps its mode.
pub(super) fn make_dir(dir: &Path, mode: u32) -> Result<(), String> {
    let failed = |e: io::Error| format!("cannot create {}: {e}", dir.display());
    if let Some(parent) = dir.parent() {
        files::dir_kept(parent, 0o700).map_err(failed)?;
    }
    files::dir_kept(dir, mode).map_err(failed)
}

/// Mounts a tmpfs on `dir`, out of reach of swap where the kernel can, unless something is mounted there.
pub(super) fn mount_tmpfs(dir: &Path, options: &str) -> Result<(), String> {
    let failed = |e: String| format!("cannot mount a tmpfs on {}: {e}", dir.display());
    if is_mount_point(dir)? {
        return Ok(());
    }
    let mount = |options: &str| {
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some(options))
    };
    if !SWAPS.load(Ordering::Relaxed) {
        match mount(&format!("{options},noswap")) {
            // an option this kernel does not know, unless it is another that is wrong
            Err(Errno::EINVAL) => {}
            done => return done.map_err(|e| failed(e.to_string())),
        }
    }
    mount(options).map_err(|e| failed(e.to_string()))?;
    if !SWAPS.swap(true, Ordering::Relaxed) && has_swap() {
        warn!(
            "Secrets and volumes in memory may be written to swap: only Linux 6.4 and newer can keep them out (noswap)"
        );
    }
    Ok(())
}

/// This kernel cannot keep a tmpfs out of swap.
static SWAPS: AtomicBool = AtomicBool::new(false);

/// Whether this machine has swap (proc(5), `swaps`: a line of titles, then one for each).
fn has_swap() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}

/// What a pod's shared memory takes at most, as containerd and CRI-O have it.
const SHARED: &str = "mode=1777,size=64m";

/// Mounts shared memory for a new sandbox on `dir`, with nothing in it.
pub fn shared_memory(dir: &Path) -> Result<(), String> {
    // one before it may have been lost
    let left = remove_tree(dir);
    if !left.is_empty() {
        return Err(left.join("; "));
    }
    make_dir(dir, 0o755)?;
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let mounted = mount(Some("shm"), dir, Some("tmpfs"), flags, Some(SHARED));
    mounted.map_err(|e| format!("cannot mount a tmpfs on {}: {e}", dir.display()))
}

/// Mounts huge pages of that size in bytes on `dir` unless something is mounted there.
pub(super) fn mount_huge(dir: &Path, size: u64) -> Result<(), String> {
    if is_mount_point(dir)? {
        return Ok(());
    }
    let options = format!("pagesize={size},mode=1777");
    let mounted = mount(Some("hugetlbfs"), dir, Some("hugetlbfs"), MsFlags::empty(), Some(options.as_str()));
    mounted.map_err(|e| {
        format!("cannot mount huge pages of {size} bytes on {}: {e}: does this kernel have that size?", dir.display())
    })
}

/// Whether something is mounted on `dir`. What is mounted there is not looked at: a server that is away would never
/// answer.
pub(super) fn is_mount_point(dir: &Path) -> Result<bool, String> {
    let parent = dir.parent().unwrap_or(Path::new("/"));
    let looked = parent.canonicalize().and_then(|parent| {
        let real = parent.join(dir.file_name().unwrap_or_default());
        Ok(mounts_below(&real)?.iter().any(|mount| mount.point == real))
    });
    looked.map_err(|e| format!("cannot tell what is mounted on {}: {e}", dir.display()))
}

/// Shows what was opened as `source` at `dir` as well, unless something is mounted there.
pub(super) fn bind(source: &File, dir: &Path, read_only: bool, follow: Follow) -> Result<(), String> {
    if is_mount_point(dir)? {
        return Ok(());
    }
    mount_tree::bind(source.as_fd(), dir, read_only, follow)
        .map_err(|e| format!("cannot show the volume at {}: {e}", dir.display()))
}

/// Unmounts all below `dir`, then removes it. While anything stays mounted nothing is removed, lest the files of
/// another filesystem go.
pub fn remove_tree(dir: &Path) -> Vec<String> {
    let real = match fs::symlink_metadata(dir) {
        Ok(meta) if meta.is_dir() => dir.canonicalize(),
        Ok(_) => return vec![format!("{} is not a directory; not removed", dir.display())],
        Err(e) if e.kind() == io::ErrorKind::NotFound => return vec![],
        Err(e) => Err(e),
    };
    let mounts = real.and_then(|real| mounts_below(&real));
    let mounts = match mounts {
        Ok(mounts) => mounts,
        Err(e) => return vec![format!("cannot tell what is mounted below {}: {e}", dir.display())],
    };
    let mut errors = Vec::new();
    // all of them first: what is unmounted below one that is shared goes below its peers too. Not what is mounted from
    // another machine, which may not answer; those below a bind are reached from there.
    for mount in mounts.iter().filter(|mount| mount.shared && !mount.remote) {
        if let Err(e) = mount_tree::part(&mount.point) {
            errors.push(format!("cannot make {} private, to unmount it: {e}", mount.point.display()));
        }
    }
    if !errors.is_empty() {
        return errors;
    }
    for Mount { point, remote, .. } in mounts.iter().rev() {
        let unmounted = if *remote { unmount_remote(point) } else { mount_tree::unbind(point) };
        if let Err(e) = unmounted {
            errors.push(format!("cannot unmount {}: {e}", point.display()));
        }
    }
    if errors.is_empty()
        && let Err(e) = files::remove_tree(dir)
    {
        errors.push(format!("cannot remove {}: {e}", dir.display()));
    }
    errors
}

/// Unmounts what another machine may have. The last one who has it waits in the kernel until all is written, which may be
/// for ever; it is out of the tree of files before. Not by force: that breaks what others have of the same server.
fn unmount_remote(point: &Path) -> nix::Result<()> {
    let (done, ended) = mpsc::channel();
    let place = point.to_owned();
    let unmount = move || {
        // who asked may not wait any more
        let _ = done.send(umount2(&place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW));
    };
    std::thread::Builder::new().name("unmount".into()).spawn(unmount).map_err(|_| Errno::EAGAIN)?;
    ended.recv_timeout(UNMOUNT).unwrap_or_else(|_| match is_mount_point(point) {
        Ok(false) => Ok(()),
        _ => Err(Errno::ETIMEDOUT),
    })
}

/// A line of the mount table (proc(5), `mountinfo`).
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    /// It has peers.
    shared: bool,
    /// Another machine has the files.
    remote: bool,
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|b| *b == b' ').skip(4);
        let point = unescape(fields.next()?);
        let mut shared = false;
        // optional fields up to a dash, behind the mount's options
        for field in fields.by_ref().skip(1).take_while(|field| *field != b"-") {
            shared |= field.starts_with(b"shared:");
        }
        let kind = fields.next()?;
        Some(Self { point, shared, remote: matches!(kind, b"nfs" | b"nfs4" | b"cifs" | b"smb3" | b"9p" | b"ceph") })
    }
}

/// What is mounted at and below `dir`, in the order it was mounted.
fn mounts_below(dir: &Path) -> io::Result<Vec<Mount>> {
    let table = fs::read("/proc/thread-self/mountinfo")?;
    let mounts = table.split(|b| *b == b'\n').filter_map(Mount::parse);
    Ok(mounts.filter(|mount| mount.point.starts_with(dir)).collect())
}

/// Undoes the octal escapes of mountinfo.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|d| first == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        if let Some(digits) = octal {
            bytes.push(digits.iter().fold(0u8, |n, d| n.wrapping_mul(8).wrapping_add(d - b'0')));
            rest = &tail[3..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_mount_table() {
        let parse = |line: &str| Mount::parse(line.as_bytes()).map(|m| (m.point, m.shared, m.remote));
        let of = |point: &str, shared, remote| Some((PathBuf::from(point), shared, remote));
        assert_eq!(parse("22 1 8:1 / / rw - ext4 /dev/sda1 rw"), of("/", false, false));
        assert_eq!(parse("30 22 0:25 / /a\\040b rw,noatime shared:5 master:3 - tmpfs t rw"), of("/a b", true, false));
        assert_eq!(parse("31 22 0:26 / /n rw master:6 - nfs4 server:/ rw"), of("/n", false, true));
        assert_eq!(parse(""), None);
    }
}
