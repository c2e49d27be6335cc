//! hostPath: the checks of its types (Kubernetes `HostPathType`).

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Checks (and for the `OrCreate` types makes) the path.
pub fn check(path: &Path, kind: &str) -> Result<PathBuf, String> {
    let found = fs::metadata(path).ok().map(|m| m.file_type());
    let show = path.display();
    let failed = |what: &str| Err(format!("hostPath type check failed: {show} is not {what}"));
    match (kind, found) {
        ("", _) => {
            // as kubelet does: a path that is missing becomes a directory
            if found.is_none() {
                fs::create_dir_all(path).map_err(|e| format!("creating hostPath {show}: {e}"))?;
            }
        }
        ("DirectoryOrCreate", None) => {
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
            made.map_err(|e| format!("creating hostPath {show}: {e}"))?;
        }
        ("FileOrCreate", None) => {
            let made = File::options().write(true).create_new(true).mode(0o644).open(path);
            made.map_err(|e| format!("creating hostPath {show}: {e}"))?;
        }
        ("Directory" | "DirectoryOrCreate", t) if !t.is_some_and(|t| t.is_dir()) => return failed("a directory"),
        ("File" | "FileOrCreate", t) if !t.is_some_and(|t| t.is_file()) => return failed("a file"),
        ("Socket", t) if !t.is_some_and(|t| t.is_socket()) => return failed("a socket file"),
        ("CharDevice", t) if !t.is_some_and(|t| t.is_char_device()) => return failed("a character device"),
        ("BlockDevice", t) if !t.is_some_and(|t| t.is_block_device()) => return failed("a block device"),
        _ => {}
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked() {
        let dir = std::env::temp_dir().join(format!("pikelet-hostpath-{}", std::process::id()));
        let missing = dir.join("x");
        let error = check(&missing, "Directory").unwrap_err();
        assert!(error.contains("is not a directory"), "{error}");
        assert!(check(&missing, "DirectoryOrCreate").is_ok() && missing.is_dir());
        assert!(check(&missing, "File").is_err());
        assert!(check(Path::new("/dev/null"), "CharDevice").is_ok());
        fs::remove_dir_all(dir).unwrap();
    }
}
