//! `fsGroup`: what a volume holds is given to a group, and new files in it belong to that group too.
//!
//! Whoever else writes to the volume can change names while this goes on. So each file is opened first, never through a
//! link, and then changed by what was opened; other mounts are left alone.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::unistd::{Gid, fchownat};

use crate::files::{self, Walk, open_beneath};

/// `fsGroupChangePolicy: OnRootMismatch`.
pub(super) fn only_on_mismatch(pod: &Pod) -> bool {
    let security = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    security.and_then(|s| s.fs_group_change_policy.as_deref()) == Some("OnRootMismatch")
}

/// Gives the volume `root` (opened with `O_PATH`) and all below it to `group`, unless that was asked for only where the
/// root does not have it yet.
pub(super) fn give(root: &File, group: u32, only_on_mismatch: bool) -> io::Result<()> {
    let meta = root.metadata()?;
    if only_on_mismatch && meta.gid() == group && meta.mode() & 0o2070 == 0o2070 {
        return Ok(());
    }
    if meta.is_dir() {
        let top = open_beneath(root.as_fd(), Path::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let mut walk = Walk::new(top)?;
        while let (Some(name), Some(folder)) = (walk.next_name().transpose()?, walk.folder()) {
            let path = Path::new(OsStr::from_bytes(name.to_bytes()));
            let failed = |e: Errno| match e {
                // gone meanwhile, become something else, or of another mount
                Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV => Ok(()),
                e => Err(io::Error::other(format!("{}: {}", path.display(), e.desc()))),
            };
            match open_beneath(folder, path, OFlag::O_PATH).map(File::from) {
                Ok(opened) if give_one(&opened, group)?.is_dir() => walk.enter(&name).or_else(failed)?,
                Ok(_) => {}
                Err(e) => failed(e)?,
            }
        }
    }
    // the root comes last: it says that all below is done
    give_one(root, group).map(drop)
}

/// One file or directory, opened with `O_PATH`; returns what it is. A link only changes its own group.
pub(super) fn give_one(file: &File, group: u32) -> io::Result<Metadata> {
    let meta = file.metadata()?;
    if meta.gid() != group {
        fchownat(file.as_fd(), "", None, Some(Gid::from_raw(group)), AtFlags::AT_EMPTY_PATH)?;
    }
    if meta.is_symlink() {
        return Ok(meta);
    }
    let bits = if meta.is_dir() { 0o2770 } else { 0o660 };
    // a change of the group takes the setgid bit away
    if meta.mode() & bits != bits || meta.gid() != group {
        let opened = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        files::set_mode(&opened, (meta.mode() & 0o7777) | bits)?;
    }
    Ok(meta)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::machine::folder::{Folder, growth};
    use crate::volume::local::open;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn links_and_other_mounts_stay_as_they_are() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("passed by: owners are root's to give");
            return;
        }
        let folder = Folder::new();
        let root = folder.path().to_owned();
        std::thread::spawn(move || {
            crate::mount_tree::shared_namespace();
            let (volume, other) = (root.join("volume"), root.join("other"));
            fs::create_dir_all(volume.join("a/b")).unwrap();
            fs::create_dir_all(volume.join("mounted")).unwrap();
            fs::create_dir_all(&other).unwrap();
            for file in [volume.join("a/b/file"), other.join("file")] {
                fs::write(&file, "").unwrap();
                fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            }
            symlink(other.join("file"), volume.join("a/link")).unwrap();
            symlink(&other, volume.join("folder")).unwrap();
            let flags = nix::mount::MsFlags::MS_BIND;
            nix::mount::mount(Some(&other), &volume.join("mounted"), None::<&str>, flags, None::<&str>).unwrap();
            give(&open(&volume).unwrap(), 2000, false).unwrap();
            let look = |path: &str| {
                let meta = fs::symlink_metadata(root.join(path)).unwrap();
                (meta.gid(), meta.mode() & 0o7777)
            };
            assert_eq!(look("volume/a/b/file"), (2000, 0o660));
            assert_eq!((look("volume/a/b").0, look("volume").0, look("volume/a/link").0), (2000, 2000, 2000));
            assert_eq!((look("other/file"), look("other").0), ((0, 0o600), 0));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn names_that_change_meanwhile_lead_nowhere_else() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("passed by: owners are root's to give");
            return;
        }
        let folder = Folder::new();
        let (volume, secret) = (folder.path().join("volume"), folder.path().join("secret"));
        fs::create_dir_all(&volume).unwrap();
        fs::write(&secret, "").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // as another pod with the same volume would
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = fs::write(volume.join("x"), "");
                    let _ = fs::remove_file(volume.join("x"));
                    let _ = symlink(&secret, volume.join("x"));
                    let _ = fs::remove_file(volume.join("x"));
                }
            });
            let opened = open(&volume).unwrap();
            for _ in 0..3000 {
                let _ = give(&opened, 2000, false);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let meta = fs::metadata(&secret).unwrap();
        assert_eq!((meta.gid(), meta.mode() & 0o777), (0, 0o600));
    }

    #[test]
    fn wide_volumes_take_no_memory() {
        let ours = nix::unistd::getegid().as_raw();
        let test = "volume::ownership::tests::wide_volumes_take_no_memory";
        let grown = growth(test, |volume| give(&open(volume).unwrap(), ours, false).unwrap());
        assert!(grown.is_none_or(|kib| kib < 256), "{grown:?} KiB");
    }
}
