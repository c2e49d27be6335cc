//! Unpacked layers on disk: one directory each, `<hex of the diff id>/{diff,implied,complete}`.
//!
//! What a power cut must not break: files are synced before the mark is made, the mark before the directory gets its
//! name, the name before an image that needs it is written to the index. A layer without name or mark does not count.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;

use super::digest::{hex, is_hex};
use super::implied;
use super::mount;
use super::shared_sync::SharedSync;
use super::unpack::Unpacked;
use crate::files::{self, sync_dir};

const MARK: &str = "complete";

/// The layers of a store.
pub struct Layers {
    dir: PathBuf,
    /// Layers that pulls rely on, though no image of the index may need them yet.
    pins: Mutex<HashMap<String, usize>>,
    next: AtomicU64,
    syncing: SharedSync,
}

/// Keeps layers from being discarded while it lives.
pub struct Pins {
    layers: Arc<Layers>,
    names: Vec<String>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut pins = self.layers.pins();
        for name in &self.names {
            if let Some(count) = pins.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(name);
                }
            }
        }
    }
}

impl Layers {
    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Opens the layers in `dir`; half-unpacked ones of an earlier run are removed. One whose mark cannot be read now, or
    /// that a container stands on, is not taken for such.
    pub fn open(dir: PathBuf) -> io::Result<Arc<Self>> {
        // an image's programs that run as root, and its devices, are not for the users of this machine
        files::dir(&dir, 0o700)?;
        let layers = Self { dir, pins: Mutex::default(), next: AtomicU64::new(0), syncing: SharedSync::default() };
        let mounted = mounted_layers()?;
        for entry in fs::read_dir(&layers.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !is_hex(&name) {
                clear(&entry.path());
                continue;
            }
            match layers.mark(&name) {
                Ok(Some(_)) => {}
                Ok(None) if mounted.contains(&name) => {
                    warn!(layer = name, "half a layer, but containers stand on it: kept");
                }
                Ok(None) => clear(&entry.path()),
                Err(error) => warn!(layer = name, %error, "whether a layer is whole cannot be read: kept"),
            }
        }
        Ok(Arc::new(layers))
    }

    fn pins(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name no other writer uses, which does not count as a layer.
    fn temporary(&self) -> PathBuf {
        self.dir.join(format!("{}.tmp", self.next.fetch_add(1, Ordering::Relaxed)))
    }

    fn path(&self, diff_id: &str) -> PathBuf {
        self.dir.join(hex(diff_id))
    }

    /// Directory of a layer's files.
    pub fn diff(&self, diff_id: &str) -> PathBuf {
        self.path(diff_id).join("diff")
    }

    /// Bytes of a layer's files; `None` unless it is whole.
    pub fn size(&self, diff_id: &str) -> Option<u64> {
        self.mark(diff_id).ok().flatten()
    }

    /// What the mark says; `None`: there is none, or a power cut took what it said.
    fn mark(&self, diff_id: &str) -> io::Result<Option<u64>> {
        match fs::read(self.path(diff_id).join(MARK)) {
            Ok(text) => Ok(std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok())),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Keeps layers, whether here already or to come.
    pub fn pin(self: &Arc<Self>, diff_ids: &[String]) -> Pins {
        let mut pins = self.pins();
        for id in diff_ids {
            *pins.entry(hex(id).to_owned()).or_default() += 1;
        }
        Pins { layers: self.clone(), names: diff_ids.iter().map(|i| hex(i).to_owned()).collect() }
    }

    /// True while something relies on it.
    pub fn pinned(&self, hex: &str) -> bool {
        self.pins().contains_key(hex)
    }

    /// Makes a layer of what `fill` writes into the directory it is given; `fill` returns what it found the layer to
    /// be. The layer is kept while the pins live.
    pub fn place(
        self: &Arc<Self>,
        fill: impl FnOnce(&Path) -> Result<Unpacked, String>,
    ) -> Result<(Unpacked, Pins), String> {
        let temporary = self.temporary();
        let result = self.fill_and_name(&temporary, fill);
        if result.is_err() {
            clear(&temporary);
        }
        result
    }

    /// Files, their sync, the mark, its sync, the name: in this order.
    fn fill_and_name(
        self: &Arc<Self>,
        temporary: &Path,
        fill: impl FnOnce(&Path) -> Result<Unpacked, String>,
    ) -> Result<(Unpacked, Pins), String> {
        let failed = |e: io::Error| format!("storing a layer in {}: {e}", self.dir.display());
        files::dir_kept(&temporary.join("diff"), 0o755).map_err(failed)?;
        let got = fill(&temporary.join("diff"))?;
        let pins = self.pin(std::slice::from_ref(&got.diff_id));
        if self.size(&got.diff_id).is_some() {
            // here already: what was not synced yet need not be
            clear(temporary);
            return Ok((got, pins));
        }
        implied::write(temporary, &got.implied).map_err(failed)?;
        let root = File::open(temporary).map_err(failed)?;
        self.syncing.run(|| Ok(nix::unistd::syncfs(&root)?)).map_err(failed)?;
        let mut mark = files::create(&temporary.join(MARK), 0o600).map_err(failed)?;
        mark.write_all(got.size.to_string().as_bytes()).and_then(|()| mark.sync_all()).map_err(failed)?;
        root.sync_all().map_err(failed)?;
        let target = self.path(&got.diff_id);
        match fs::rename(temporary, &target) {
            // a pull that everybody gave up on has ended after all
            Err(_) if target.join(MARK).exists() => clear(temporary),
            other => other.map_err(failed)?,
        }
        Ok((got, pins))
    }

    /// All layers, by hex.
    pub fn names(&self) -> io::Result<BTreeSet<String>> {
        let names = fs::read_dir(&self.dir)?.map(|e| Ok(e?.file_name().to_string_lossy().into_owned()));
        names.filter(|n: &io::Result<String>| n.as_ref().map_or(true, |n| is_hex(n))).collect()
    }

    /// Makes the names of all whole layers last.
    pub fn sync(&self) -> io::Result<()> {
        sync_dir(&self.dir)
    }

    /// Takes those of `candidates` (by hex) out of the store that are not in `needed`, not pinned and not mounted. Their
    /// files are still there: [`Gone::clear`] removes them.
    pub fn discard(&self, candidates: BTreeSet<String>, needed: &BTreeSet<String>) -> io::Result<Gone> {
        let mut gone = Gone::default();
        // the lock for all: who mounts pins before and until it is mounted, and a pull pins before it looks what is here
        let pins = self.pins();
        let mounted = mounted_layers()?;
        for name in candidates.iter().map(String::as_str) {
            if needed.contains(&format!("sha256:{name}")) || mounted.contains(name) || pins.contains_key(name) {
                continue;
            }
            let temporary = self.temporary();
            let bytes = self.size(name).unwrap_or_default();
            if let Err(error) = fs::rename(self.path(name), &temporary) {
                warn!(layer = name, %error, "layer not removed");
                continue;
            }
            gone.bytes += bytes;
            gone.places.push(temporary);
        }
        drop(pins);
        // a layer that is partly gone must not have its name after a power cut
        if !gone.places.is_empty() {
            self.sync()?;
        }
        Ok(gone)
    }
}

/// Layers that have no name any more. Their files go with [`Gone::clear`], which can take minutes on a card and so is done
/// with no lock held; or when the store is opened the next time.
#[derive(Debug, Default)]
#[must_use]
pub struct Gone {
    bytes: u64,
    places: Vec<PathBuf>,
}

impl Gone {
    /// Of what was moved to those places, in bytes.
    pub(super) fn new(bytes: u64, places: Vec<PathBuf>) -> Self {
        Self { bytes, places }
    }

    /// What both have taken out.
    pub fn and(mut self, other: Gone) -> Self {
        self.bytes += other.bytes;
        self.places.extend(other.places);
        self
    }

    /// Removes the files; returns their bytes.
    pub fn clear(self) -> u64 {
        self.places.iter().for_each(|place| clear(place));
        self.bytes
    }
}

fn clear(path: &Path) {
    let gone = if path.is_dir() { files::remove_tree(path) } else { fs::remove_file(path) };
    if let Err(error) = gone {
        warn!(path = %path.display(), %error, "half a layer or blob is left over");
    }
}

/// The layers (by hex) each overlay mount of this machine stands on, lowest first (mountinfo of proc(5)).
pub fn mounts() -> io::Result<Vec<Vec<String>>> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo")?;
    Ok(text.lines().filter_map(stack).filter(|s| !s.is_empty()).collect())
}

fn stack(line: &str) -> Option<Vec<String>> {
    let (_, rest) = line.split_once(" - overlay ")?;
    let options = rest.rsplit(' ').next()?;
    let option = |name: &str| options.split(',').find_map(|o| o.strip_prefix(name));
    let lower = option("lowerdir=")?;
    let layer = |path: &str| path.strip_suffix("/diff")?.rsplit('/').next().filter(|n| is_hex(n)).map(str::to_owned);
    let found = |name: &str| {
        if name.starts_with('/') {
            return layer(name);
        }
        layer(mount::behind(&unescaped(option("upperdir=")?), name)?.to_str()?)
    };
    Some(lower.split(':').rev().filter_map(found).collect())
}

/// A path of the mount table, where a space is `\040` and the like.
fn unescaped(text: &str) -> PathBuf {
    let mut path = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..3).filter(|_| *first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        let code = digits.and_then(|d| u8::from_str_radix(d, 8).ok());
        path.push(code.unwrap_or(*first));
        rest = if code.is_some() { &behind[3..] } else { behind };
    }
    PathBuf::from(OsString::from_vec(path))
}

fn mounted_layers() -> io::Result<BTreeSet<String>> {
    Ok(mounts()?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layers_of_a_mount_are_found() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let line = format!(
            "97 35 0:52 / /c/rootfs rw,relatime shared:1 - overlay overlay rw,lowerdir=/l/{b}/diff:/l/{a}/diff,upperdir=/u"
        );
        assert_eq!(stack(&line), Some(vec![a, b]));
        assert_eq!(stack("35 1 0:5 / / rw - ext4 /dev/root rw"), None);
        // by a short name, below a folder with a space in its name
        let folder = crate::machine::folder::Folder::new();
        let container = folder.path().join("a b/c");
        fs::create_dir_all(container.join("lower")).unwrap();
        let layer = "c".repeat(64);
        std::os::unix::fs::symlink(format!("/l/{layer}/diff"), container.join("lower/0")).unwrap();
        let upper = container.join("upper").display().to_string().replace(' ', "\\040");
        let line = format!("97 35 0:52 / /c/rootfs rw - overlay overlay rw,lowerdir=0,upperdir={upper},workdir=w");
        assert_eq!(stack(&line), Some(vec![layer]));
    }

    #[test]
    fn a_layer_whose_mark_cannot_be_read_is_kept() {
        let folder = crate::machine::folder::Folder::new();
        let name = "a".repeat(64);
        // as a card that fails: there, and not to be read
        fs::create_dir_all(folder.path().join(&name).join(MARK)).unwrap();
        let layers = Layers::open(folder.path().to_owned()).unwrap();
        assert!(folder.path().join(&name).exists() && layers.size(&name).is_none());
    }

    #[test]
    fn a_layer_that_a_container_stands_on_is_kept() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("passed by: mounting needs root");
            return;
        }
        let folder = crate::machine::folder::Folder::new();
        let dir = folder.path().to_owned();
        std::thread::spawn(move || {
            crate::mount_tree::leave_namespace().unwrap();
            // what is written must not be on an overlay itself
            let memory = dir.join("memory");
            fs::create_dir_all(&memory).unwrap();
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("tmpfs"), &memory, Some("tmpfs"), flags, None::<&str>).unwrap();
            let (layers, half) = (memory.join("layers"), "b".repeat(64));
            fs::create_dir_all(layers.join(&half).join("diff")).unwrap();
            let write = memory.join("containers/c");
            fs::create_dir_all(&write).unwrap();
            mount::mount(&[layers.join(&half).join("diff")], &write, None).unwrap();
            let opened = Layers::open(layers.clone()).unwrap();
            assert!(layers.join(&half).exists());
            let discarded = opened.discard(opened.names().unwrap(), &BTreeSet::new()).unwrap();
            assert_eq!(discarded.places.len(), 0);
            mount::unmount(&write).unwrap();
            Layers::open(layers.clone()).unwrap();
            assert!(!layers.join(&half).exists());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn half_layers_go_when_opened_and_pinned_ones_stay() {
        let dir = std::env::temp_dir().join(format!("pikelet-layers-{}", std::process::id()));
        let (whole, unmarked, cut) = ("a".repeat(64), "b".repeat(64), "c".repeat(64));
        for name in [&whole, &unmarked, &cut, &"1.tmp".to_owned()] {
            fs::create_dir_all(dir.join(name).join("diff")).unwrap();
        }
        fs::write(dir.join(&whole).join(MARK), "7").unwrap();
        // a mark whose content was lost, and a layer that was not renamed yet
        fs::write(dir.join(&cut).join(MARK), "").unwrap();
        fs::write(dir.join("1.tmp").join(MARK), "7").unwrap();
        let layers = Layers::open(dir.clone()).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        assert_eq!((layers.size(&whole), layers.size(&cut)), (Some(7), None));
        let pins = layers.pin(&[format!("sha256:{whole}")]);
        assert_eq!(layers.discard(layers.names().unwrap(), &BTreeSet::new()).unwrap().clear(), 0);
        drop(pins);
        let gone = layers.discard(layers.names().unwrap(), &BTreeSet::new()).unwrap();
        assert_eq!(layers.size(&whole), None);
        assert_eq!(gone.clear(), 7);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::remove_dir_all(dir).unwrap();
    }
}
