//! What a container in a user namespace sees of the host's files: mounts that show their owners as the namespace knows
//! them (ID-mapped). libcontainer makes none, so it is given ones that are there already, and are read-only already where
//! the volume is to be: what is changed in the container's own user namespace, it may change back, and write as the host's
//! root (`mount_namespaces(7)`).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};

use super::setup::context;
use crate::files;
use crate::mount_tree::{Tree, leave_namespace};
use crate::runtime::types::{ContainerSpec, Mount};

/// Where they are while a container is made, in a namespace nobody else sees. Every user may look there: a container's
/// root has no way through directories that only the host's root may enter.
const PLACE: &str = "/run/pikelet-mounts";

/// The way back from the mount namespace in which the container is to be made.
pub struct Staged {
    before: File,
}

impl Staged {
    /// Moves the shim into a mount namespace where all of the host that `spec` mounts is mapped for `user_namespace`, and
    /// changes `spec` to mount that. The namespace ends when the shim has left it, but for what the container has copied.
    pub fn new(spec: &mut ContainerSpec, user_namespace: &Path) -> Result<Self, String> {
        let users = File::open(user_namespace).map_err(context("opening the pod's user namespace"))?;
        files::dir(Path::new(PLACE), 0o700).map_err(|e| format!("creating {PLACE}: {e}"))?;
        let before = File::open("/proc/self/ns/mnt").map_err(context("opening the mount namespace"))?;
        // from here on an error leads back
        let staged = Self { before };
        leave_namespace().map_err(context("creating a mount namespace"))?;
        let options = Some("mode=0755,size=1m");
        let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("tmpfs"), PLACE, Some("tmpfs"), safe, options).map_err(context("mounting a tmpfs"))?;
        // its owners were mapped when it was mounted
        spec.rootfs = stage(&spec.rootfs, 0, None, |_| Ok(()))?;
        for (number, volume) in spec.mounts.iter_mut().enumerate() {
            let Mount { read_only, recursive_read_only, no_exec, .. } = *volume;
            let restrict = |tree: &Tree| tree.restrict(read_only, recursive_read_only, no_exec);
            volume.source = stage(&volume.source, number + 1, (!volume.mapped).then_some(&users), restrict)?;
        }
        Ok(staged)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Err(e) = setns(&self.before, CloneFlags::CLONE_NEWNS) {
            tracing::error!("leaving the mount namespace of a container: {e}");
        }
    }
}

fn stage(
    source: &Path,
    number: usize,
    users: Option<&File>,
    restrict: impl FnOnce(&Tree) -> io::Result<()>,
) -> Result<PathBuf, String> {
    let failed = |what: &str, e: &io::Error| format!("{what} {} for the pod's user namespace: {e}", source.display());
    let place = Path::new(PLACE).join(number.to_string());
    let directory = fs::metadata(source).map_err(|e| failed("looking at", &e))?.is_dir();
    let made = if directory { files::new_dir(&place, 0o755) } else { files::create_new(&place, 0o600).map(drop) };
    made.map_err(|e| failed("making a place to mount", &e))?;
    let tree = Tree::copy(source).map_err(|e| failed("copying the mount of", &e))?;
    if let Some(users) = users {
        tree.map_ids(users).map_err(|e| {
            let error = failed("mapping the owners of", &e);
            match e.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => format!(
                    "{error}; its file system has no ID-mapped mounts on this kernel (ext4 has them since Linux 5.12, \
                     tmpfs since 6.3, NFS has none): leave hostUsers: false out"
                ),
                _ => error,
            }
        })?;
    }
    restrict(&tree).map_err(|e| failed("restricting the mount of", &e))?;
    tree.attach(&place).map_err(|e| failed("mounting", &e))?;
    Ok(place)
}
