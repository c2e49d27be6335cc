//! An image's layers and a fresh write layer as one root file system (overlayfs).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount as mount_fs, umount2};

use super::types::ImageError;

fn io_error(what: String) -> impl FnOnce(io::Error) -> ImageError {
    move |source| ImageError::Io { what, source }
}

/// Mounts `layers` (lowest first) under a fresh write layer in `dir` (`upper`, `work`, `rootfs`); returns `dir/rootfs`.
pub fn mount(layers: &[PathBuf], dir: &Path) -> Result<PathBuf, ImageError> {
    let (upper, work, rootfs, empty) = (dir.join("upper"), dir.join("work"), dir.join("rootfs"), dir.join("empty"));
    for path in [&upper, &work, &rootfs, &empty] {
        fs::create_dir_all(path).map_err(io_error(format!("creating {}", path.display())))?;
    }
    let mut lower: Vec<String> = layers.iter().rev().map(|l| l.display().to_string()).collect();
    if lower.is_empty() {
        lower.push(empty.display().to_string());
    }
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
    mount_fs(Some("overlay"), &rootfs, Some("overlay"), MsFlags::empty(), Some(options.as_str())).map_err(|e| {
        io_error(format!("mounting {} layers as overlayfs on {}", layers.len(), rootfs.display()))(e.into())
    })?;
    Ok(rootfs)
}

/// Unmounts and removes `dir`. Safe to repeat.
pub fn unmount(dir: &Path) -> Result<(), ImageError> {
    let rootfs = dir.join("rootfs");
    match umount2(&rootfs, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => return Err(io_error(format!("unmounting {}", rootfs.display()))(error.into())),
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error(format!("removing {}", dir.display()))(error))
        }
        _ => Ok(()),
    }
}
