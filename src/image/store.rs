//! The store as others see it: what it has, pulls (side by side, each thing once), removal and mounts.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use futures::FutureExt;
use tokio::sync::{Semaphore, watch};
use tracing::info;

use super::access::{Needs, Records};
use super::blobs::Blobs;
use super::credentials::{self, Credential};
use super::download::Meter;
use super::endpoints;
use super::flights::Flights;
use super::guard::RATIO;
use super::index::Index;
use super::layers::{self, Gone, Layers};
use super::manifest::{Descriptor, ImageConfig};
use super::mount::Users;
use super::platform::Machine;
use super::providers::Providers;
use super::pull::{self, Pulled};
use super::reference::Reference;
use super::registry::Registry;
use super::resolve::Use;
use super::sink::Sink;
use super::slots::{Slot, Slots};
use super::types::{Image, ImageError, LayerProgress, StoreConfig};
use super::volumes;
use crate::files;

/// Images pulled at once unless the settings say another number.
pub const PULLS: usize = 3;
/// Layers on their way at once, of all images: an SD card is not faster with more, and each costs about 3 MiB.
const LAYERS: usize = 3;
/// Volumes of images filled at once.
const FILLS: usize = 2;

type Key = (Reference, Vec<Credential>, Use);

/// When an image was last of use; in memory only, like the kubelet's: a card is not worn by it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// First seen by this agent.
    pub detected: Instant,
    /// Last pulled, mounted, or seen in use.
    pub used: Option<Instant>,
}

struct Inner {
    config: StoreConfig,
    sink: Sink,
    /// Changes of the index are made one at a time.
    index: Mutex<Index>,
    changed: watch::Sender<u64>,
    /// The archives of the folder are not all in the store yet.
    importing: watch::Sender<bool>,
    providers: Providers,
    pulls: Flights<Key, Result<(), String>>,
    pull_slots: Arc<Slots>,
    records: Records,
    /// By registry, as one may be slower than another, and diff id.
    layer_flights: Flights<(String, String), Result<(), String>>,
    layer_slots: Arc<Slots>,
    /// Turns to fill volumes.
    fills: Semaphore,
    /// Layers (and their diff ids) of the images being pulled, by name.
    wanted: Mutex<HashMap<String, Vec<(Descriptor, String)>>>,
    /// By blob digest.
    meters: Mutex<HashMap<String, Weak<Meter>>>,
    seen: Mutex<HashMap<String, Seen>>,
}

/// The image store; cheap to clone.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ImageStore {
    /// Opens (and where needed creates) the store; what an earlier run left half done is removed.
    pub async fn open(config: StoreConfig) -> Result<Self, ImageError> {
        let failed =
            |source| ImageError::Io { what: format!("opening the image store {}", config.dir.display()), source };
        let blobs = Blobs::open(&config.dir).map_err(failed)?;
        let index = Index::open(config.dir.clone(), blobs.clone())?;
        let layers = Layers::open(config.dir.join("layers")).map_err(failed)?;
        let (keep_blobs, ratio) = (config.keep_blobs, config.max_unpack_ratio.unwrap_or(RATIO));
        Ok(Self {
            inner: Arc::new(Inner {
                sink: Sink { layers, blobs, keep_blobs, ratio },
                index: Mutex::new(index),
                changed: watch::Sender::new(0),
                importing: watch::Sender::new(config.import_dir.as_ref().is_some_and(|d| d.is_dir())),
                providers: Providers::new(config.providers.clone()),
                pulls: Flights::default(),
                records: Records::open(&config.dir, config.verification.clone()).map_err(failed)?,
                pull_slots: Slots::new(config.max_parallel_pulls.unwrap_or(PULLS).max(1)),
                layer_flights: Flights::default(),
                layer_slots: Slots::new(LAYERS),
                fills: Semaphore::new(FILLS),
                wanted: Mutex::default(),
                meters: Mutex::default(),
                seen: Mutex::default(),
                config,
            }),
        })
    }

    /// Wakes when images were added or removed.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// Where the store is.
    pub fn dir(&self) -> &Path {
        &self.inner.config.dir
    }

    pub(super) fn import_dir(&self) -> Option<PathBuf> {
        self.inner.config.import_dir.clone()
    }

    /// True until [`ImageStore::import_folder`] has ended.
    pub fn is_importing(&self) -> bool {
        *self.inner.importing.borrow()
    }

    /// Waits until [`ImageStore::import_folder`] has ended.
    pub async fn imported(&self) {
        // the sender lives as long as the store
        let _ = self.inner.importing.subscribe().wait_for(|importing| !importing).await;
    }

    pub(super) fn settle(&self) {
        self.inner.importing.send_replace(false);
    }

    pub(super) fn layers(&self) -> &Arc<Layers> {
        &self.inner.sink.layers
    }

    pub(super) fn sink(&self) -> &Sink {
        &self.inner.sink
    }

    pub(super) fn layer_flights(&self) -> &Flights<(String, String), Result<(), String>> {
        &self.inner.layer_flights
    }

    pub(super) fn layer_slots(&self) -> Arc<Slots> {
        self.inner.layer_slots.clone()
    }

    /// The meter of a layer on its way.
    pub(super) fn meter(&self, layer: &Descriptor) -> Arc<Meter> {
        let mut meters = lock(&self.inner.meters);
        meters.retain(|_, m| m.strong_count() > 0);
        let meter = Arc::default();
        meters.insert(layer.digest.clone(), Arc::downgrade(&meter));
        meter
    }

    /// Says of which layers an image being pulled is made.
    pub(super) fn wants(&self, name: String, layers: Vec<(Descriptor, String)>) {
        lock(&self.inner.wanted).insert(name, layers);
    }

    /// How far the layers of an image being pulled are, lowest first; empty before they are known, and after.
    pub fn progress(&self, reference: &str) -> Vec<LayerProgress> {
        let Ok(parsed) = Reference::parse(reference) else { return Vec::new() };
        let wanted = lock(&self.inner.wanted).get(&parsed.canonical()).cloned().unwrap_or_default();
        let meters = lock(&self.inner.meters);
        let of = |(layer, diff_id): (Descriptor, String)| LayerProgress {
            received: meters.get(&layer.digest).and_then(Weak::upgrade).map_or(0, |m| m.load(Ordering::Relaxed)),
            done: self.inner.sink.layers.size(&diff_id).is_some(),
            digest: layer.digest,
            total: layer.size,
        };
        wanted.into_iter().map(of).collect()
    }

    /// Runs what reads and writes the index where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner, &Index) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, ImageError> {
        let inner = self.inner.clone();
        let done = tokio::task::spawn_blocking(move || work(&inner, &lock(&inner.index))).await;
        done.map_err(|e| ImageError::Io { what: "using the image store".to_owned(), source: e.into() })?
    }

    /// What may be wrong with running an image here, though the machine's processor can.
    pub async fn doubt(&self, image: &Image) -> Option<String> {
        let manifest = image.manifest.clone();
        let platform = self.blocking(move |_, index| Ok(index.platform(&manifest))).await.ok()??;
        Machine::here().doubt(&platform)
    }

    /// The image a reference (tag, digest or image id) names, if it is whole in the store.
    pub async fn get(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        let reference = reference.to_owned();
        self.blocking(move |inner, index| index.get(&inner.sink.layers, &reference)).await
    }

    /// Every whole image.
    pub async fn list(&self) -> Result<Vec<Image>, ImageError> {
        self.blocking(|inner, index| index.list(&inner.sink.layers)).await
    }

    /// Pulls by tag or digest for this machine's platform, with those of `credentials` that belong to it, then the
    /// node's. Concurrent pulls of one image with the same logins share a single download.
    pub async fn pull(&self, reference: &str, credentials: &[Credential]) -> Result<Image, ImageError> {
        self.pull_for(reference, credentials, Use::Run).await
    }

    /// The same; an image that is only read may be one of another processor.
    pub async fn pull_for(
        &self,
        reference: &str,
        credentials: &[Credential],
        wanted: Use,
    ) -> Result<Image, ImageError> {
        let parsed = Reference::parse(reference)?;
        let failed = |message: String| ImageError::Pull { reference: reference.to_owned(), message };
        let key = (parsed.clone(), credentials.to_vec(), wanted);
        let start = || {
            let (store, key) = (self.clone(), key.clone());
            async move { store.pull_one(&key.0, key.1, key.2).await }.boxed()
        };
        let (work, _) = self.inner.pulls.join(key.clone(), start);
        work.await.map_err(failed)?;
        let image =
            self.get(&parsed.canonical()).await?.ok_or_else(|| failed("pulled, but removed at once".to_owned()))?;
        self.touch(&image.id);
        Ok(image)
    }

    async fn pull_one(
        &self,
        reference: &Reference,
        mut credentials: Vec<Credential>,
        wanted: Use,
    ) -> Result<(), String> {
        let _slot = self.pull_slot(&reference.host).await.map_err(|e| e.to_string())?;
        let (provided, problems) = self.inner.providers.logins(&reference.name()).await;
        credentials.extend(provided);
        credentials.extend(credentials::of_node(&self.inner.config.node_logins));
        let registry = Registry::new(endpoints::of(reference, &self.inner.config, &credentials)?);
        let (name, arch) = (reference.canonical(), std::env::consts::ARCH);
        let pulled = pull::pull(self, reference, registry, wanted).await;
        lock(&self.inner.wanted).remove(&name);
        // a login that could not be had may be the one that was needed
        let also = |error: String| [vec![error], problems].concat().join("; ");
        let pulled = pulled.map_err(also)?;
        info!(image = name, digest = pulled.top_digest, arch, "pulled");
        self.note_login(reference.name(), &pulled).await?;
        self.add(name, pulled).await.map_err(|e| e.to_string())
    }

    /// Keeps with which login an image was pulled, before it can be found.
    async fn note_login(&self, name: String, pulled: &Pulled) -> Result<(), String> {
        let (inner, id, login) = (self.inner.clone(), pulled.config_digest.clone(), pulled.login.clone());
        let noted = tokio::task::spawn_blocking(move || inner.records.note(&id, &name, login.as_ref())).await;
        let noted = noted.unwrap_or_else(|e| Err(e.into()));
        noted.map_err(|e| format!("keeping who may use the image: {e}"))
    }

    /// What a pod needs to use an image of the store as `reference`, before its logins are looked at.
    pub fn needs(&self, image: &Image, reference: &str) -> Needs {
        let name = Reference::parse(reference).map_or_else(|_| reference.to_owned(), |r| r.name());
        self.inner.records.needs(&image.id, reference, &name)
    }

    /// Whether a pod with those logins could have pulled an image of the store that [`Needs::Login`].
    pub fn granted(&self, image: &Image, reference: &str, logins: &[Credential]) -> bool {
        let Ok(parsed) = Reference::parse(reference) else { return false };
        // those that would be sent
        let endpoints = endpoints::of(&parsed, &self.inner.config, logins).unwrap_or_default();
        let logins: Vec<Credential> = endpoints.into_iter().flat_map(|endpoint| endpoint.logins).collect();
        self.inner.records.granted(&image.id, &parsed.name(), &logins)
    }

    /// True if there is an image of that name, or of that digest.
    pub(super) async fn knows(&self, reference: &Reference) -> bool {
        matches!(self.get(&reference.canonical()).await, Ok(Some(_)))
    }

    /// The image to which a digest led before, if it is whole and of use here.
    pub(super) async fn kept(&self, digest: &str, wanted: Use) -> Option<Pulled> {
        let digest = digest.to_owned();
        let found = self.blocking(move |inner, index| index.kept(&inner.sink, &digest)).await.ok()??;
        let image: ImageConfig = serde_json::from_slice(&found.config).ok()?;
        let refused = wanted == Use::Run && Machine::here().refusal(&image.platform).is_some();
        (!refused).then_some(found)
    }

    /// A document that is in the store.
    pub(super) async fn document(&self, digest: &str) -> Option<Vec<u8>> {
        let (blobs, digest) = (self.inner.sink.blobs.clone(), digest.to_owned());
        let read = move || pull::verified(blobs.document(&digest).ok()?, &digest).ok();
        tokio::task::spawn_blocking(read).await.ok().flatten()
    }

    /// Names an image whose layers are in the store.
    pub(super) async fn add(&self, name: String, pulled: Pulled) -> Result<(), ImageError> {
        let add = move |inner: &Inner, index: &Index| {
            let synced = inner.sink.layers.sync();
            synced.map_err(|source| ImageError::Io { what: "syncing layers".to_owned(), source })?;
            let in_use = |digest: &str| {
                let image = index.of_manifest(&inner.sink.layers, digest);
                image.is_some_and(|image| layers::mounts().is_ok_and(|mounts| image.is_under(&mounts)))
            };
            index.add(&name, &pulled, in_use)
        };
        self.blocking(add).await?;
        self.inner.changed.send_modify(|n| *n += 1);
        Ok(())
    }

    /// A place for a pull from `registry`; empty for one from none.
    pub(super) async fn pull_slot(&self, registry: &str) -> Result<Slot, ImageError> {
        let slot = self.inner.pull_slots.clone().take(registry).await;
        slot.map_err(|e| ImageError::Io { what: "waiting for other pulls".to_owned(), source: io::Error::other(e) })
    }

    /// The layers there are (by hex), and the diff ids of blobs that are known.
    pub(super) async fn inventory(&self) -> Result<(BTreeSet<String>, HashMap<String, String>), ImageError> {
        let look = |inner: &Inner, index: &Index| {
            let names = inner.sink.layers.names();
            let failed = |source| ImageError::Io { what: "listing layers".to_owned(), source };
            Ok((names.map_err(failed)?, index.known()?))
        };
        self.blocking(look).await
    }

    /// Removes the layers of no image that were not there `before`, and blobs of no image.
    pub(super) async fn tidy(&self, before: BTreeSet<String>) -> Result<(), ImageError> {
        let tidy = move |inner: &Inner, index: &Index| {
            let names = inner.sink.layers.names();
            let names = names.map_err(|source| ImageError::Io { what: "listing layers".to_owned(), source })?;
            let gone = discard(inner, index, Some(names.difference(&before).cloned().collect()))?;
            Ok(gone.and(index.sweep(&inner.sink.layers)?))
        };
        clear(self.blocking(tidy).await?).await.map(drop)
    }

    pub(super) fn touch(&self, id: &str) {
        let now = Instant::now();
        let mut seen = lock(&self.inner.seen);
        seen.entry(id.to_owned()).or_insert(Seen { detected: now, used: None }).used = Some(now);
    }

    /// Every whole image with when it was of use; those in use count as used now.
    pub(super) async fn seen(&self) -> Result<Vec<(Image, Seen, bool)>, ImageError> {
        let now = Instant::now();
        let images = self.list().await?;
        let mounts = mounts()?;
        let mut seen = lock(&self.inner.seen);
        seen.retain(|id, _| images.iter().any(|i| i.id == *id));
        let mut found = Vec::new();
        for image in images {
            let entry = seen.entry(image.id.clone()).or_insert(Seen { detected: now, used: None });
            let in_use = image.is_under(&mounts);
            if in_use {
                entry.used = Some(now);
            }
            found.push((image, *entry, in_use));
        }
        Ok(found)
    }

    /// Removes an image by reference or id; layers no other image needs go too. Returns the bytes of their files.
    /// An image that containers stand on is not removed.
    pub async fn remove(&self, reference: &str) -> Result<u64, ImageError> {
        let reference = reference.to_owned();
        let remove = move |inner: &Inner, index: &Index| {
            let found = index.get(&inner.sink.layers, &reference)?;
            let image = found.ok_or_else(|| ImageError::NotFound(reference.clone()))?;
            if image.is_under(&mounts()?) {
                return Err(ImageError::InUse(reference.clone()));
            }
            let blobs = index.remove(&inner.sink.layers, |other, _| other.is_some_and(|o| o.id == image.id))?;
            Ok((image.id, blobs.and(discard(inner, index, None)?)))
        };
        let (id, gone) = self.blocking(remove).await?;
        self.inner.records.forget(&id);
        // should it come again, it is young again
        lock(&self.inner.seen).remove(&id);
        self.inner.changed.send_modify(|n| *n += 1);
        clear(gone).await
    }

    /// Removes layers of no image, such as those of a pull that was never finished.
    pub(super) async fn discard(&self) -> Result<u64, ImageError> {
        clear(self.blocking(|inner, index| discard(inner, index, None)).await?).await
    }

    /// See [`super::mount::mount`].
    pub async fn mount(&self, image: &Image, dir: &Path) -> Result<PathBuf, ImageError> {
        self.mount_for(image, dir, None).await
    }

    /// The same, for users who are not the host's.
    pub async fn mount_for(&self, image: &Image, dir: &Path, users: Option<&Users>) -> Result<PathBuf, ImageError> {
        // pinned, then looked at: no removal can come between
        let _pins = self.inner.sink.layers.pin(&image.layers);
        if let Some(missing) = image.layers.iter().find(|l| self.inner.sink.layers.size(l).is_none()) {
            return Err(ImageError::NotFound(format!("{} (layer {missing})", image.id)));
        }
        self.touch(&image.id);
        let layers: Vec<PathBuf> = image.stack().into_iter().map(|l| self.inner.sink.layers.diff(l)).collect();
        files::aside(|| super::mount::mount(&layers, dir, users))
    }

    /// Makes a container's own folder for a VOLUME of its image, number `number` of those in `dir`, where its root file
    /// system is mounted: it has what that has at `place`. It goes with `dir`.
    pub async fn volume(
        &self,
        dir: &Path,
        number: usize,
        place: &Path,
        users: Option<&Users>,
    ) -> Result<PathBuf, ImageError> {
        let folder = dir.join(volumes::VOLUMES).join(number.to_string());
        let (rootfs, owner) = (dir.join("rootfs"), users.map_or(0, |users| users.root));
        let (place, made) = (place.to_owned(), folder.clone());
        let what = format!("filling the image's volume {}", place.display());
        // a copy may take as long as a card does; threads are left to others
        let _turn = self.inner.fills.acquire().await;
        let filled = tokio::task::spawn_blocking(move || volumes::fill(&rootfs, &place, &made, owner)).await;
        filled.map_err(io::Error::from).flatten().map_err(|source| ImageError::Io { what, source })?;
        Ok(folder)
    }

    /// Unmounts and removes `dir`. Safe to repeat.
    pub async fn unmount(&self, dir: &Path) -> Result<(), ImageError> {
        let dir = dir.to_owned();
        let removed = files::removal(move || super::mount::unmount(&dir)).await;
        removed.map_err(|source| ImageError::Io { what: "removing a write layer".to_owned(), source })?
    }
}

fn mounts() -> Result<Vec<Vec<String>>, ImageError> {
    layers::mounts().map_err(|source| ImageError::Io { what: "reading the mount table".to_owned(), source })
}

/// Removes the files with no lock held: containers start meanwhile.
async fn clear(gone: Gone) -> Result<u64, ImageError> {
    let cleared = files::removal(|| gone.clear()).await;
    cleared.map_err(|source| ImageError::Io { what: "removing layers".to_owned(), source })
}

/// Takes layers of no image out of the store: those of `candidates` (by hex), or all.
fn discard(inner: &Inner, index: &Index, candidates: Option<BTreeSet<String>>) -> Result<Gone, ImageError> {
    let failed = |source| ImageError::Io { what: "removing layers".to_owned(), source };
    let layers = &inner.sink.layers;
    let needed: BTreeSet<String> = index.list(layers)?.into_iter().flat_map(|i| i.layers).collect();
    let candidates = candidates.map_or_else(|| layers.names(), Ok).map_err(failed)?;
    layers.discard(candidates, &needed).map_err(failed)
}
