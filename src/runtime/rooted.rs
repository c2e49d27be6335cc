//! Paths below a container's root file system, resolved without following links out of it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Gid, Uid, fchownat};

use crate::files;

/// Largest file read from a root file system (`/etc/passwd`, `/etc/group`).
const MAX_FILE: u64 = 1 << 20;

fn open_root(rootfs: &Path) -> Result<OwnedFd, Errno> {
    open(rootfs, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

fn open_in(root: &OwnedFd, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

/// Reads a text file of `rootfs`; `None` when there is none. Anything but a regular file is an error and is not opened: an
/// image may have devices.
pub fn read_file(rootfs: &Path, path: &str) -> io::Result<Option<String>> {
    let root = open_root(rootfs)?;
    let place = match open_in(&root, Path::new(path), OFlag::O_PATH) {
        Ok(fd) => fd,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let mut bytes = Vec::new();
    files::reopen_regular(&File::from(place))?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Creates the directory `path` and its parents below `rootfs` where missing, for the user and the group `owner`.
pub fn create_dir_all(rootfs: &Path, path: &str, owner: u32) -> io::Result<()> {
    let root = open_root(rootfs)?;
    let mut done = PathBuf::from("/");
    for part in Path::new(path).components() {
        let name: &OsStr = match part {
            Component::Normal(name) => name,
            Component::ParentDir => OsStr::new(".."),
            _ => continue,
        };
        let next = done.join(name);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        if matches!(open_in(&root, &next, flags), Err(Errno::ENOENT)) {
            let parent = open_in(&root, &done, flags)?;
            match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
                Ok(()) => {
                    let (user, group) = (Uid::from_raw(owner), Gid::from_raw(owner));
                    fchownat(&parent, name, Some(user), Some(group), AtFlags::AT_SYMLINK_NOFOLLOW)?;
                }
                Err(Errno::EEXIST) => {}
                Err(e) => return Err(e.into()),
            }
        }
        done = next;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_do_not_lead_out() {
        let root = std::env::temp_dir().join(format!("pikelet-rooted-{}", std::process::id()));
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(root.join("etc/inner"), "inside").unwrap();
        std::os::unix::fs::symlink("/etc/inner", root.join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("/../../srv", root.join("link")).unwrap();
        std::fs::create_dir_all(root.join("srv")).unwrap();
        assert_eq!(read_file(&root, "/etc/passwd").unwrap().as_deref(), Some("inside"));
        assert_eq!(read_file(&root, "/etc/none").unwrap(), None);
        std::os::unix::fs::symlink("/dev/zero", root.join("etc/group")).unwrap();
        std::fs::create_dir_all(root.join("dev")).unwrap();
        let fifo = root.join("dev/zero");
        nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o600)).unwrap();
        assert_eq!(read_file(&root, "/etc/group").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        std::fs::remove_file(&fifo).unwrap();
        let zero = nix::libc::makedev(1, 5);
        // only root may make one
        if nix::sys::stat::mknod(&fifo, nix::sys::stat::SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), zero).is_ok() {
            assert_eq!(read_file(&root, "/etc/group").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        create_dir_all(&root, "/link/a/b", 0).unwrap();
        assert!(root.join("srv/a/b").is_dir());
        std::fs::remove_dir_all(&root).unwrap();
    }
}
