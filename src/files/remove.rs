//! Removal of folders that stays on one mount, whatever is mounted or linked there meanwhile.

use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::flags;

/// Folders below this depth are brought up before they are removed: neither descriptors nor stack are used up by what a
/// container nested.
const DEPTH: usize = 32;
/// How many names are tried for a folder that is brought up.
const NAMES: usize = 1000;
/// How often a folder that others still write to is emptied.
const ROUNDS: usize = 16;

/// Removes a folder with all that is in it; one that is not there is no error. Links are removed, not followed, and
/// another mount is never entered (`RESOLVE_NO_XDEV` of openat2(2)): its files stay, and the error names it. Flags that keep
/// a file are taken from it. What can be removed is, and the first error is told.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let name = c_name(path.file_name().ok_or(Errno::EINVAL)?.as_bytes())?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = match open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(()),
        other => other?,
    };
    let mut tree = Tree { first: None, brought: 0 };
    match Tree::enter(parent.as_fd(), &name) {
        Ok(dir) => {
            let top = dir.as_fd().try_clone_to_owned()?;
            tree.empty(dir, top.as_fd(), 0);
        }
        Err(Errno::ENOENT) => return Ok(()),
        Err(e) => return Err(named(&path.to_string_lossy(), e)),
    }
    // the folder it is in is no part of it: opened as a mere place, it keeps its flags
    let last = insist(parent.as_fd(), &name, &|| unlinkat(&parent, name.as_c_str(), UnlinkatFlags::RemoveDir));
    match (tree.first, last) {
        (Some(error), _) => Err(error),
        (None, Ok(()) | Err(Errno::ENOENT)) => Ok(()),
        (None, Err(e)) => Err(named(&path.to_string_lossy(), e)),
    }
}

struct Tree {
    first: Option<io::Error>,
    /// How many folders were brought up, for names of their own.
    brought: usize,
}

impl Tree {
    /// Opens the folder `name` of `parent` where it is no link and on the same mount.
    fn enter(parent: BorrowedFd<'_>, name: &CStr) -> nix::Result<Dir> {
        let path = Path::new(OsStr::from_bytes(name.to_bytes()));
        Dir::from_fd(open_beneath(parent, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?)
    }

    /// Removes what is in `dir`, which is `depth` below the folder `top`.
    fn empty(&mut self, mut dir: Dir, top: BorrowedFd<'_>, depth: usize) {
        let mut rounds = 0;
        while rounds < ROUNDS {
            let brought = self.brought;
            let parent = match dir.as_fd().try_clone_to_owned() {
                Ok(parent) => parent,
                Err(e) => return self.fail(c".", Errno::try_from(e).unwrap_or(Errno::EMFILE)),
            };
            let mut seen = false;
            for entry in dir.iter() {
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(e) => return self.fail(c".", e),
                };
                let name = entry.file_name();
                if name != c"." && name != c".." {
                    seen = true;
                    self.remove(parent.as_fd(), name, entry.file_type(), top, depth);
                }
            }
            if !seen || self.first.is_some() {
                return;
            }
            // what was brought up here is work of this call
            rounds += usize::from(self.brought == brought);
        }
    }

    fn remove(&mut self, parent: BorrowedFd<'_>, name: &CStr, kind: Option<Type>, top: BorrowedFd<'_>, depth: usize) {
        if kind != Some(Type::Directory) {
            match insist(parent, name, &|| unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)) {
                Ok(()) | Err(Errno::ENOENT) => return,
                // a file system that does not tell what its entries are
                Err(Errno::EISDIR) => {}
                Err(e) => return self.fail(name, e),
            }
        }
        let remove_dir = || unlinkat(parent, name, UnlinkatFlags::RemoveDir);
        match insist(parent, name, &remove_dir) {
            Ok(()) | Err(Errno::ENOENT) => return,
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
            Err(e) => return self.fail(name, e),
        }
        if depth >= DEPTH {
            return self.bring_up(parent, name, top);
        }
        match Self::enter(parent, name) {
            Ok(dir) => self.empty(dir, top, depth + 1),
            Err(Errno::ENOENT) => return,
            Err(e) => return self.fail(name, e),
        }
        match insist(parent, name, &remove_dir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            // why is told already
            Err(_) if self.first.is_some() => {}
            Err(e) => self.fail(name, e),
        }
    }

    /// Moves the folder `name` of `parent` into `top`, by a name that whoever filled the folders has not taken.
    fn bring_up(&mut self, parent: BorrowedFd<'_>, name: &CStr, top: BorrowedFd<'_>) {
        flags::loosen(top);
        for _ in 0..NAMES {
            self.brought += 1;
            let place = CString::new(format!(".removed-{}-{}", std::process::id(), self.brought)).unwrap_or_default();
            match insist(parent, name, &|| renameat(parent, name, top, place.as_c_str())) {
                Ok(()) | Err(Errno::ENOENT) => return,
                Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) => {}
                Err(e) => return self.fail(name, e),
            }
        }
        self.fail(name, Errno::EEXIST);
    }

    fn fail(&mut self, name: &CStr, error: Errno) {
        self.first.get_or_insert_with(|| named(&name.to_string_lossy(), error));
    }
}

/// Does `work` with the entry `name` of `parent`; once more where a flag of either may have kept it from that.
fn insist(parent: BorrowedFd<'_>, name: &CStr, work: &dyn Fn() -> nix::Result<()>) -> nix::Result<()> {
    match work() {
        Err(Errno::EPERM | Errno::EROFS) => {
            flags::loosen(parent);
            flags::loosen_entry(parent, name);
            work()
        }
        other => other,
    }
}

/// Opens what `path` names below the folder `root`, on the same mount (`EXDEV` where it is another) and through no link
/// (`ELOOP`; with `O_PATH` a last part that is one is opened itself), whoever changes the names there meanwhile.
pub fn open_beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let how = OpenHow::new()
        .flags(flags)
        .resolve(ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH);
    match openat2(root, path, how) {
        Err(Errno::ENOSYS) => {}
        other => return other,
    }
    // Linux before 5.6
    let mut parts = path.components().peekable();
    let mut at = root.try_clone_to_owned().map_err(|_| Errno::EMFILE)?;
    while let Some(part) = parts.next() {
        let name = match part {
            Component::Normal(name) => name,
            Component::CurDir => OsStr::new("."),
            _ => return Err(Errno::EXDEV),
        };
        let wanted = if parts.peek().is_some() {
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
        } else {
            flags
        };
        at = enter_compared(at.as_fd(), &c_name(name.as_bytes()).map_err(|_| Errno::EINVAL)?, wanted)?;
    }
    Ok(at)
}

/// Opens a folder, and looks at the number of the mount it is on (proc(5), `fdinfo`). The device would not tell: bind
/// mounts share it, and a subvolume of btrfs has another.
fn enter_compared(parent: BorrowedFd<'_>, name: &CStr, flags: OFlag) -> nix::Result<OwnedFd> {
    let opened = openat(parent, name, flags, Mode::empty())?;
    let mount = |file: BorrowedFd<'_>| {
        let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
        told.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<i64>().ok())
    };
    match (mount(opened.as_fd()), mount(parent)) {
        (Some(below), Some(above)) if below == above => Ok(opened),
        _ => Err(Errno::EXDEV),
    }
}

fn named(name: &str, error: Errno) -> io::Error {
    let kind = io::Error::from(error).kind();
    let why = match error {
        Errno::EXDEV | Errno::EBUSY => format!("{name}: something is mounted there, which is left alone"),
        e => format!("{name}: {}", e.desc()),
    };
    io::Error::new(kind, why)
}

fn c_name(name: &[u8]) -> io::Result<CString> {
    CString::new(name).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::folder::Folder;
    use crate::mount_tree::leave_namespace;
    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    #[test]
    fn links_go_and_what_they_name_stays() {
        let folder = Folder::new();
        let (doomed, kept) = (folder.path().join("doomed"), folder.path().join("kept"));
        fs::create_dir_all(doomed.join("sub")).unwrap();
        fs::create_dir_all(&kept).unwrap();
        fs::write(kept.join("file"), "1").unwrap();
        std::os::unix::fs::symlink(&kept, doomed.join("sub/link")).unwrap();
        std::os::unix::fs::symlink(&kept, folder.path().join("itself")).unwrap();
        remove_tree(&doomed).unwrap();
        assert!(!doomed.exists() && kept.join("file").exists());
        assert!(remove_tree(&folder.path().join("itself")).is_err());
        assert!(kept.join("file").exists());
        remove_tree(&doomed).unwrap();
        remove_tree(&folder.path().join("no/such")).unwrap();
    }

    #[test]
    fn deep_and_wide_folders_go() {
        let folder = Folder::new();
        let doomed = folder.path().join("doomed");
        fs::create_dir(&doomed).unwrap();
        let mut at = open(&doomed, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        for _ in 0..3000 {
            nix::sys::stat::mkdirat(&at, c"d", Mode::from_bits_truncate(0o700)).unwrap();
            at = openat(&at, c"d", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        }
        for n in 0..2000 {
            fs::write(doomed.join(n.to_string()), "").unwrap();
        }
        drop(at);
        remove_tree(&doomed).unwrap();
        assert!(!doomed.exists());
    }

    #[test]
    fn flags_keep_nothing() {
        let folder = Folder::new();
        let (above, doomed) = (folder.path().join("above"), folder.path().join("above/doomed"));
        let deep = doomed.join("d/".repeat(DEPTH + 3));
        fs::create_dir_all(&deep).unwrap();
        for (number, dir) in [&doomed, &doomed.join("d"), &deep].into_iter().enumerate() {
            fs::write(dir.join("file"), "").unwrap();
            fs::create_dir_all(dir.join("folder/full")).unwrap();
            fs::create_dir(dir.join("empty")).unwrap();
            std::os::unix::fs::symlink("file", dir.join("link")).unwrap();
            nix::unistd::mkfifo(&dir.join("fifo"), Mode::S_IRWXU).unwrap();
            let flag = if number == 1 { 0x20 } else { 0x10 };
            for place in ["file", "empty", "folder", "."] {
                if !flags::fix(&dir.join(place), flag) {
                    eprintln!("skipped: no such flags here, or they are not ours to set");
                    return drop(remove_tree(&doomed));
                }
            }
        }
        // every folder on the way
        for depth in 0..DEPTH + 3 {
            flags::fix(&doomed.join("d/".repeat(depth)), 0x10);
        }
        let told = remove_tree(&doomed);
        let left = doomed.exists();
        // nothing is taken from what is around it
        fs::create_dir_all(&doomed).unwrap();
        flags::fix(&above, 0x20);
        let kept = remove_tree(&doomed);
        flags::fix(&above, 0);
        told.unwrap();
        assert!(!left);
        assert!(kept.unwrap_err().to_string().contains("not permitted") && doomed.exists());
    }

    #[test]
    fn nor_do_read_only_subvolumes() {
        let folder = Folder::new();
        let doomed = folder.path().join("doomed");
        fs::create_dir(&doomed).unwrap();
        let volume = doomed.join("volume");
        let btrfs = |args: &[&std::ffi::OsStr]| {
            let done = std::process::Command::new("btrfs").arg("subvolume").args(args).output();
            done.is_ok_and(|output| output.status.success())
        };
        if !btrfs(&["create".as_ref(), volume.as_ref()]) {
            eprintln!("skipped: {} is no btrfs, or the program of that name is missing", doomed.display());
            return;
        }
        fs::create_dir_all(volume.join("a/b")).unwrap();
        assert!(btrfs(&["snapshot".as_ref(), "-r".as_ref(), volume.as_ref(), doomed.join("other").as_ref()]));
        remove_tree(&doomed).unwrap();
    }

    #[test]
    fn names_that_are_taken_do_not_stop_it() {
        let folder = Folder::new();
        let taken = folder.path().join(format!(".removed-{}-1/full", std::process::id()));
        fs::create_dir_all(&taken).unwrap();
        fs::create_dir_all(folder.path().join("a/b/c")).unwrap();
        let (top, parent) = (fs::File::open(folder.path()).unwrap(), fs::File::open(folder.path().join("a")).unwrap());
        let mut tree = Tree { first: None, brought: 0 };
        tree.bring_up(parent.as_fd(), c"b", top.as_fd());
        assert!(tree.first.is_none(), "{:?}", tree.first);
        assert!(folder.path().join(format!(".removed-{}-2/c", std::process::id())).exists() && taken.exists());
    }

    #[test]
    fn another_mount_is_left_alone() {
        let folder = Folder::new();
        let root = folder.path().to_owned();
        // a thread of its own, for the mount namespace
        std::thread::spawn(move || {
            leave_namespace().unwrap();
            let (doomed, shown) = (root.join("doomed"), root.join("shown"));
            for dir in [doomed.join("a/mount"), doomed.join("a/other"), shown.clone()] {
                fs::create_dir_all(dir).unwrap();
            }
            fs::write(shown.join("file"), "1").unwrap();
            fs::write(doomed.join("a/other/file"), "1").unwrap();
            let place = doomed.join("a/mount");
            // of the same file system, which no look at the device would tell
            mount(Some(&shown), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            let error = remove_tree(&doomed).unwrap_err().to_string();
            assert!(error.contains("mount") && error.contains("left alone"), "{error}");
            assert!(shown.join("file").exists(), "a file of another mount was removed");
            // as on a kernel without openat2
            let (above, flags) = (fs::File::open(doomed.join("a")).unwrap(), OFlag::O_RDONLY | OFlag::O_DIRECTORY);
            assert_eq!(enter_compared(above.as_fd(), c"mount", flags).unwrap_err(), Errno::EXDEV);
            let above = fs::File::open(&doomed).unwrap();
            enter_compared(above.as_fd(), c"a", flags).unwrap();
            assert!(!doomed.join("a/other").exists(), "what can be removed is");
            umount2(&place, MntFlags::MNT_DETACH).unwrap();
            remove_tree(&doomed).unwrap();
            assert!(!doomed.exists() && shown.join("file").exists());
        })
        .join()
        .unwrap();
    }
}
