//! What an image declares as a VOLUME: a folder of the container's own beside its write layer, which begins with what the
//! image has there. It is no overlay, so that another one can stand on it, and is writable where the root is not.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Component, Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::guard::Limit;
use super::{retar, tree, xattr};
use crate::files;

/// Folder of them, beside the write layer.
pub const VOLUMES: &str = "volumes";

/// Where the kernel's own file systems are: nothing of an image is to hide those.
const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The paths in a container at which an image wants volumes, outermost first: absolute and without detours.
pub fn places(declared: &[String]) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = declared.iter().filter_map(|path| place(path)).collect();
    places.sort();
    places.dedup();
    places
}

fn place(path: &str) -> Option<PathBuf> {
    let mut place = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => place.push(part),
            Component::ParentDir => drop(place.pop()),
            _ => {}
        }
    }
    let kernel = KERNEL.iter().any(|dir| place.starts_with(dir));
    (place.as_os_str() != "/" && !kernel).then_some(place)
}

/// Makes `folder` with what is at `place` in the root file system `rootfs`, where nothing runs yet. `owner` has what is not
/// there.
pub fn fill(rootfs: &Path, place: &Path, folder: &Path, owner: u32) -> io::Result<()> {
    files::dir(folder, 0o755)?;
    let root = File::open(rootfs)?;
    // links of the image lead where they do in the container
    let how = OpenHow::new()
        .flags(OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let found = match openat2(&root, place.strip_prefix("/").unwrap_or(place), how) {
        Ok(found) => found,
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return chown(folder, Some(owner), Some(owner)),
        Err(error) => return Err(error.into()),
    };
    let from = PathBuf::from(format!("/proc/self/fd/{}/", found.as_raw_fd()));
    copy(&from, folder)?;
    let meta = fs::metadata(&from)?;
    attributes(&from, folder)?;
    chown(folder, Some(meta.uid()), Some(meta.gid()))?;
    files::set_mode(folder, meta.mode() & 0o7777)
}

/// Copies what is in a folder, as an archive that nobody keeps.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let (reader, writer) = io::pipe()?;
    thread::scope(|scope| {
        let reading = scope.spawn(|| retar::write(from, writer));
        let written = tree::entries(reader, Limit::unbounded(), to);
        let read = reading.join().unwrap_or_else(|_| Err(io::Error::other("thread ended")));
        // who cannot write ends the pipe: its error is the one that counts
        written.map(drop).map_err(io::Error::other).and(read)
    })
}

/// Gives a folder the extended attributes of another; those that cannot be kept here are left out.
pub fn attributes(from: &Path, to: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    for name in xattr::list(from)? {
        if name.as_bytes().starts_with(b"trusted.overlay.") {
            continue;
        }
        let (Some(value), Some(name)) = (xattr::get(from, &name)?, name.to_str()) else { continue };
        match xattr::set(to, name, &value) {
            Err(e) if e.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => {}
            other => other?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::folder::Folder;

    #[test]
    fn the_kernels_folders_and_the_root_are_no_volumes() {
        let of = |declared: &[&str]| places(&declared.iter().map(|&p| p.to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["data/x/../y/", "/data", "/data/", "/./a"]), ["/a", "/data", "/data/y"].map(PathBuf::from));
        assert!(of(&["/", "", "/sys/fs/cgroup", "/dev", "/proc/x", "..", "/a/../sys"]).is_empty());
    }

    #[test]
    fn a_volume_begins_with_what_the_image_has_there() {
        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        let folder = Folder::new();
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("real/sub")).unwrap();
        fs::write(root.join("real/sub/file"), "seed").unwrap();
        fs::hard_link(root.join("real/sub/file"), root.join("real/other")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("real/link")).unwrap();
        // what the image says of it is true inside the image
        std::os::unix::fs::symlink("/../../real", root.join("data")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("outside")).unwrap();
        chown(root.join("real"), Some(1000), Some(1001)).unwrap();
        files::set_mode(&root.join("real"), 0o2750).unwrap();
        chown(root.join("real/sub/file"), Some(7), Some(8)).unwrap();
        let to = |name: &str| folder.path().join(name);
        let owner = |path: &Path| fs::symlink_metadata(path).map(|m| (m.uid(), m.gid(), m.mode() & 0o7777)).unwrap();
        fill(&root, Path::new("/data"), &to("0"), 0).unwrap();
        assert_eq!(owner(&to("0")), (1000, 1001, 0o2750));
        assert_eq!(fs::read_to_string(to("0/sub/file")).unwrap(), "seed");
        let (file, other) = (fs::metadata(to("0/sub/file")).unwrap(), fs::metadata(to("0/other")).unwrap());
        assert_eq!((file.ino(), file.uid(), file.gid()), (other.ino(), 7, 8));
        assert_eq!(fs::read_link(to("0/link")).unwrap(), Path::new("/etc/passwd"));
        for (name, place) in [("1", "/not/there"), ("2", "/outside"), ("3", "/real/other")] {
            fill(&root, Path::new(place), &to(name), 70000).unwrap();
            assert_eq!(owner(&to(name)), (70000, 70000, 0o755), "{place}");
            assert_eq!(fs::read_dir(to(name)).unwrap().count(), 0, "{place}");
        }
    }
}
