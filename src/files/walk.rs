//! A walk through folders that others fill: however wide and deep they are, it holds few names and descriptors.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::libc;
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{Whence, lseek64};

use super::remove::open_beneath;

/// So many folders are held open at the top, and as many above the one that is read. Those between are found again by `..`,
/// with as much to do for whoever nested them.
const OPEN: usize = 32;
/// Folders within each other that are entered: where each is takes 32 bytes, and at least 1 GiB of a disk is full of them.
const DEEPEST: usize = if cfg!(test) { 1000 } else { 1 << 18 };
/// Bytes of names that are read at once.
const BUFFER: usize = 4 << 10;
/// Where a `struct linux_dirent64` (getdents64(2)) has the position of the next one, its own length, and its name.
const NEXT: usize = 8;
const LENGTH: usize = 16;
const NAME: usize = 19;
const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Tells what is in a folder, name by name, and in those of them that it is told to enter. It stays on one mount, and
/// follows no link.
pub struct Walk(Vec<Level>);

/// A folder that is being read.
struct Level {
    /// Device and inode.
    id: (u64, u64),
    /// Where its next name is.
    position: i64,
    /// None while it is not held open.
    open: Option<Box<Names>>,
}

struct Names {
    dir: OwnedFd,
    told: Vec<u8>,
    /// How much of `told` was read.
    read: usize,
}

impl Walk {
    /// Begins in the folder `top`, which is open to read.
    pub fn new(top: OwnedFd) -> nix::Result<Self> {
        Ok(Self(vec![Level { id: id(&top)?, position: 0, open: Some(Box::new(Names::new(top))) }]))
    }

    /// The next name, which is in [`Walk::folder`]. After an error, the walk goes on in the folder above.
    pub fn next_name(&mut self) -> Option<nix::Result<CString>> {
        while let Some(Level { position, open: Some(names), .. }) = self.0.last_mut() {
            match names.next(position) {
                Ok(None) => self.leave(),
                Ok(Some(name)) if name.as_c_str() == c"." || name.as_c_str() == c".." => {}
                Ok(Some(name)) => return Some(Ok(name)),
                Err(e) => {
                    self.leave();
                    return Some(Err(e));
                }
            }
        }
        None
    }

    /// The folder that is read; none at the end.
    pub fn folder(&self) -> Option<BorrowedFd<'_>> {
        self.0.last()?.open.as_ref().map(|names| names.dir.as_fd())
    }

    /// Goes on in the folder `name` of the one that is read, and here after that. `EXDEV` says that something is mounted
    /// there, and `ENAMETOOLONG` that it is too deep.
    pub fn enter(&mut self, name: &CStr) -> nix::Result<()> {
        if self.0.len() >= DEEPEST {
            return Err(Errno::ENAMETOOLONG);
        }
        let folder = self.folder().ok_or(Errno::ENOENT)?;
        let dir = open_beneath(folder, Path::new(OsStr::from_bytes(name.to_bytes())), FLAGS)?;
        self.0.push(Level { id: id(&dir)?, position: 0, open: Some(Box::new(Names::new(dir))) });
        if let Some(between) = self.0.len().checked_sub(OPEN + 1).filter(|number| *number >= OPEN) {
            self.0[between].open = None;
        }
        Ok(())
    }

    fn leave(&mut self) {
        let below = self.0.pop().and_then(|level| level.open);
        if let (Some(below), Some(above)) = (below, self.0.last_mut()) {
            above.open_again(&below.dir);
        }
        // where what was left had been moved, the nearest that is held open goes on
        while self.0.pop_if(|level| level.open.is_none()).is_some() {}
    }
}

impl Level {
    fn open_again(&mut self, below: &OwnedFd) {
        if self.open.is_none()
            && let Ok(dir) = openat(below, c"..", FLAGS, Mode::empty())
            && id(&dir).is_ok_and(|id| id == self.id)
            && lseek64(&dir, self.position, Whence::SeekSet).is_ok()
        {
            self.open = Some(Box::new(Names::new(dir)));
        }
    }
}

impl Names {
    fn new(dir: OwnedFd) -> Self {
        Self { dir, told: Vec::new(), read: 0 }
    }

    /// The next name; `position` becomes that of the one after it.
    fn next(&mut self, position: &mut i64) -> nix::Result<Option<CString>> {
        if self.read >= self.told.len() {
            self.told.resize(BUFFER, 0);
            let (fd, into) = (self.dir.as_raw_fd(), self.told.as_mut_ptr());
            // SAFETY: the kernel writes no more than the buffer holds, whose length it is told.
            let count = unsafe { libc::syscall(libc::SYS_getdents64, fd, into, BUFFER) };
            self.told.truncate(usize::try_from(Errno::result(count)?).unwrap_or(0));
            self.read = 0;
        }
        let entry = &self.told[self.read..];
        let next = entry.get(NEXT..).and_then(<[u8]>::first_chunk);
        let length = entry.get(LENGTH..).and_then(<[u8]>::first_chunk);
        let (Some(next), Some(length)) = (next, length) else { return Ok(None) };
        let length = usize::from(u16::from_ne_bytes(*length));
        let name = entry.get(NAME..length).and_then(|name| CStr::from_bytes_until_nul(name).ok()).ok_or(Errno::EIO)?;
        *position = i64::from_ne_bytes(*next);
        self.read += length;
        Ok(Some(name.to_owned()))
    }
}

#[allow(clippy::unnecessary_cast)] // these have other types on 32-bit boards
fn id(dir: &OwnedFd) -> nix::Result<(u64, u64)> {
    fstat(dir).map(|found| (found.st_dev as u64, found.st_ino as u64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::{self, File};

    use super::*;
    use crate::machine::folder::Folder;

    fn begin(folder: &Path) -> Walk {
        Walk::new(File::open(folder).unwrap().into()).unwrap()
    }

    /// Makes `depth` folders within each other, and returns the last.
    fn nest(top: &Path, name: &str, depth: usize) -> OwnedFd {
        let mut at = OwnedFd::from(File::open(top).unwrap());
        for _ in 0..depth {
            nix::sys::stat::mkdirat(&at, name, Mode::S_IRWXU).unwrap();
            at = openat(&at, name, FLAGS, Mode::empty()).unwrap();
        }
        at
    }

    /// Enters all there is, and returns how many names there were.
    fn all(walk: &mut Walk) -> usize {
        let mut count = 0;
        while let Some(name) = walk.next_name() {
            let _ = walk.enter(&name.unwrap());
            assert!(walk.0.iter().filter(|level| level.open.is_some()).count() <= 2 * OPEN);
            count += 1;
        }
        count
    }

    #[test]
    fn folders_that_were_let_go_are_read_on() {
        let folder = Folder::new();
        let place = nest(folder.path(), "above", OPEN + 5);
        let mut names = BTreeSet::new();
        // more than are read at once, and each with more below it than is held open
        for number in 0..40 {
            let name = format!("{number}-{}", "n".repeat(100));
            nix::sys::stat::mkdirat(&place, name.as_str(), Mode::S_IRWXU).unwrap();
            names.insert(CString::new(name).unwrap());
        }
        for name in &names {
            let path = format!("/proc/self/fd/{}/{}", place.as_raw_fd(), name.to_string_lossy());
            nest(Path::new(&path), "below", OPEN + 5);
        }
        let mut walk = begin(folder.path());
        let mut seen = Vec::new();
        while let Some(name) = walk.next_name() {
            let name = name.unwrap();
            walk.enter(&name).unwrap();
            if name.as_c_str() != c"above" && name.as_c_str() != c"below" {
                seen.push(name);
            }
        }
        assert_eq!(seen.len(), names.len());
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), names);
        assert_eq!(all(&mut begin(folder.path())), OPEN + 5 + 40 * (OPEN + 6));
        super::super::remove_tree(&folder.path().join("above")).unwrap();
    }

    #[test]
    fn it_does_not_leave_by_what_was_moved() {
        let folder = Folder::new();
        let (inside, outside) = (folder.path().join("inside"), folder.path().join("outside"));
        for dir in ["inside", "outside/a", "outside/b"] {
            fs::create_dir_all(folder.path().join(dir)).unwrap();
        }
        let last = nest(&inside, "d", 3 * OPEN);
        let mut walk = begin(&inside);
        for _ in 0..3 * OPEN {
            let name = walk.next_name().unwrap().unwrap();
            walk.enter(&name).unwrap();
        }
        assert_eq!(id(&last).unwrap(), walk.0.last().unwrap().id);
        // out of one that was let go
        let middle = inside.join("d/".repeat(OPEN + 10));
        fs::rename(&middle, outside.join("moved")).unwrap();
        // seen when it comes back to the part that was held open
        fs::create_dir(inside.join("new")).unwrap();
        assert!(all(&mut walk) <= 1);
        assert!(walk.folder().is_none() && walk.next_name().is_none());
    }

    #[test]
    fn what_is_no_folder_is_not_entered() {
        let folder = Folder::new();
        fs::write(folder.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("/", folder.path().join("link")).unwrap();
        let mut walk = begin(folder.path());
        assert_eq!(all(&mut walk), 2);
        assert!(walk.enter(c"..").is_err());
        let mut walk = begin(folder.path());
        assert!(walk.enter(c"..").is_err() && walk.enter(c"/").is_err());
    }
}
