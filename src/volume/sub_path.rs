//! `subPath` of a volume mount.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// A `subPath` of a volume, made as a directory where missing; one that leads out of the volume is refused.
pub fn sub_path(volume: &Path, sub: &str) -> Result<PathBuf, String> {
    let sub_path = Path::new(sub);
    if !sub_path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("subPath {sub:?} must be relative and must not contain .."));
    }
    let target = volume.join(sub_path);
    if !target.exists() {
        fs::create_dir_all(&target).map_err(|e| format!("creating subPath {}: {e}", target.display()))?;
    }
    let (real, root) = (target.canonicalize(), volume.canonicalize());
    match (real, root) {
        (Ok(real), Ok(root)) if real.starts_with(&root) => Ok(real),
        _ => Err(format!("subPath {sub:?} leads out of its volume: refused")),
    }
}
