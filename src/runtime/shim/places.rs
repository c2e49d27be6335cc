//! Where libcontainer mounts volumes, and makes what every container has. It follows links there before the container has a
//! root of its own, so an image, or a volume that lies in the place of one of the image's folders, could have it write to the
//! host. So all places are settled before, in the image alone, which nobody else has; what lies in another volume, where
//! others may change links at any time, is mounted later, from within ([`super::late_mounts`]).

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::setup::context;
use crate::runtime::types::ContainerSpec;

/// Folders of a root file system that must be such, where they are there.
const PLACES: [&str; 3] = ["dev", "proc", "sys"];

/// Refuses a root file system that has something else in their place.
pub fn check(rootfs: &Path) -> Result<(), String> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(rootfs, flags, Mode::empty()).map_err(context("opening the root file system"))?;
    for place in PLACES {
        let how = OpenHow::new().flags(flags | OFlag::O_NOFOLLOW);
        let how = how.resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH);
        match openat2(&root, place, how) {
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                return Err(format!("/{place} of the image is a link or a file; it must be a folder, or not be there"));
            }
            Err(e) => return Err(format!("looking at /{place} of the image: {e}")),
        }
    }
    Ok(())
}

/// Where a pod's shared memory lies. Old images have a link there.
const SHM: &str = "/dev/shm";

/// Most links followed on the way to a place, as the kernel has it.
const MOST_LINKS: usize = 40;

/// Puts where each volume and device comes to lie in place of what the spec says: a path of the image without links, dots and
/// double slashes. None of them is the container's root.
pub fn settle(spec: &mut ContainerSpec) -> Result<(), String> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(&spec.rootfs, flags, Mode::empty()).map_err(context("opening the root file system"))?;
    let settled = |path: &Path| match real(&root, path) {
        Ok(place) if place == Path::new("/") => {
            Err(format!("{}: this is the container's root, which no volume can be mounted over", path.display()))
        }
        Ok(place) => Ok(place),
        Err(e) => Err(format!("finding {} in the image: {e}", path.display())),
    };
    // the image's /dev is covered by the container's own, which has no link of that name
    for mount in spec.mounts.iter_mut().filter(|m| m.destination != SHM) {
        let place = settled(Path::new(&mount.destination))?;
        mount.destination = place.into_os_string().into_string().map_err(|p| format!("{}: no UTF-8", p.display()))?;
    }
    for device in &mut spec.volume_devices {
        device.destination = settled(&device.destination)?;
    }
    Ok(())
}

/// Where a path leads in a root file system, also when nothing is there.
fn real(root: &OwnedFd, path: &Path) -> Result<PathBuf, Errno> {
    let names = |path: &Path| -> VecDeque<OsString> {
        path.components().filter(|c| !matches!(c, Component::RootDir)).map(|c| c.as_os_str().to_owned()).collect()
    };
    let (mut ahead, mut done, mut links) = (names(path), PathBuf::from("/"), 0);
    while let Some(name) = ahead.pop_front() {
        if name == OsStr::new("..") {
            done.pop();
        } else if let Some(target) = link(root, &done.join(&name))? {
            links += 1;
            if links > MOST_LINKS {
                return Err(Errno::ELOOP);
            }
            if target.is_absolute() {
                done = PathBuf::from("/");
            }
            let mut target = names(&target);
            target.append(&mut ahead);
            ahead = target;
        } else if name != OsStr::new(".") {
            done.push(name);
        }
    }
    Ok(done)
}

/// What the link at a path of a root file system says; `None` where there is no link, or nothing.
fn link(root: &OwnedFd, path: &Path) -> Result<Option<PathBuf>, Errno> {
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC);
    let how = how.resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let place = match openat2(root, path.strip_prefix("/").unwrap_or(path), how) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        opened => opened?,
    };
    let kind = SFlag::from_bits_truncate(fstat(&place)?.st_mode) & SFlag::S_IFMT;
    Ok(if kind == SFlag::S_IFLNK { Some(readlinkat(&place, "")?.into()) } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::types::Mount;

    #[test]
    fn volumes_lie_where_the_image_leads() {
        let root = std::env::temp_dir().join(format!("pikelet-settle-{}", std::process::id()));
        std::fs::create_dir_all(root.join("usr/bin")).unwrap();
        std::fs::create_dir_all(root.join("run/here")).unwrap();
        std::fs::create_dir_all(root.join("dev")).unwrap();
        let links = [
            ("x", "/dev"),
            ("y", "/"),
            ("bin", "usr/bin"),
            ("var", "run/../run"),
            ("out", "../../../etc"),
            ("none", "/no/such/v"),
            ("run/up", ".."),
            ("loop", "loop"),
            ("dev/shm", "/run/shm"),
        ];
        links.iter().for_each(|(from, to)| std::os::unix::fs::symlink(to, root.join(from)).unwrap());
        let settled = |path: &str| {
            let mount = Mount { destination: path.to_owned(), ..Mount::default() };
            let mut spec = ContainerSpec { rootfs: root.clone(), mounts: vec![mount], ..ContainerSpec::default() };
            settle(&mut spec).map(|()| spec.mounts.remove(0).destination)
        };
        for (path, place) in [
            ("/dev/../dev", "/dev"),
            ("/x", "/dev"),
            ("/x/pts/", "/dev/pts"),
            ("/dev/shm", "/dev/shm"),
            ("//usr/./bin", "/usr/bin"),
            ("/bin", "/usr/bin"),
            ("/var/here", "/run/here"),
            ("/out/passwd", "/etc/passwd"),
            ("/none/deeper", "/no/such/v/deeper"),
            ("/run/up/run/up/x", "/dev"),
            ("/not/../there/yet", "/there/yet"),
            ("/../../a", "/a"),
            ("data", "/data"),
        ] {
            assert_eq!(settled(path).as_deref(), Ok(place), "{path}");
        }
        for path in ["/", "", "/bin/../..", "/y", "/y/usr/..", "/run/up", "/../"] {
            assert!(settled(path).unwrap_err().contains("the container's root"), "{path}");
        }
        assert!(settled("/loop/a").unwrap_err().contains("ELOOP"));
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn links_are_refused() {
        let root = std::env::temp_dir().join(format!("pikelet-places-{}", std::process::id()));
        std::fs::create_dir_all(root.join("dev/pts")).unwrap();
        assert_eq!(check(&root), Ok(()));
        // what is below is covered by what is mounted on /dev
        std::os::unix::fs::symlink("/run/shm", root.join("dev/shm")).unwrap();
        assert_eq!(check(&root), Ok(()));
        std::fs::remove_dir_all(root.join("dev")).unwrap();
        std::os::unix::fs::symlink("tmp", root.join("dev")).unwrap();
        assert!(check(&root).unwrap_err().contains("/dev of the image is a link"));
        std::fs::remove_file(root.join("dev")).unwrap();
        std::fs::write(root.join("proc"), "").unwrap();
        assert!(check(&root).unwrap_err().contains("/proc of the image"));
        std::fs::remove_dir_all(&root).unwrap();
    }
}
