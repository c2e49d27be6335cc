//! What keeps files from being removed even by root, and containers can set: chattr(1)'s `i` and `a` with
//! `LINUX_IMMUTABLE`, and read-only subvolumes of btrfs.
#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::libc::{self, c_int};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::remove::open_beneath;

/// `FS_IMMUTABLE_FL` and `FS_APPEND_FL` of linux/fs.h.
const FIXED: c_int = 0x10 | 0x20;

nix::ioctl_read_bad!(get_flags, libc::FS_IOC_GETFLAGS, c_int);
nix::ioctl_write_ptr_bad!(set_flags, libc::FS_IOC_SETFLAGS, c_int);
// BTRFS_IOC_SUBVOL_SETFLAGS of linux/btrfs.h
nix::ioctl_write_ptr!(set_subvolume_flags, 0x94, 26, u64);

/// Takes that from a file or folder that is open to read. Whether it could shows when what failed is tried again.
pub fn loosen(file: BorrowedFd<'_>) {
    let (fd, none, mut flags) = (file.as_raw_fd(), 0, 0);
    // SAFETY: the descriptor is open, and the kernel writes one number.
    if unsafe { get_flags(fd, &raw mut flags) }.is_ok() && flags & FIXED != 0 {
        flags &= !FIXED;
        // SAFETY: the same, and it reads one.
        let _ = unsafe { set_flags(fd, &raw const flags) };
    }
    // SAFETY: the same.
    let _ = unsafe { set_subvolume_flags(fd, &raw const none) };
}

/// The same of the entry `name` of a folder, which is opened only where it is a regular file or folder, on the same mount.
pub fn loosen_entry(parent: BorrowedFd<'_>, name: &CStr) {
    let Ok(place) = open_beneath(parent, Path::new(OsStr::from_bytes(name.to_bytes())), OFlag::O_PATH) else { return };
    let kind = fstat(&place).map(|found| SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT);
    if !matches!(kind, Ok(SFlag::S_IFREG | SFlag::S_IFDIR)) {
        return;
    }
    // what is there and nothing else; somebody may hold a lease on it
    let place = format!("/proc/self/fd/{}", place.as_raw_fd());
    if let Ok(file) = open(place.as_str(), OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty()) {
        loosen(file.as_fd());
    }
}

/// For tests: `i` (0x10), `a` (0x20) or none (0) of what is there; false where that cannot be.
#[cfg(test)]
pub fn fix(path: &Path, wanted: c_int) -> bool {
    let (file, mut flags) = (std::fs::File::open(path).unwrap(), 0);
    // SAFETY: the descriptor is open, and the kernel writes one number.
    let read = unsafe { get_flags(file.as_raw_fd(), &raw mut flags) };
    flags = flags & !FIXED | wanted;
    // SAFETY: the same, and it reads one.
    read.is_ok() && unsafe { set_flags(file.as_raw_fd(), &raw const flags) }.is_ok()
}
