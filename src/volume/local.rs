//! emptyDir and hostPath.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource};
use nix::fcntl::OFlag;

use super::{fields, mounts, ownership};

use crate::files;

/// A directory on disk, or a tmpfs for medium `Memory` bounded by its size limit or else the pod's memory limit.
pub(super) fn empty_dir(
    dir: &Path,
    source: &EmptyDirVolumeSource,
    memory_limit: Option<u64>,
    huge_pages: &BTreeSet<String>,
    group: Option<u32>,
) -> Result<PathBuf, String> {
    mounts::make_dir(dir, 0o777)?;
    match source.medium.as_deref().unwrap_or_default() {
        "" => {}
        "Memory" => {
            let wanted = source.size_limit.as_ref().map(|q| fields::bytes(&q.0)).transpose()?;
            let options = match wanted.into_iter().chain(memory_limit).filter(|n| *n > 0).min() {
                Some(size) => format!("mode=1777,size={size}"),
                None => "mode=1777".to_owned(),
            };
            mounts::mount_tmpfs(dir, &options)?;
        }
        medium if medium.starts_with("HugePages") => mounts::mount_huge(dir, huge_page_size(medium, huge_pages)?)?,
        other => {
            return Err(format!("emptyDir medium {other:?} is not supported; use \"\", \"Memory\" or \"HugePages\""));
        }
    }
    if let Some(group) = group {
        let given = ownership::give_one(&open(dir)?, group);
        given.map_err(|e| format!("cannot give {} to group {group}: {e}", dir.display()))?;
    }
    Ok(dir.to_owned())
}

/// The page size a medium names, in bytes, of those the pod asks for; without a name there must be one only.
fn huge_page_size(medium: &str, asked: &BTreeSet<String>) -> Result<u64, String> {
    let named = medium.strip_prefix("HugePages").and_then(|rest| rest.strip_prefix('-'));
    let size = match (named, asked.len()) {
        (Some(size), _) if asked.contains(size) => size,
        (Some(size), _) => {
            return Err(format!("medium {medium}: no container of the pod asks for hugepages-{size}"));
        }
        (None, 1) => asked.first().map(String::as_str).unwrap_or_default(),
        (None, 0) => return Err(format!("medium {medium}: no container of the pod asks for huge pages")),
        (None, _) => {
            return Err(format!(
                "medium {medium}: the pod asks for several page sizes; say which, such as HugePages-2Mi"
            ));
        }
    };
    fields::bytes(size)
}

/// What a volume's path names, to show it elsewhere.
pub(super) fn open(path: &Path) -> Result<File, String> {
    let opened = fs::OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(path);
    opened.map_err(|e| format!("opening {}: {e}", path.display()))
}

/// Checks the path against its type, creating what the type says may be created.
pub(super) fn host_path(source: &HostPathVolumeSource) -> Result<PathBuf, String> {
    let path = Path::new(&source.path);
    if !path.is_absolute() || path.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(format!("hostPath {} must be absolute and without \"..\"", source.path));
    }
    let kind = source.type_.as_deref().unwrap_or_default();
    let found = match fs::metadata(path) {
        Ok(meta) => Some(meta.file_type()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(format!("hostPath type check failed: cannot look at {}: {e}", source.path)),
    };
    let failed = |what: &str| Err(format!("hostPath type check failed: {} is not {what}", source.path));
    let created = |result: io::Result<()>| {
        result.map(|()| path.to_owned()).map_err(|e| format!("cannot create hostPath {}: {e}", source.path))
    };
    let fits = |fits: bool, what: &str| if fits { Ok(path.to_owned()) } else { failed(what) };
    match kind {
        "" if found.is_some() => Ok(path.to_owned()),
        "DirectoryOrCreate" | "" if found.is_none() => created(files::dir_kept(path, 0o755)),
        "DirectoryOrCreate" | "Directory" => fits(found.is_some_and(|f| f.is_dir()), "a directory"),
        "FileOrCreate" if found.is_none() => created(files::create_new(path, 0o644).map(drop)),
        "FileOrCreate" | "File" => fits(found.is_some_and(|f| f.is_file()), "a file"),
        "Socket" => fits(found.is_some_and(|f| f.is_socket()), "a socket file"),
        "CharDevice" => fits(found.is_some_and(|f| f.is_char_device()), "a character device"),
        "BlockDevice" => fits(found.is_some_and(|f| f.is_block_device()), "a block device"),
        other => Err(format!("hostPath type {other:?} is not a valid volume type")),
    }
}
