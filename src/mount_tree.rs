//! Mounts that are copied, changed and put in their place by descriptor (Linux 5.12), and owners as a user namespace
//! sees them.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// `linux/mount.h`.
const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// `struct mount_attr`.
#[repr(C)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// A copy of what is mounted at a path, with all below, that is nowhere in the tree of files yet.
pub struct Tree(OwnedFd);

impl Tree {
    /// Copies what is at `path`, a file or a directory.
    pub fn copy(path: &Path) -> io::Result<Self> {
        let name = c_path(path)?;
        let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint | libc::AT_RECURSIVE as libc::c_uint;
        // SAFETY: `name` ends in a zero and lives through the call.
        let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, name.as_ptr(), flags) };
        let fd = Errno::result(fd)? as i32;
        // SAFETY: the kernel has just made it, and nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Shows the owner `id` of a file as the one that `user_namespace` calls `id`, and the other way round for what is
    /// written. Mounts below stay as they are.
    pub fn map_ids(&self, user_namespace: &File) -> io::Result<()> {
        let fd = u64::try_from(user_namespace.as_raw_fd()).map_err(io::Error::other)?;
        let wanted = Attributes { set: MOUNT_ATTR_IDMAP, clear: 0, propagation: 0, user_namespace: fd };
        // SAFETY: the path is empty and `wanted` is as large as said.
        let done = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                std::ptr::from_ref(&wanted),
                size_of::<Attributes>(),
            )
        };
        Errno::result(done).map(drop).map_err(io::Error::from)
    }

    /// Mounts it on `target` in the namespace of the calling thread.
    pub fn attach(&self, target: &Path) -> io::Result<()> {
        let name = c_path(target)?;
        // SAFETY: both names end in a zero and live through the call.
        let done = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                name.as_ptr(),
                MOVE_MOUNT_F_EMPTY_PATH,
            )
        };
        Errno::result(done).map(drop).map_err(io::Error::from)
    }
}

/// Gives the calling thread a mount namespace of its own: what the machine mounts later is seen in it, and nothing of it
/// outside.
pub fn leave_namespace() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}
