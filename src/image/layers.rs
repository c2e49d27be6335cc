//! Unpacked layers on disk: one directory each, `<hex of the diff id>/{diff,complete}`.
//!
//! What a power cut must not break: files are synced before the mark is made, the mark before the directory gets its
//! name, the name before an image that needs it is written to the index. A layer without name or mark does not count.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;

use super::digest::{hex, is_hex};
use super::mount;
use super::unpack::Unpacked;
use crate::durable::sync_dir;

const MARK: &str = "complete";

/// The layers of a store.
pub struct Layers {
    dir: PathBuf,
    /// Layers that pulls rely on, though no image of the index may need them yet.
    pins: Mutex<HashMap<String, usize>>,
    next: AtomicU64,
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
    /// Opens the layers in `dir`; half-unpacked ones of an earlier run are removed.
    pub fn open(dir: PathBuf) -> io::Result<Arc<Self>> {
        fs::create_dir_all(&dir)?;
        // an image's programs that run as root, and its devices, are not for the users of this machine
        if fs::metadata(&dir)?.permissions().mode() & 0o777 != 0o700 {
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        }
        let layers = Self { dir, pins: Mutex::default(), next: AtomicU64::new(0) };
        for entry in fs::read_dir(&layers.dir)? {
            let entry = entry?;
            let whole = entry.file_name().to_str().is_some_and(|n| is_hex(n) && layers.size(n).is_some());
            if !whole {
                clear(&entry.path());
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
        fs::read_to_string(self.path(diff_id).join(MARK)).ok()?.parse().ok()
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
        fs::create_dir_all(temporary.join("diff")).map_err(failed)?;
        let got = fill(&temporary.join("diff"))?;
        let pins = self.pin(std::slice::from_ref(&got.diff_id));
        if self.size(&got.diff_id).is_some() {
            // here already: what was not synced yet need not be
            clear(temporary);
            return Ok((got, pins));
        }
        let root = File::open(temporary).map_err(failed)?;
        nix::unistd::syncfs(&root).map_err(|e| failed(e.into()))?;
        let mut mark = File::create(temporary.join(MARK)).map_err(failed)?;
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

    /// Removes those of `candidates` (by hex) that are not in `needed`, not pinned and not mounted; returns the bytes of
    /// their files.
    pub fn discard(&self, candidates: BTreeSet<String>, needed: &BTreeSet<String>) -> io::Result<u64> {
        let mounted = mounted_layers()?;
        let mut freed = 0;
        let mut gone = Vec::new();
        for name in candidates.iter().map(String::as_str) {
            if needed.contains(&format!("sha256:{name}")) || mounted.contains(name) {
                continue;
            }
            // under the lock: a pull pins before it looks what is here
            let pins = self.pins();
            if pins.contains_key(name) {
                continue;
            }
            freed += self.size(name).unwrap_or_default();
            let temporary = self.temporary();
            fs::rename(self.path(name), &temporary)?;
            gone.push(temporary);
        }
        // a layer that is partly gone must not have its name after a power cut
        if !gone.is_empty() {
            self.sync()?;
        }
        for path in gone {
            clear(&path);
        }
        Ok(freed)
    }
}

fn clear(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!(path = %path.display(), %error, "half a layer is left over");
    }
}

/// The layers (by hex) each overlay mount of this machine stands on, lowest first (mountinfo of proc(5)).
pub fn mounts() -> io::Result<Vec<Vec<String>>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
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
        layer(mount::behind(Path::new(option("upperdir=")?), name)?.to_str()?)
    };
    Some(lower.split(':').rev().filter_map(found).collect())
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
        assert_eq!(layers.discard(layers.names().unwrap(), &BTreeSet::new()).unwrap(), 0);
        drop(pins);
        assert_eq!(layers.discard(layers.names().unwrap(), &BTreeSet::new()).unwrap(), 7);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::remove_dir_all(dir).unwrap();
    }
}
