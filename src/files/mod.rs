//! The one place that makes, writes and removes files and folders of the node.
//!
//! Who calls names the mode, and whether what is written outlives a power cut; the umask of whoever started the agent
//! decides nothing. `clippy.toml` refuses `std::fs::write` and its like elsewhere. What is inside a container's root file
//! system or a volume is opened by [`crate::runtime`] and [`crate::volume`], which follow no link of a container.

// what is refused elsewhere is done here
#![allow(clippy::disallowed_methods)]

mod aside;
mod flags;
mod hold;
mod remove;
mod walk;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::libc;

pub use aside::{aside, removal};
pub use hold::hold;
pub use remove::{open_beneath, remove_tree};
pub use walk::Walk;

/// Whether what is written is there after the power failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It may be lost: a boot makes it anew, or it lies in memory.
    Volatile,
    /// It is on the disk when the call returns. A new name lasts only after [`sync_dir`].
    Synced,
}

/// Makes a folder with its missing parents, all of that mode. One that is there gets the mode as well, so that an upgrade
/// closes what an older version left open.
pub fn dir(path: &Path, mode: u32) -> io::Result<()> {
    dir_kept(path, mode)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Makes a folder with its missing parents, all of that mode; one that is there stays as it is.
pub fn dir_kept(path: &Path, mode: u32) -> io::Result<()> {
    match new_dir(path, mode) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                dir_kept(parent, mode)?;
            }
            match new_dir(path, mode) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
                other => other,
            }
        }
        Err(e) if e.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
}

/// Makes a folder that must not be there yet.
pub fn new_dir(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().mode(mode).create(path)?;
    // what the umask took
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Changes the mode of what is there.
pub fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// The name of an empty file in a folder whose content is pikelet's to remove.
const MARK: &str = ".pikelet";

/// Marks a folder as one whose content is pikelet's to remove.
pub fn mark(dir: &Path) -> io::Result<()> {
    match create_new(&dir.join(MARK), 0o600) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// Whether a folder was marked so.
pub fn is_marked(dir: &Path) -> bool {
    fs::symlink_metadata(dir.join(MARK)).is_ok_and(|mark| mark.is_file())
}

/// Takes the mark away.
pub fn unmark(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(MARK)) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Opens an empty file to write: what was in it is gone. The last part of the path is never followed as a link.
pub fn create(path: &Path, mode: u32) -> io::Result<File> {
    opened(OpenOptions::new().read(true).write(true).create(true).truncate(true), path, mode)
}

/// Opens a file to write over what is in it; it is made if missing.
pub fn keep(path: &Path, mode: u32) -> io::Result<File> {
    opened(OpenOptions::new().read(true).write(true).create(true).truncate(false), path, mode)
}

/// Opens a file to write that must not be there yet.
pub fn create_new(path: &Path, mode: u32) -> io::Result<File> {
    opened(OpenOptions::new().read(true).write(true).create_new(true), path, mode)
}

/// Opens a file to write behind its end; it is made if missing.
pub fn append(path: &Path, mode: u32) -> io::Result<File> {
    opened(OpenOptions::new().append(true).create(true), path, mode)
}

/// Nothing waits: a file that a container has may be under a lease of its (`WouldBlock` for `fs.lease-break-time` then), and
/// something else may be in its place.
fn opened(options: &mut OpenOptions, path: &Path, mode: u32) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let options = options.mode(mode).custom_flags(flags);
    let file = match options.open(path) {
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            loosen(path)?;
            options.open(path)?
        }
        opened => opened?,
    };
    if file.metadata()?.permissions().mode() & 0o7777 != mode {
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    Ok(file)
}

/// A container with `LINUX_IMMUTABLE` may have made a file of its own, which the agent writes, one that nobody changes.
fn loosen(path: &Path) -> io::Result<()> {
    let place =
        OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path)?;
    flags::loosen(reopen_regular(&place)?.as_fd());
    Ok(())
}

/// Opens a regular file to read, where others may have put something else: a device is never opened, and nothing waits.
pub fn open_regular(path: &Path) -> io::Result<File> {
    reopen_regular(&OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path)?)
}

/// The same of a file that was opened as a mere place (`O_PATH`).
pub fn reopen_regular(place: &File) -> io::Result<File> {
    if !place.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file"));
    }
    // somebody may hold a lease on it
    let options = libc::O_NONBLOCK | libc::O_CLOEXEC;
    OpenOptions::new().read(true).custom_flags(options).open(format!("/proc/self/fd/{}", place.as_raw_fd()))
}

/// Copies a file, with its mode, to where there is none yet.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut from = File::open(from)?;
    let mode = from.metadata()?.permissions().mode() & 0o7777;
    let mut to = create_new(to, mode)?;
    aside(|| io::copy(&mut from, &mut to)).map(drop)
}

/// Writes what a file of the kernel (`/proc`, `/sys`, a cgroup) is to hold; it is never made.
pub fn set(path: impl AsRef<Path>, value: impl AsRef<[u8]>) -> io::Result<()> {
    OpenOptions::new().write(true).truncate(true).open(path)?.write_all(value.as_ref())
}

/// Makes the names in a directory last: what was created, renamed or removed there before.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    aside(|| File::open(dir)?.sync_all())
}

/// Writes a file of that mode so that it is there whole or not at all, and synced; one that says the same already is left
/// alone but for its mode. True when it was written. The name itself lasts after [`sync_dir`]. One writer at a time for a
/// path.
pub fn write_changed(path: &Path, bytes: &[u8], mode: u32) -> io::Result<bool> {
    if let Ok(found) = fs::metadata(path)
        && found.len() == bytes.len() as u64
        && fs::read(path)? == bytes
    {
        if found.permissions().mode() & 0o7777 != mode {
            set_mode(path, mode)?;
        }
        return Ok(false);
    }
    write(path, bytes, mode, Durability::Synced).map(|()| true)
}

/// Writes a file of that mode in one step: who reads it finds the old one or the new one, and never one of another mode.
/// One writer at a time for a path.
pub fn write(path: &Path, bytes: &[u8], mode: u32, durability: Durability) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let written = || {
        let mut file = create(&temporary, mode)?;
        file.write_all(bytes)?;
        if durability == Durability::Synced {
            file.sync_data()?;
        }
        fs::rename(&temporary, path)
    };
    let done = if durability == Durability::Synced { aside(written) } else { written() };
    // half a file takes room that a full disk needs
    done.inspect_err(|_| drop(fs::remove_file(&temporary)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::folder::Folder;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn modes_are_those_that_were_asked_for() {
        let folder = Folder::new();
        let deep = folder.path().join("a/b");
        dir(&deep, 0o700).unwrap();
        assert_eq!((mode(&deep), mode(&folder.path().join("a"))), (0o700, 0o700));
        fs::set_permissions(&deep, Permissions::from_mode(0o755)).unwrap();
        dir_kept(&deep, 0o700).unwrap();
        assert_eq!(mode(&deep), 0o755);
        dir(&deep, 0o700).unwrap();
        assert_eq!(mode(&deep), 0o700);

        let file = deep.join("secret");
        for mode_now in [0o600, 0o666] {
            write(&file, b"1", mode_now, Durability::Volatile).unwrap();
            assert_eq!(mode(&file), mode_now);
        }
        assert!(!write_changed(&file, b"1", 0o640).unwrap());
        assert_eq!(mode(&file), 0o640);
        assert!(write_changed(&file, b"2", 0o600).unwrap());
        assert_eq!((mode(&file), fs::read(&file).unwrap()), (0o600, b"2".to_vec()));
        append(&file, 0o604).unwrap().write_all(b"3").unwrap();
        assert_eq!((mode(&file), fs::read(&file).unwrap()), (0o604, b"23".to_vec()));
        assert_eq!(fs::read_dir(&deep).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_mark_says_whose_a_folder_is() {
        let folder = Folder::new();
        assert!(!is_marked(folder.path()));
        for _ in 0..2 {
            mark(folder.path()).unwrap();
            assert!(is_marked(folder.path()));
        }
        for _ in 0..2 {
            unmark(folder.path()).unwrap();
            assert!(!is_marked(folder.path()));
        }
    }

    #[test]
    fn a_link_is_not_written_through() {
        let folder = Folder::new();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        fs::write(&target, "kept").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(create(&link, 0o600).is_err() && append(&link, 0o600).is_err());
        write(&link, b"new", 0o600, Durability::Synced).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
        assert_eq!(fs::read_to_string(&link).unwrap(), "new");
    }

    #[test]
    fn only_regular_files_are_opened_where_others_write() {
        let folder = Folder::new();
        let (file, fifo, link) = (folder.path().join("file"), folder.path().join("fifo"), folder.path().join("link"));
        fs::write(&file, "text").unwrap();
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for good in [&file, &link] {
            assert_eq!(io::read_to_string(open_regular(good).unwrap()).unwrap(), "text");
        }
        for bad in [fifo.as_path(), folder.path(), Path::new("/dev/zero")] {
            assert_eq!(open_regular(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{}", bad.display());
        }
        assert_eq!(open_regular(&folder.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn nobody_is_waited_for() {
        let folder = Folder::new();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        for kind in [libc::F_RDLCK, libc::F_WRLCK] {
            let held = OpenOptions::new().read(true).write(kind == libc::F_WRLCK).open(&file).unwrap();
            // whoever is told that the lease is to end does not hear it
            // SAFETY: numbers, and a handler that is none.
            #[allow(unsafe_code)]
            unsafe {
                libc::signal(libc::SIGIO, libc::SIG_IGN);
                assert_eq!(libc::fcntl(held.as_raw_fd(), libc::F_SETLEASE, kind), 0, "{}", io::Error::last_os_error());
            }
            let start = std::time::Instant::now();
            let ways = [create(&file, 0o600), keep(&file, 0o600), append(&file, 0o600)];
            for opened in ways {
                assert_eq!(opened.unwrap_err().kind(), ErrorKind::WouldBlock);
            }
            if kind == libc::F_WRLCK {
                assert_eq!(open_regular(&file).unwrap_err().kind(), ErrorKind::WouldBlock);
            }
            let broken = fs::read_to_string("/proc/sys/fs/lease-break-time").unwrap();
            assert!(start.elapsed().as_secs() < broken.trim().parse().unwrap(), "it was waited for");
        }
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert!(append(&fifo, 0o600).is_err());
    }

    #[test]
    fn what_is_no_folder_is_an_error() {
        let folder = Folder::new();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(dir(&file, 0o700).is_err() && dir_kept(&file.join("below"), 0o700).is_err());
        assert_eq!(set(folder.path().join("none"), "1").unwrap_err().kind(), ErrorKind::NotFound);
    }
}
