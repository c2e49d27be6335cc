//! `subPath` of a volume mount.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Whether a path is relative and has no `..`.
pub fn stays_inside(path: &str) -> bool {
    Path::new(path).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
}

/// A `subPath` of a volume, made as a directory where missing; one that leads out of the volume is refused.
pub fn sub_path(volume: &Path, sub: &str) -> Result<PathBuf, String> {
    if !stays_inside(sub) {
        return Err(format!("subPath {sub:?} must be relative and must not contain .."));
    }
    let target = volume.join(sub);
    if !target.exists() {
        fs::create_dir_all(&target).map_err(|e| format!("creating subPath {}: {e}", target.display()))?;
    }
    let (real, root) = (target.canonicalize(), volume.canonicalize());
    match (real, root) {
        (Ok(real), Ok(root)) if real.starts_with(&root) => Ok(real),
        _ => Err(format!("subPath {sub:?} leads out of its volume: refused")),
    }
}
