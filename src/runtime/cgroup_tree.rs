//! Cgroups below a cgroup: a container may make some, as deep and as many as its memory holds, also such whose path is longer
//! than the kernel takes. So they are visited by descriptors, of which two are open at a time.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Most cgroups visited: whoever makes more while they are visited is visited again when it has been killed.
const MOST: usize = 1 << 20;
const FOLDER: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Calls `each` with the cgroup `dir` and all below, parents first. What is gone meanwhile is left out.
pub fn visit(dir: &Path, each: &mut dyn FnMut(BorrowedFd<'_>)) -> io::Result<()> {
    walk(dir, each, &mut |_, _| Ok(()))
}

/// Removes `dir` and all below; one that is not there is no error.
pub fn remove(dir: &Path) -> io::Result<()> {
    let below = walk(dir, &mut |_| {}, &mut |parent, name| gone(unlinkat(parent, name, UnlinkatFlags::RemoveDir)));
    below.and(match std::fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    })
}

/// The text of a file of a cgroup.
pub fn read(cgroup: BorrowedFd<'_>, file: &str) -> io::Result<String> {
    io::read_to_string(std::fs::File::from(openat(cgroup, file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?))
}

/// Sets a file of a cgroup.
pub fn write(cgroup: BorrowedFd<'_>, file: &str, value: &str) -> io::Result<()> {
    let file = openat(cgroup, file, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    nix::unistd::write(file, value.as_bytes())?;
    Ok(())
}

/// Where a walk is: a cgroup below the first, and which of those in it are still to be visited.
struct Level {
    name: CString,
    left: Vec<CString>,
}

type Leave<'a> = &'a mut dyn FnMut(BorrowedFd<'_>, &CStr) -> io::Result<()>;

/// `enter` gets each cgroup before, `leave` its parent and name after those below it; the first error is told.
fn walk(dir: &Path, enter: &mut dyn FnMut(BorrowedFd<'_>), leave: Leave<'_>) -> io::Result<()> {
    let mut at: OwnedFd = match open(dir, FOLDER, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(()),
        opened => opened?,
    };
    enter(at.as_fd());
    let (mut first, mut seen) = (Ok(()), 0);
    let mut levels = vec![Level { name: CString::default(), left: names(at.as_fd())? }];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.left.pop() {
            seen += 1;
            if seen > MOST {
                return Err(io::Error::other(format!("more than {MOST} cgroups below {}", dir.display())));
            }
            match openat(&at, name.as_c_str(), FOLDER, Mode::empty()) {
                Ok(next) => {
                    enter(next.as_fd());
                    levels.push(Level { name, left: names(next.as_fd())? });
                    at = next;
                }
                Err(e) => first = first.and(gone(Err(e))),
            }
            continue;
        }
        let Some(done) = levels.pop().filter(|_| !levels.is_empty()) else { break };
        at = openat(&at, c"..", FOLDER, Mode::empty())?;
        first = first.and(leave(at.as_fd(), &done.name));
    }
    first
}

fn gone(done: nix::Result<()>) -> io::Result<()> {
    match done {
        // removed meanwhile, which its files tell by ENODEV
        Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Cgroups in a cgroup.
fn names(cgroup: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut dir = Dir::openat(cgroup, c".", FOLDER, Mode::empty())?;
    let mut found = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() == Some(Type::Directory) && !matches!(name.to_bytes(), b"." | b"..") {
            found.push(name.to_owned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Any folders do: cgroups are some, but for the files in them.
    #[test]
    fn all_are_visited_and_removed_however_deep() {
        let top = std::env::temp_dir().join(format!("pikelet-cgroup-tree-{}", std::process::id()));
        fs::create_dir_all(top.join("wide/a")).unwrap();
        fs::create_dir_all(top.join("wide/b")).unwrap();
        fs::write(top.join("wide/b/state"), "frozen").unwrap();
        // deeper than a path can tell, and than there are descriptors
        let mut at = open(&top, FOLDER, Mode::empty()).unwrap();
        for _ in 0..5000 {
            nix::sys::stat::mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            at = openat(&at, "d", FOLDER, Mode::empty()).unwrap();
        }
        let (mut count, mut states) = (0, Vec::new());
        visit(&top, &mut |cgroup| {
            count += 1;
            if let Ok(state) = read(cgroup, "state") {
                states.push(state);
                write(cgroup, "state", "thawed").unwrap();
            }
        })
        .unwrap();
        assert_eq!((count, states), (5004, vec!["frozen".to_owned()]));
        assert_eq!(fs::read_to_string(top.join("wide/b/state")).unwrap(), "thawed");
        // what has something in it stays, and is told; all else goes
        assert_eq!(remove(&top).unwrap_err().kind(), io::ErrorKind::DirectoryNotEmpty);
        let left: Vec<_> = fs::read_dir(&top).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["wide"]);
        fs::remove_file(top.join("wide/b/state")).unwrap();
        remove(&top).unwrap();
        assert!(!top.exists());
        remove(&top).unwrap();
        visit(&top, &mut |_| panic!("there is none")).unwrap();
    }
}
