//! Folders that a layer does not list, though it has something in them: what the layers below say of them counts.
//!
//! Layers are unpacked once for all images, so what is below is known only when they are mounted together. Overlayfs shows
//! a folder as the highest layer has it; what is right then is put into the write layer, above all of them.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use tracing::warn;

use super::volumes::attributes;
use super::xattr;
use crate::files::{self, Durability};

/// The file of a layer that lists them, each with a NUL behind it.
const LIST: &str = "implied";

/// Bytes of the lists of all layers of an image that are read, and looks at files that are taken for them. Layers may be many,
/// deep, and imply much; of more than that the rest stays as the layers alone show it.
const MOST_LISTED: u64 = 4 << 20;
const MOST_LOOKS: u64 = 200_000;

/// Keeps the list of a layer in its folder `dir`.
pub fn write(dir: &Path, implied: &BTreeSet<PathBuf>) -> io::Result<()> {
    if implied.is_empty() {
        return Ok(());
    }
    let list: Vec<u8> = implied.iter().flat_map(|path| [path.as_os_str().as_bytes(), b"\0"].concat()).collect();
    files::write(&dir.join(LIST), &list, 0o600, Durability::Volatile)
}

fn read(dir: &Path, left: &mut u64) -> io::Result<BTreeSet<PathBuf>> {
    let mut file = match File::open(dir.join(LIST)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        file => file?,
    };
    let size = file.metadata()?.len();
    if size > *left {
        *left = 0;
        return Ok(BTreeSet::new());
    }
    *left -= size;
    let mut list = Vec::new();
    file.read_to_end(&mut list)?;
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
    /// Looks that are left for all layers.
    looks: &'a Cell<u64>,
}

impl Layer<'_> {
    fn says(&self, path: &Path) -> io::Result<Said> {
        let mut place = self.diff.to_owned();
        let mut opaque = false;
        let mut found = None;
        for part in path {
            let left = self.looks.get().checked_sub(1).ok_or(io::ErrorKind::QuotaExceeded)?;
            self.looks.set(left);
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
    let (mut stack, mut left, looks) = (Vec::new(), MOST_LISTED, Cell::new(MOST_LOOKS));
    for diff in layers.iter().rev() {
        let implied = diff.parent().map_or_else(|| Ok(BTreeSet::new()), |dir| read(dir, &mut left))?;
        stack.push(Layer { diff, implied, looks: &looks });
    }
    match settle_within(&stack, upper, root) {
        Err(e) if looks.get() == 0 && e.kind() == io::ErrorKind::QuotaExceeded => {
            warn!(upper = %upper.display(), "folders that layers only imply are too many: some stay as the layers show them");
            Ok(())
        }
        settled => settled,
    }
}

fn settle_within(stack: &[Layer<'_>], upper: &Path, root: u32) -> io::Result<()> {
    // the lowest layer has nothing below it
    let all: BTreeSet<&PathBuf> = stack.iter().take(stack.len().saturating_sub(1)).flat_map(|l| &l.implied).collect();
    let mut known: HashMap<&Path, Option<(PathBuf, Metadata)>> = HashMap::new();
    let mut wrong: BTreeSet<&Path> = BTreeSet::new();
    for path in all {
        for folder in path.ancestors().filter(|folder| !folder.as_os_str().is_empty()) {
            if !known.contains_key(folder) {
                known.insert(folder, effective(stack, folder)?);
            }
        }
        let (Some(shown), Some(Some(right))) = (shown(stack, path)?, known.get(path.as_path())) else { continue };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::folder::Folder;

    #[test]
    fn layers_that_imply_without_end_cost_no_more_than_others() {
        let folder = Folder::new();
        let (low, high, upper) = (folder.path().join("low"), folder.path().join("high"), folder.path().join("upper"));
        for dir in [&low.join("diff/a"), &high.join("diff/a"), &upper] {
            fs::create_dir_all(dir).unwrap();
        }
        files::set_mode(&low.join("diff/a"), 0o1777).unwrap();
        files::set_mode(&high.join("diff/a"), 0o755).unwrap();
        let layers = [low.join("diff"), high.join("diff")];
        let settled = |names: usize, length: usize| {
            let mut implied: BTreeSet<PathBuf> = (0..names).map(|n| format!("z{n:0length$}").into()).collect();
            implied.insert("a".into());
            write(&high, &implied).unwrap();
            settle(&layers, &upper, 0).unwrap();
            let mode = fs::metadata(upper.join("a")).map(|m| m.mode() & 0o7777).ok();
            let _ = fs::remove_dir_all(upper.join("a"));
            mode
        };
        assert_eq!(settled(0, 1), Some(0o1777));
        // more looks, and a longer list, than are taken
        assert_eq!(settled(100_000, 6), None);
        assert_eq!(settled(20_000, 250), None);
        assert_eq!(settled(1000, 6), Some(0o1777));
    }
}
