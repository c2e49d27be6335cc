//! Writes a set of files so that a reader sees all of the old or all of the new.
//!
//! The files live in a timestamped directory, `..data` links to it, and each name a container sees links through
//! `..data`; renaming a new link over `..data` changes all at once.
//!
//! All is done by descriptor and through no link: who can write to a volume must not make the agent write elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Component, Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use crate::files::{self, open_beneath};

/// One file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Root where nobody is named.
    pub owner: Option<u32>,
}

/// Files by their relative path.
pub(super) type Payload = BTreeMap<String, Entry>;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Makes `dir` hold exactly `payload`; returns whether anything had to be written. Files belong to `group` if given.
pub(super) fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    for path in payload.keys() {
        check_path(path)?;
    }
    let group_bits = if group.is_some() { 0o440 } else { 0 };
    let root = File::from(open(
        dir,
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?);
    // a name in the volume, whoever made the link
    let current = readlinkat(&root, DATA).ok().map(PathBuf::from);
    let current = current.filter(|name| name.components().count() == 1 && name.file_name().is_some());
    let changed = match &current {
        Some(current) => !holds(&root, current, payload, group_bits, group)?,
        None => true,
    };
    let mut keep = current.clone();
    if changed {
        let name = fresh_name();
        if let Err(e) = fill(&root, &name, payload, group_bits, group).and_then(|()| switch(&root, &name)) {
            // The next write removes what cannot be removed now; why this one failed matters more.
            let _ = files::remove_tree(&dir.join(&name));
            return Err(e);
        }
        keep = Some(name.into());
    }
    link_names(dir, &root, payload)?;
    remove_stale(dir, &root, payload, keep.as_deref())?;
    Ok(changed)
}

fn check_path(path: &str) -> io::Result<()> {
    let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if path.is_empty() || !plain || path.starts_with("..") || path.len() > 4096 {
        let message = format!("invalid path {path:?}: must be relative, without \"..\" and not start with \"..\"");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(())
}

fn fresh_name() -> String {
    let now = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    format!("{now}.{:010}", rand::random::<u32>())
}

/// Whether the directory `at` of the volume holds exactly these files.
fn holds(root: &File, at: &Path, payload: &Payload, group_bits: u32, group: Option<u32>) -> io::Result<bool> {
    let mut found = BTreeSet::new();
    let deepest = payload.keys().map(|path| path.matches('/').count()).max().unwrap_or_default();
    if !list(root, at, "", deepest, &mut found)? || !found.iter().eq(payload.keys()) {
        return Ok(false);
    }
    for (path, entry) in payload {
        // never waits, should it be a FIFO
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
        let Ok(file) = open_beneath(root.as_fd(), &at.join(path), flags).map(File::from) else { return Ok(false) };
        let meta = file.metadata()?;
        let owned = group.is_none_or(|g| meta.gid() == g) && meta.uid() == entry.owner.unwrap_or(meta.uid());
        let alike = meta.is_file() && meta.len() == entry.data.len() as u64;
        if meta.mode() & 0o7777 != entry.mode | group_bits || !owned || !alike {
            return Ok(false);
        }
        let mut data = Vec::with_capacity(entry.data.len());
        file.take(meta.len() + 1).read_to_end(&mut data)?;
        if data != entry.data {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Finds the files below a directory; false if it is none, or if there are more folders within each other than `deepest`.
fn list(root: &File, at: &Path, prefix: &str, deepest: usize, found: &mut BTreeSet<String>) -> io::Result<bool> {
    let opened = match open_beneath(root.as_fd(), at, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => return Ok(false),
        other => other?,
    };
    for entry in Dir::from_fd(opened)?.iter() {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        if matches!(name.as_ref(), "." | "..") {
            continue;
        }
        let path = format!("{prefix}{name}");
        if path.matches('/').count() > deepest {
            return Ok(false);
        }
        if entry.file_type() != Some(Type::Directory) {
            found.insert(path);
        } else if !list(root, &at.join(name.as_ref()), &format!("{path}/"), deepest, found)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn fill(root: &File, name: &str, payload: &Payload, group_bits: u32, group: Option<u32>) -> io::Result<()> {
    let fresh = make_dir(root, Path::new(name), group)?;
    for (path, entry) in payload {
        let path = Path::new(path);
        let mut at = PathBuf::new();
        let mut parent = fresh.try_clone()?;
        for part in path.parent().into_iter().flat_map(Path::components) {
            at.push(part);
            let opened = open_beneath(fresh.as_fd(), &at, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
            parent = match opened {
                Err(Errno::ENOENT) => make_dir(&parent, Path::new(part.as_os_str()), group)?,
                other => File::from(other?),
            };
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = path.file_name().unwrap_or_default();
        let mut file = File::from(openat(&parent, file, flags, Mode::from_bits_truncate(0o600))?);
        file.write_all(&entry.data)?;
        if group.is_some() || entry.owner.is_some() {
            fchown(&file, entry.owner, group)?;
        }
        file.set_permissions(fs::Permissions::from_mode(entry.mode | group_bits))?;
    }
    Ok(())
}

/// Makes the directory `name`, which must not be there, and opens it.
fn make_dir(parent: &File, name: &Path, group: Option<u32>) -> io::Result<File> {
    mkdirat(parent, name, Mode::from_bits_truncate(0o700))?;
    let dir = File::from(open_beneath(parent.as_fd(), name, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?);
    if group.is_some() {
        fchown(&dir, None, group)?;
    }
    dir.set_permissions(fs::Permissions::from_mode(if group.is_some() { 0o2755 } else { 0o755 }))?;
    Ok(dir)
}

fn switch(root: &File, name: &str) -> io::Result<()> {
    remove_if_there(root, OsStr::new(DATA_NEW))?;
    symlinkat(name, root, DATA_NEW)?;
    Ok(renameat(root, DATA_NEW, root, DATA)?)
}

/// First components of the paths: what a container sees in the volume.
fn visible(payload: &Payload) -> BTreeSet<&str> {
    payload.keys().filter_map(|path| path.split('/').next()).collect()
}

fn link_names(dir: &Path, root: &File, payload: &Payload) -> io::Result<()> {
    for name in visible(payload) {
        let target = Path::new(DATA).join(name);
        match readlinkat(root, name) {
            Ok(found) if Path::new(&found) == target => continue,
            Err(Errno::ENOENT) => {}
            // another link, or what somebody else put there
            _ => remove(dir, root, OsStr::new(name))?,
        }
        symlinkat(&target, root, name)?;
    }
    Ok(())
}

/// Removes names that are no longer in the payload and every timestamped directory but the current one.
fn remove_stale(dir: &Path, root: &File, payload: &Payload, keep: Option<&Path>) -> io::Result<()> {
    let names = visible(payload);
    for item in fs::read_dir(dir)? {
        let name = item?.file_name();
        let text = name.to_string_lossy();
        if text == DATA || keep == Some(Path::new(&name)) || names.contains(text.as_ref()) {
            continue;
        }
        remove(dir, root, &name)?;
    }
    Ok(())
}

/// Removes what has that name in the volume.
fn remove(dir: &Path, root: &File, name: &OsStr) -> io::Result<()> {
    match unlinkat(root, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        // a volume's own path has no link that anybody else made
        Err(Errno::EISDIR) => files::remove_tree(&dir.join(name)),
        Err(e) => Err(e.into()),
    }
}

fn remove_if_there(root: &File, name: &OsStr) -> io::Result<()> {
    match unlinkat(root, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
