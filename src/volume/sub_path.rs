//! `subPath` of a volume mount: part of a volume, found without leaving it.
//!
//! Whoever can write into the volume can put a link where the path leads between a look and a mount. So the path is
//! opened once, by the kernel's own rule that it stays beneath the volume (`openat2(2)`), and what was opened is bound
//! to a place nobody else can write to.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, fchmod, mkdirat};

use crate::files;
use crate::mount_tree::{Follow, bind, unbind};

/// Largest file [`read_beneath`] reads, in bytes.
const MAX_TEXT: u64 = 1 << 20;

/// Whether a path is relative and has no `..`.
pub fn stays_inside(path: &str) -> bool {
    Path::new(path).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
}

/// A part of a volume and where a container finds it, as [`sub_path`] takes them.
#[derive(Debug, Clone)]
pub struct Part {
    /// Where the volume is.
    pub volume: PathBuf,
    /// The path in it.
    pub sub: String,
    /// Where it is bound to.
    pub place: PathBuf,
    /// A path that is missing is made.
    pub create: bool,
    /// Which mounts follow.
    pub follow: Follow,
}

/// Binds `sub` of a volume to `place`; a path that is missing is made a directory with the volume's own mode if
/// `create` says so. One that leads out of the volume is refused.
pub fn sub_path(volume: &Path, sub: &str, place: &Path, create: bool, follow: Follow) -> Result<(), String> {
    if !stays_inside(sub) {
        return Err(format!("subPath {sub:?} must be relative and must not contain .."));
    }
    let failed = |what: &str, e: &dyn std::fmt::Display| format!("{what} subPath {sub:?} of {}: {e}", volume.display());
    let root = open_volume(volume).map_err(|e| failed("opening", &e))?;
    let path = Path::new(sub);
    let found = if create { open_or_make(&root, path) } else { open_beneath(&root, path) };
    let found = found.map_err(|e| match e {
        Errno::EXDEV | Errno::ELOOP => format!("subPath {sub:?} leads out of its volume: refused"),
        e => failed("opening", &e),
    })?;
    let found = File::from(found);
    let is_dir = found.metadata().map_err(|e| failed("looking at", &e))?.is_dir();
    make_place(place, is_dir).map_err(|e| format!("creating {}: {e}", place.display()))?;
    bind(found.as_fd(), place, false, follow).map_err(|e| failed("binding", &e))
}

/// Not to read: one that is a FIFO would never be opened.
fn open_volume(volume: &Path) -> std::io::Result<File> {
    fs::OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(volume)
}

/// The text of a file of a volume. Links are followed as if the volume were all there is.
pub fn read_beneath(volume: &Path, path: &str) -> Result<String, String> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let root = open_volume(volume).map_err(|e| e.to_string())?;
    let place = File::from(openat2(&root, path, how).map_err(|e| e.to_string())?);
    let meta = place.metadata().map_err(|e| e.to_string())?;
    if !meta.is_file() || meta.len() > MAX_TEXT {
        return Err(format!("only a file of at most {MAX_TEXT} bytes is read"));
    }
    let mut text = String::new();
    files::reopen_regular(&place)
        .map_err(|e| e.to_string())?
        .take(MAX_TEXT)
        .read_to_string(&mut text)
        .map_err(|e| e.to_string())?;
    Ok(text)
}

/// Removes what [`sub_path`] has bound below `dir`, and the directory; one that is not there is done.
pub fn release_sub_paths(dir: &Path) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("removing {}: {e}", dir.display());
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|e| failed(&e))?,
    };
    for entry in entries {
        let path = entry.map_err(|e| failed(&e))?.path();
        match unbind(&path) {
            // made and not yet bound
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(e) => return Err(failed(&e)),
        }
        let removed = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
        removed.map_err(|e| failed(&e))?;
    }
    fs::remove_dir(dir).map_err(|e| failed(&e))
}

fn open_beneath(root: &File, path: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

/// Opens the path; components that are missing are made.
fn open_or_make(root: &File, path: &Path) -> nix::Result<OwnedFd> {
    match open_beneath(root, path) {
        Err(Errno::ENOENT) => {}
        other => return other,
    }
    let mode = Mode::from_bits_truncate(root.metadata().map_or(0o750, |m| m.mode()) & 0o7777);
    let mut at = root.try_clone().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or_default()))?;
    let mut reached = PathBuf::new();
    for part in path.components().filter(|c| matches!(c, Component::Normal(_))) {
        reached.push(part);
        let next = match open_beneath(root, &reached) {
            Err(Errno::ENOENT) => {
                match mkdirat(&at, part.as_os_str(), mode) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(e) => return Err(e),
                }
                let made = open_dir(root, &reached)?;
                // the mode as it is, whatever the agent's umask
                fchmod(&made, mode)?;
                made
            }
            other => other?,
        };
        at = File::from(next);
    }
    Ok(at.into())
}

fn open_dir(root: &File, path: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

fn make_place(place: &Path, is_dir: bool) -> std::io::Result<()> {
    if let Some(parent) = place.parent() {
        files::dir_kept(parent, 0o700)?;
    }
    if is_dir { files::new_dir(place, 0o755) } else { files::create_new(place, 0o600).map(drop) }
}
