//! Writes a set of files so that a reader sees all of the old or all of the new.
//!
//! The files live in a timestamped directory, `..data` links to it, and each name a container sees links through
//! `..data`; renaming a new link over `..data` changes all at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path};

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
    let current = fs::read_link(dir.join(DATA)).ok();
    let changed = match &current {
        Some(current) => !holds(&dir.join(current), payload, group_bits, group)?,
        None => true,
    };
    let mut keep = current.clone();
    if changed {
        let name = fresh_name();
        let fresh = dir.join(&name);
        if let Err(e) = fill(&fresh, payload, group_bits, group).and_then(|()| switch(dir, &name)) {
            // The next write removes what cannot be removed now; why this one failed matters more.
            let _ = fs::remove_dir_all(&fresh);
            return Err(e);
        }
        keep = Some(name.into());
    }
    link_names(dir, payload)?;
    remove_stale(dir, payload, keep.as_deref())?;
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

/// Whether the directory holds exactly these files.
fn holds(dir: &Path, payload: &Payload, group_bits: u32, group: Option<u32>) -> io::Result<bool> {
    let mut found = BTreeSet::new();
    if !dir.is_dir() {
        return Ok(false);
    }
    list(dir, "", &mut found)?;
    if !found.iter().eq(payload.keys()) {
        return Ok(false);
    }
    for (path, entry) in payload {
        let file = dir.join(path);
        let meta = fs::symlink_metadata(&file)?;
        let owned = group.is_none_or(|g| meta.gid() == g) && meta.uid() == entry.owner.unwrap_or(meta.uid());
        if meta.mode() & 0o7777 != entry.mode | group_bits || !owned || fs::read(&file)? != entry.data {
            return Ok(false);
        }
    }
    Ok(true)
}

fn list(dir: &Path, prefix: &str, found: &mut BTreeSet<String>) -> io::Result<()> {
    for item in fs::read_dir(dir)? {
        let item = item?;
        let path = format!("{prefix}{}", item.file_name().to_string_lossy());
        if item.file_type()?.is_dir() {
            list(&item.path(), &format!("{path}/"), found)?;
        } else {
            found.insert(path);
        }
    }
    Ok(())
}

fn fill(dir: &Path, payload: &Payload, group_bits: u32, group: Option<u32>) -> io::Result<()> {
    make_dir(dir, group)?;
    for (path, entry) in payload {
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        let mut at = dir.to_owned();
        for part in &parts[..parts.len() - 1] {
            at.push(part);
            if !at.is_dir() {
                make_dir(&at, group)?;
            }
        }
        let file_path = dir.join(path);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file_path)?;
        file.write_all(&entry.data)?;
        if group.is_some() || entry.owner.is_some() {
            chown(&file_path, entry.owner, group)?;
        }
        file.set_permissions(fs::Permissions::from_mode(entry.mode | group_bits))?;
    }
    Ok(())
}

fn make_dir(dir: &Path, group: Option<u32>) -> io::Result<()> {
    fs::create_dir(dir)?;
    let mode = if group.is_some() { 0o2755 } else { 0o755 };
    if group.is_some() {
        chown(dir, None, group)?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
}

fn switch(dir: &Path, name: &str) -> io::Result<()> {
    let link = dir.join(DATA_NEW);
    remove_if_there(&link)?;
    symlink(name, &link)?;
    fs::rename(&link, dir.join(DATA))
}

/// First components of the paths: what a container sees in the volume.
fn visible(payload: &Payload) -> BTreeSet<&str> {
    payload.keys().filter_map(|path| path.split('/').next()).collect()
}

fn link_names(dir: &Path, payload: &Payload) -> io::Result<()> {
    for name in visible(payload) {
        let (link, target) = (dir.join(name), Path::new(DATA).join(name));
        match fs::read_link(&link) {
            Ok(found) if found == target => continue,
            Ok(_) => fs::remove_file(&link)?,
            Err(_) => {}
        }
        symlink(target, link)?;
    }
    Ok(())
}

/// Removes names that are no longer in the payload and every timestamped directory but the current one.
fn remove_stale(dir: &Path, payload: &Payload, keep: Option<&Path>) -> io::Result<()> {
    let names = visible(payload);
    for item in fs::read_dir(dir)? {
        let item = item?;
        let name = item.file_name();
        let text = name.to_string_lossy();
        if text == DATA || keep == Some(Path::new(&name)) || names.contains(text.as_ref()) {
            continue;
        }
        if item.file_type()?.is_dir() {
            fs::remove_dir_all(item.path())?;
        } else {
            remove_if_there(&item.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
