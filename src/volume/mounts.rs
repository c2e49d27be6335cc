//! tmpfs mounts below a pod's directory, and its removal. Nothing here follows a link out of the directory.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Makes the directory with its parents; a directory that is there keeps its mode.
pub(super) fn make_dir(dir: &Path, mode: u32) -> Result<(), String> {
    let failed = |e: io::Error| format!("cannot create {}: {e}", dir.display());
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    match fs::create_dir(dir) {
        Ok(()) => fs::set_permissions(dir, fs::Permissions::from_mode(mode)).map_err(failed),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(failed(e)),
    }
}

/// Mounts a tmpfs on `dir` unless something is mounted there.
pub(super) fn mount_tmpfs(dir: &Path, options: &str) -> Result<(), String> {
    let failed = |e: String| format!("cannot mount a tmpfs on {}: {e}", dir.display());
    if is_mount_point(dir)? {
        return Ok(());
    }
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some(options)).map_err(|e| failed(e.to_string()))
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

/// Whether something is mounted on `dir`.
pub(super) fn is_mount_point(dir: &Path) -> Result<bool, String> {
    let looked = dir.canonicalize().and_then(|real| Ok(mounts_below(&real)?.contains(&real)));
    looked.map_err(|e| format!("cannot tell what is mounted on {}: {e}", dir.display()))
}

/// Shows the directory `source` at `dir` as well, unless something is mounted there.
pub(super) fn bind(source: &Path, dir: &Path, read_only: bool) -> Result<(), String> {
    make_dir(dir, 0o750)?;
    if is_mount_point(dir)? {
        return Ok(());
    }
    let failed = |e| format!("cannot bind {} to {}: {e}", source.display(), dir.display());
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source), dir, None::<&str>, bind, None::<&str>).map_err(failed)?;
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, dir, None::<&str>, flags, None::<&str>).map_err(failed)?;
    }
    Ok(())
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
    for point in mounts.iter().rev() {
        if let Err(e) = umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            errors.push(format!("cannot unmount {}: {e}", point.display()));
        }
    }
    if errors.is_empty()
        && let Err(e) = fs::remove_dir_all(dir)
        && e.kind() != io::ErrorKind::NotFound
    {
        errors.push(format!("cannot remove {}: {e}", dir.display()));
    }
    errors
}

/// Mount points at and below `dir`, in the order they were mounted.
fn mounts_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/mountinfo")?;
    let points = table.split(|b| *b == b'\n').filter_map(|line| line.split(|b| *b == b' ').nth(4)).map(unescape);
    Ok(points.filter(|point| point.starts_with(dir)).collect())
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
