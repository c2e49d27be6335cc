//! An image's layers and a fresh write layer as one root file system (overlayfs).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount as mount_fs, umount2};
use nix::sched::{CloneFlags, unshare};

use super::types::ImageError;
use crate::files::{self, Durability};
use crate::mount_tree::{Tree, leave_namespace};

/// Bytes of options mount(2) takes, with the byte that ends them: a page of the smallest size.
const OPTIONS: usize = 4096;
/// Folder of the links with short names.
const LOWER: &str = "lower";

fn io_error(what: String) -> impl FnOnce(io::Error) -> ImageError {
    move |source| ImageError::Io { what, source }
}

/// The users a root file system is for, where they are not the host's.
pub struct Users {
    /// A file that is their namespace.
    pub namespace: PathBuf,
    /// The host's id of their root.
    pub root: u32,
}

/// Mounts `layers` (lowest first) under a fresh write layer in `dir` (`upper`, `work`, `rootfs`); returns `dir/rootfs`.
pub fn mount(layers: &[PathBuf], dir: &Path, users: Option<&Users>) -> Result<PathBuf, ImageError> {
    let (upper, work, rootfs, empty) = (dir.join("upper"), dir.join("work"), dir.join("rootfs"), dir.join("empty"));
    for path in [&upper, &work, &rootfs, &empty] {
        files::dir_kept(path, 0o755).map_err(io_error(format!("creating {}", path.display())))?;
    }
    let mut lower: Vec<String> = layers.iter().rev().map(|l| l.display().to_string()).collect();
    if lower.is_empty() {
        lower.push(empty.display().to_string());
    }
    let root = users.map_or(0, |users| users.root);
    super::implied::settle(layers, &upper, root)
        .map_err(io_error(format!("writing folders that a layer has without saying how to {}", upper.display())))?;
    let write_layer = format!("upperdir={},workdir={}", upper.display(), work.display());
    let options = format!("lowerdir={},{write_layer}", lower.join(":"));
    let mount = || {
        if options.len() < OPTIONS {
            overlay(&rootfs, &options).map_err(io::Error::from)
        } else {
            mount_many(&lower, &dir.join(LOWER), &rootfs, &write_layer)
        }
    };
    let mounted = match users {
        None => mount(),
        Some(users) => {
            // what deleted files leave behind is always of the host's root, so the write layer cannot be mapped as well
            let owned = [&upper, &work].into_iter().try_for_each(|d| chown(d, Some(users.root), Some(users.root)));
            owned.and_then(|()| mount_mapped(layers, &rootfs, users, mount))
        }
    };
    mounted.map_err(io_error(format!("mounting {} layers as overlayfs on {}", layers.len(), rootfs.display())))?;
    Ok(rootfs)
}

fn overlay(rootfs: &Path, options: &str) -> nix::Result<()> {
    mount_fs(Some("overlay"), rootfs, Some("overlay"), MsFlags::empty(), Some(options))
}

/// Mounts by links with short names in `links`, highest first: the paths themselves would be too long together.
fn mount_many(lower: &[String], links: &Path, rootfs: &Path, write_layer: &str) -> io::Result<()> {
    // of an earlier mount that was not taken down
    files::remove_tree(links)?;
    files::new_dir(links, 0o755)?;
    for (number, layer) in lower.iter().enumerate() {
        symlink(layer, links.join(number.to_string()))?;
    }
    let names: Vec<String> = (0..lower.len()).map(|number| number.to_string()).collect();
    let options = format!("lowerdir={},{write_layer}", names.join(":"));
    // with a working directory of its own, which the names are seen from
    std::thread::scope(|scope| {
        let mounting = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS)?;
            std::env::set_current_dir(links)?;
            overlay(rootfs, &options).map_err(io::Error::from)
        });
        mounting.join().unwrap_or_else(|_| Err(io::Error::other("thread ended")))
    })
}

/// Mounts where the layers have the owners that `users` are: in a namespace of a thread, from where only the mount comes
/// out. An overlay keeps what it stands on.
fn mount_mapped(
    layers: &[PathBuf],
    rootfs: &Path,
    users: &Users,
    mount: impl Fn() -> io::Result<()> + Sync,
) -> io::Result<()> {
    let what = |what: &'static str| move |e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"));
    let namespace = File::open(&users.namespace).map_err(what("opening the pod's user namespace"))?;
    let map = |layer: &PathBuf| {
        let tree = Tree::copy(layer)?;
        tree.map_ids(&namespace)?;
        tree.attach(layer)
    };
    let unknown = "with mapped owners, which takes Linux 5.19 (leave hostUsers: false out)";
    let tree = std::thread::scope(|scope| {
        let mounting = scope.spawn(|| {
            leave_namespace()?;
            layers.iter().try_for_each(map).map_err(what("mapping the owners of layers"))?;
            mount().map_err(what(unknown))?;
            Tree::copy(rootfs)
        });
        mounting.join().unwrap_or_else(|_| Err(io::Error::other("thread ended")))
    });
    tree?.attach(rootfs)
}

/// The layers behind the short names of a mount, given by its write layer's directory.
pub fn behind(upper: &Path, name: &str) -> Option<PathBuf> {
    fs::read_link(upper.parent()?.join(LOWER).join(name)).ok()
}

/// Unmounts and removes `dir`. Safe to repeat.
pub fn unmount(dir: &Path) -> Result<(), ImageError> {
    let rootfs = dir.join("rootfs");
    match umount2(&rootfs, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => return Err(io_error(format!("unmounting {}", rootfs.display()))(error.into())),
    }
    files::remove_tree(dir).map_err(io_error(format!("removing {}", dir.display())))
}

/// Whether containers can have their root file systems below `dir`, which is created and removed again: mounts a layer
/// where nobody else sees it, writes to it and deletes of it. Only root can.
pub fn probe(dir: &Path) -> Result<(), ImageError> {
    let folder = dir.to_owned();
    let attempt = std::thread::spawn(move || {
        // the mount goes with this thread
        let private = unshare(CloneFlags::CLONE_NEWNS).and_then(|()| {
            mount_fs(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        });
        private.map_err(|e| io_error("making a mount namespace".to_owned())(e.into()))?;
        let layer = folder.join("layer");
        let write = |path: PathBuf| {
            files::write(&path, b"x", 0o600, Durability::Volatile)
                .map_err(io_error(format!("writing {}", path.display())))
        };
        files::dir_kept(&layer, 0o755).map_err(io_error(format!("creating {}", layer.display())))?;
        write(layer.join("old"))?;
        let rootfs = mount(&[layer], &folder, None)?;
        write(rootfs.join("new"))?;
        let old = rootfs.join("old");
        let deleted = fs::remove_file(&old).map_err(io_error(format!("deleting {}", old.display())));
        deleted.and(unmount(&folder))
    });
    let tried = attempt.join().unwrap_or_else(|_| Err(io_error("trying".to_owned())(io::Error::other("thread ended"))));
    // the mount may have failed before there was anything to unmount
    tried.and(unmount(dir)).inspect_err(|_| drop(files::remove_tree(dir)))
}
