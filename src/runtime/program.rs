//! The program that shims run, by a descriptor that nobody can write through.
//!
//! Containers find it as `/proc/<pid>/exe` of what a shim has forked, and as a program of theirs when their own is a link
//! there. Whoever opens that to write while no process runs it any more would change what the host runs next
//! (CVE-2019-5736). So it runs from a read-only mount that is nowhere in the tree of files.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::mount_tree::Tree;

/// Lives as long as shims are started.
pub struct Program {
    /// As it is known outside, for messages.
    name: PathBuf,
    mount: Option<Tree>,
}

impl Program {
    /// The program at `path`, as it is now: a later upgrade changes nothing. Kernels before 5.12 have no such mounts; there
    /// its file is protected only while it runs.
    pub fn open(path: &Path) -> Self {
        let mount = Tree::copy(path).and_then(|tree| tree.protect().map(|()| tree));
        if let Err(e) = &mount {
            tracing::warn!("mounting {} read-only for shims: {e}; they run it from its own place", path.display());
        }
        Self { name: path.to_owned(), mount: mount.ok() }
    }

    /// The name to start it by.
    pub fn path(&self) -> PathBuf {
        match &self.mount {
            Some(mount) => format!("/proc/self/fd/{}", mount.as_raw_fd()).into(),
            None => self.name.clone(),
        }
    }

    /// The name to call it by.
    pub fn name(&self) -> &Path {
        &self.name
    }
}
