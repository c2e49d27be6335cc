//! `fsGroup`: what a volume holds is given to a group, and new files in it belong to that group too.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown};
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

/// `fsGroupChangePolicy: OnRootMismatch`.
pub(super) fn only_on_mismatch(pod: &Pod) -> bool {
    let security = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    security.and_then(|s| s.fs_group_change_policy.as_deref()) == Some("OnRootMismatch")
}

/// Gives `root` and all below it to `group`, unless that was asked for only where the root does not have it yet.
pub(super) fn give(root: &Path, group: u32, only_on_mismatch: bool) -> Result<(), String> {
    let given = || -> io::Result<()> {
        let meta = fs::symlink_metadata(root)?;
        if only_on_mismatch && meta.gid() == group && meta.mode() & 0o2070 == 0o2070 {
            return Ok(());
        }
        give_below(root, group)?;
        // the root comes last: it says that all below is done
        give_one(root, &meta, group)
    };
    given().map_err(|e| format!("cannot give {} to group {group}: {e}", root.display()))
}

fn give_below(dir: &Path, group: u32) -> io::Result<()> {
    for item in fs::read_dir(dir)? {
        let path = item?.path();
        let meta = fs::symlink_metadata(&path)?;
        if meta.is_dir() {
            give_below(&path, group)?;
        }
        give_one(&path, &meta, group)?;
    }
    Ok(())
}

/// One file or directory. A link only changes its own group.
pub(super) fn give_one(path: &Path, meta: &fs::Metadata, group: u32) -> io::Result<()> {
    if meta.is_symlink() {
        return if meta.gid() == group { Ok(()) } else { lchown(path, None, Some(group)) };
    }
    let bits = if meta.is_dir() { 0o2770 } else { 0o660 };
    if meta.gid() != group {
        chown(path, None, Some(group))?;
    }
    // a change of the group takes the setgid bit away
    if meta.mode() & bits != bits || meta.gid() != group {
        fs::set_permissions(path, fs::Permissions::from_mode((meta.mode() & 0o7777) | bits))?;
    }
    Ok(())
}
