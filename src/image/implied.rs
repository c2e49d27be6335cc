//! Folders that a layer does not list, though it has something in them: what the layers below say of them counts.
//!
//! Layers are unpacked once for all images, so what is below is known only when they are mounted together. Overlayfs shows
//! a folder as the highest layer has it; what is right then is put into the write layer, above all of them.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use super::volumes::attributes;
use super::xattr;
use crate::files::{self, Durability};

/// The file of a layer that lists them, each with a NUL behind it.
const LIST: &str = "implied";

/// Keeps the list of a layer in its folder `dir`.
pub fn write(dir: &Path, implied: &BTreeSet<PathBuf>) -> io::Result<()> {
    if implied.is_empty() {
        return Ok(());
    }
    let list: Vec<u8> = implied.iter().flat_map(|path| [path.as_os_str().as_bytes(), b"\0"].concat()).collect();
    files::write(&dir.join(LIST), &list, 0o600, Durability::Volatile)
}

fn read(dir: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let list = match fs::read(dir.join(LIST)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        list => list?,
    };
    let paths = list.split(|b| *b == 0).filter(|path| !path.is_empty());
    Ok(paths.map(|path| PathBuf::from(OsStr::from_bytes(path))).collect())
}

/// What a layer says of a path.
enum Said {
    /// Nothing, and what is below shows.
    Nothing,
    /// That there is such a folder; further up, what is below is hidden if the flag is true.
    Folder(Metadata, bool),
    /// That nothing of what is below shows.
    Hidden,
}

struct Layer<'a> {
    diff: &'a Path,
    implied: BTreeSet<PathBuf>,
}

impl Layer<'_> {
    fn says(&self, path: &Path) -> io::Result<Said> {
        let mut place = self.diff.to_owned();
        let mut opaque = false;
        let mut found = None;
        for part in path {
            place.push(part);
            let meta = match fs::symlink_metadata(&place) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Ok(if opaque { Said::Hidden } else { Said::Nothing });
                }
                meta => meta?,
            };
            if !meta.is_dir() {
                return Ok(Said::Hidden);
            }
            opaque |= xattr::get(&place, "trusted.overlay.opaque".as_ref())?.is_some();
            found = Some(meta);
        }
        Ok(found.map_or(Said::Nothing, |meta| Said::Folder(meta, opaque)))
    }
}

/// Puts into `upper` the folders that the highest layer which has them only implies, as the highest that lists them has
/// them. `layers` are the folders of files, lowest first; `root` is added to owners: the id of the users' root.
pub fn settle(layers: &[PathBuf], upper: &Path, root: u32) -> io::Result<()> {
    let mut stack = Vec::new();
    for diff in layers.iter().rev() {
        let implied = diff.parent().map_or_else(|| Ok(BTreeSet::new()), read)?;
        stack.push(Layer { diff, implied });
    }
    // the lowest layer has nothing below it
    let all: BTreeSet<&PathBuf> = stack.iter().take(layers.len().saturating_sub(1)).flat_map(|l| &l.implied).collect();
    let mut known: HashMap<&Path, Option<(PathBuf, Metadata)>> = HashMap::new();
    let mut wrong: BTreeSet<&Path> = BTreeSet::new();
    for path in all {
        for folder in path.ancestors().filter(|folder| !folder.as_os_str().is_empty()) {
            if !known.contains_key(folder) {
                known.insert(folder, effective(&stack, folder)?);
            }
        }
        let (Some(shown), Some(Some(right))) = (shown(&stack, path)?, known.get(path.as_path())) else { continue };
        if differs(&shown, right)? {
            wrong.extend(path.ancestors().filter(|folder| !folder.as_os_str().is_empty()));
        }
    }
    let mut times = Vec::new();
    // those above come first
    for folder in wrong {
        let Some(Some((from, meta))) = known.get(folder) else { continue };
        let to = upper.join(folder);
        files::dir(&to, 0o755)?;
        attributes(from, &to)?;
        chown(&to, Some(meta.uid().saturating_add(root)), Some(meta.gid().saturating_add(root)))?;
        files::set_mode(&to, meta.mode() & 0o7777)?;
        times.push((to, meta.modified()?));
    }
    times.iter().rev().try_for_each(|(folder, time)| File::open(folder)?.set_modified(*time))
}

/// The folder as the layers alone would show it.
fn shown(stack: &[Layer<'_>], path: &Path) -> io::Result<Option<(PathBuf, Metadata)>> {
    for layer in stack {
        match layer.says(path)? {
            Said::Nothing => {}
            Said::Hidden => return Ok(None),
            Said::Folder(meta, _) => return Ok(Some((layer.diff.join(path), meta))),
        }
    }
    Ok(None)
}

/// The folder as the highest layer that lists it has it; where none does, as the highest that implies it.
fn effective(stack: &[Layer<'_>], path: &Path) -> io::Result<Option<(PathBuf, Metadata)>> {
    let mut implied = None;
    for layer in stack {
        match layer.says(path)? {
            Said::Nothing => {}
            Said::Hidden => break,
            Said::Folder(meta, opaque) => {
                let found = (layer.diff.join(path), meta);
                if !layer.implied.contains(path) {
                    return Ok(Some(found));
                }
                implied.get_or_insert(found);
                if opaque {
                    break;
                }
            }
        }
    }
    Ok(implied)
}

fn differs(one: &(PathBuf, Metadata), other: &(PathBuf, Metadata)) -> io::Result<bool> {
    let of = |meta: &Metadata| (meta.uid(), meta.gid(), meta.mode());
    if one.0 == other.0 {
        return Ok(false);
    }
    let shown = |place: &Path| -> io::Result<Vec<_>> {
        let mut names = xattr::list(place)?;
        names.retain(|name| !name.as_bytes().starts_with(b"trusted.overlay."));
        names.sort();
        names.into_iter().map(|name| Ok((xattr::get(place, &name)?, name))).collect()
    };
    Ok(of(&one.1) != of(&other.1) || shown(&one.0)? != shown(&other.0)?)
}
