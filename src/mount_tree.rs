//! Mounts that are copied, changed and put in their place by descriptor (Linux 5.12), owners as a user namespace sees
//! them, and the one way in which a folder of the node is shown at a second place and taken away from there again.
//!
//! On most machines every mount is shared: a copy of a tree is a peer of it, and what is unmounted below the copy goes
//! below the original too. So copies are made slaves before they are anywhere, and what is unmounted is made private
//! first.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statvfs::{FsFlags, fstatvfs};

/// `linux/mount.h`.
const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_NOSUID: u64 = 2;
const MOUNT_ATTR_NODEV: u64 = 4;
const MOUNT_ATTR_NOEXEC: u64 = 8;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// `struct mount_attr`.
#[repr(C)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// What is seen elsewhere of mounts that are made later (`mount_namespaces(7)`): `MS_PRIVATE` and its like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Peers {
    /// Nothing on either side.
    Private = 1 << 18,
    /// What is mounted at the original.
    Slave = 1 << 19,
    /// What is mounted on either side.
    Shared = 1 << 20,
}

impl Peers {
    /// Says so of the mount that was opened at its root, `recursive` of all below it as well.
    pub fn set(self, mount: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
        let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
        change(mount, flags, &Attributes { set: 0, clear: 0, propagation: self as u64, user_namespace: 0 })
    }
}

fn change(mount: BorrowedFd<'_>, flags: i32, wanted: &Attributes) -> io::Result<()> {
    // SAFETY: the path is empty and `wanted` is as large as said.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            std::ptr::from_ref(wanted),
            size_of::<Attributes>(),
        )
    };
    Errno::result(done).map(drop).map_err(io::Error::from)
}

/// A copy of what is mounted at a path, with all below, that is nowhere in the tree of files yet.
pub struct Tree(OwnedFd);

impl Tree {
    /// Copies what is at `path`, a file or a directory.
    pub fn copy(path: &Path) -> io::Result<Self> {
        Self::open(libc::AT_FDCWD, &c_path(path)?, 0)
    }

    /// Copies what was opened.
    pub fn copy_of(file: BorrowedFd<'_>) -> io::Result<Self> {
        Self::open(file.as_raw_fd(), c"", libc::AT_EMPTY_PATH)
    }

    fn open(at: i32, name: &CStr, flag: i32) -> io::Result<Self> {
        let flags = OPEN_TREE_CLONE | (libc::O_CLOEXEC | libc::AT_RECURSIVE | flag) as libc::c_uint;
        // SAFETY: `name` ends in a zero and lives through the call.
        let fd = unsafe { libc::syscall(libc::SYS_open_tree, at, name.as_ptr(), flags) };
        let fd = Errno::result(fd)? as i32;
        // SAFETY: the kernel has just made it, and nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Whether it is of a folder.
    pub fn is_folder(&self) -> io::Result<bool> {
        Ok(SFlag::from_bits_truncate(fstat(&self.0)?.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR)
    }

    /// Shows the owner `id` of a file as the one that `user_namespace` calls `id`, and the other way round for what is
    /// written. Mounts below stay as they are.
    pub fn map_ids(&self, user_namespace: &File) -> io::Result<()> {
        let fd = u64::try_from(user_namespace.as_raw_fd()).map_err(io::Error::other)?;
        self.change(0, &Attributes { set: MOUNT_ATTR_IDMAP, clear: 0, propagation: 0, user_namespace: fd })
    }

    /// With all below it: what is mounted at the original is still seen here, and nothing of here there.
    fn make_slave(&self) -> io::Result<()> {
        self.set_peers(Peers::Slave)
    }

    /// Lets nobody write by way of this mount, whoever has a descriptor of it. Mounts below stay as they are.
    pub fn protect(&self) -> io::Result<()> {
        let set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
        self.change(0, &Attributes { set, clear: 0, propagation: 0, user_namespace: 0 })
    }

    /// Nobody writes through it. Mounts below stay as they are, and so do its other flags.
    fn make_read_only(&self) -> io::Result<()> {
        self.change(0, &Attributes { set: MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, user_namespace: 0 })
    }

    /// Says `peers` of it and of all below.
    pub fn set_peers(&self, peers: Peers) -> io::Result<()> {
        peers.set(self.0.as_fd(), true)
    }

    /// Nobody writes through it or runs programs of it: `recursive` tells whether all below it is read-only too.
    pub fn restrict(&self, read_only: bool, recursive: bool, no_exec: bool) -> io::Result<()> {
        let restrict = |set: u64, flags: i32| {
            let wanted = Attributes { set, clear: 0, propagation: 0, user_namespace: 0 };
            if set == 0 { Ok(()) } else { self.change(flags, &wanted) }
        };
        restrict(if no_exec { MOUNT_ATTR_NOEXEC } else { 0 }, 0)?;
        restrict(if read_only { MOUNT_ATTR_RDONLY } else { 0 }, if recursive { libc::AT_RECURSIVE } else { 0 })
    }

    fn change(&self, flags: i32, wanted: &Attributes) -> io::Result<()> {
        change(self.0.as_fd(), flags, wanted)
    }

    /// Mounts it on `target` in the namespace of the calling thread.
    pub fn attach(&self, target: &Path) -> io::Result<()> {
        self.move_to(libc::AT_FDCWD, &c_path(target)?, 0)
    }

    /// Mounts it on what was opened.
    pub fn attach_to(&self, place: BorrowedFd<'_>) -> io::Result<()> {
        self.move_to(place.as_raw_fd(), c"", MOVE_MOUNT_T_EMPTY_PATH)
    }

    fn move_to(&self, at: i32, name: &CStr, flags: libc::c_uint) -> io::Result<()> {
        let flags = MOVE_MOUNT_F_EMPTY_PATH | flags;
        // SAFETY: both names end in a zero and live through the call.
        let done =
            unsafe { libc::syscall(libc::SYS_move_mount, self.0.as_raw_fd(), c"".as_ptr(), at, name.as_ptr(), flags) };
        Errno::result(done).map(drop).map_err(io::Error::from)
    }
}

/// What becomes of mounts that are made later below one end of a bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// Those at the source are seen at the place as well, and never the other way round.
    Source,
    /// They are seen at both (volumes that are mounted `Bidirectional`).
    Both,
}

/// Shows what was opened, with all that is mounted below it, at `place` as well. Take it away by [`unbind`] only.
pub fn bind(source: BorrowedFd<'_>, place: &Path, read_only: bool, follow: Follow) -> io::Result<()> {
    match bind_copy(source, place, read_only, follow) {
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => bind_in_place(source, place, read_only, follow),
        done => done,
    }
}

fn bind_copy(source: BorrowedFd<'_>, place: &Path, read_only: bool, follow: Follow) -> io::Result<()> {
    let tree = Tree::copy_of(source)?;
    if follow == Follow::Source {
        tree.make_slave()?;
    }
    if read_only {
        tree.make_read_only()?;
    }
    tree.attach(place)
}

/// For Linux before 5.12.
fn bind_in_place(source: BorrowedFd<'_>, place: &Path, read_only: bool, follow: Follow) -> io::Result<()> {
    let shown = format!("/proc/self/fd/{}", source.as_raw_fd());
    mount(Some(shown.as_str()), place, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    let changed = || -> nix::Result<()> {
        if follow == Follow::Source {
            mount(None::<&str>, place, None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
        }
        if read_only {
            // a remount sets all flags
            let kept = flags_of(fstatvfs(source.as_fd())?.flags());
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | kept;
            mount(None::<&str>, place, None::<&str>, flags, None::<&str>)?;
        }
        Ok(())
    };
    // without MNT_DETACH nothing below goes, and so nothing below the source
    changed().map_err(|e| {
        let _ = umount2(place, MntFlags::UMOUNT_NOFOLLOW);
        e.into()
    })
}

fn flags_of(flags: FsFlags) -> MsFlags {
    let known = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
    ];
    known.iter().filter(|(found, _)| flags.contains(*found)).fold(MsFlags::empty(), |all, (_, flag)| all | *flag)
}

/// Takes what is mounted on `place`, with all below it, out of its peer groups: what is unmounted there from now on goes
/// nowhere else.
pub fn part(place: &Path) -> nix::Result<()> {
    mount(None::<&str>, place, None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
}

/// Unmounts what is on top of `place` with all below it, at once though it may be in use, and nothing anywhere else.
pub fn unbind(place: &Path) -> nix::Result<()> {
    part(place)?;
    umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
}

impl AsRawFd for Tree {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Gives the calling thread a mount namespace of its own: what the machine mounts later is seen in it, and nothing of it
/// outside.
pub fn leave_namespace() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
}

/// A mount namespace of the calling thread's own, with shared mounts as on machines with systemd.
#[cfg(test)]
pub fn shared_namespace() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    for kind in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | kind, None::<&str>).unwrap();
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::machine::folder::Folder;
    use nix::sys::statvfs::statvfs;

    fn tmpfs(dir: &Path, flags: MsFlags) {
        fs::create_dir_all(dir).unwrap();
        mount(Some("tmpfs"), dir, Some("tmpfs"), flags, None::<&str>).unwrap();
    }

    type Binder = fn(BorrowedFd<'_>, &Path, bool, Follow) -> io::Result<()>;

    #[test]
    fn a_bind_sees_what_its_source_does_and_its_end_takes_nothing_away() {
        let folder = Folder::new();
        let root = folder.path().to_owned();
        let work = move || {
            shared_namespace();
            let (disk, photos) = (root.join("disk"), root.join("disk/photos"));
            tmpfs(&disk, MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV);
            tmpfs(&photos, MsFlags::empty());
            fs::write(photos.join("file"), "1").unwrap();
            let source = File::open(&disk).unwrap();
            let binders: [Binder; 2] = [bind, bind_in_place];
            for (number, binder) in binders.into_iter().enumerate() {
                for (follow, read_only) in [(Follow::Source, false), (Follow::Source, true), (Follow::Both, false)] {
                    let place = root.join("place");
                    fs::create_dir_all(&place).unwrap();
                    binder(source.as_fd(), &place, read_only, follow).unwrap();
                    assert!(place.join("photos/file").exists(), "what is mounted below is seen");
                    let later = disk.join(format!("later-{number}-{follow:?}-{read_only}"));
                    tmpfs(&later, MsFlags::empty());
                    fs::write(later.join("file"), "1").unwrap();
                    assert!(place.join(later.file_name().unwrap()).join("file").exists(), "also what is mounted later");
                    let flags = statvfs(&place).unwrap().flags();
                    let kept = FsFlags::ST_NOEXEC | FsFlags::ST_NOSUID | FsFlags::ST_NODEV;
                    assert!(flags.contains(kept) && flags.contains(FsFlags::ST_RDONLY) == read_only, "{flags:?}");
                    if follow == Follow::Source {
                        umount2(&place.join("photos"), MntFlags::MNT_DETACH).unwrap();
                        assert!(photos.join("file").exists(), "a mount of the source was unmounted");
                    }
                    unbind(&place).unwrap();
                    assert!(photos.join("file").exists() && later.join("file").exists(), "{follow:?}");
                    assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
                }
            }
        };
        std::thread::spawn(work).join().unwrap();
    }
}
