//! The store as others see it: what it has, pulls (side by side, each thing once), removal and mounts.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use futures::FutureExt;
use tokio::sync::{Semaphore, watch};
use tracing::info;

use super::credentials::{self, Credential};
use super::download::Meter;
use super::endpoints;
use super::flights::Flights;
use super::index::Index;
use super::layers::{self, Layers};
use super::manifest::Descriptor;
use super::pull;
use super::reference::Reference;
use super::registry::Registry;
use super::types::{Image, ImageError, LayerProgress, StoreConfig};

/// Images pulled at once unless the settings say another number.
pub const PULLS: usize = 3;
/// Layers on their way at once, of all images: an SD card is not faster with more, and each costs about 3 MiB.
const LAYERS: usize = 3;

type Key = (Reference, Vec<Credential>);

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
    layers: Arc<Layers>,
    /// Changes of the index are made one at a time.
    index: Mutex<Index>,
    changed: watch::Sender<u64>,
    pulls: Flights<Key, Result<(), String>>,
    pull_slots: Semaphore,
    layer_flights: Flights<String, Result<(), String>>,
    layer_slots: Arc<Semaphore>,
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
        let dir = config.dir.join("layers");
        let index = Index::open(config.dir.clone())?;
        let layers = Layers::open(dir.clone())
            .map_err(|source| ImageError::Io { what: format!("opening {}", dir.display()), source })?;
        Ok(Self {
            inner: Arc::new(Inner {
                layers,
                index: Mutex::new(index),
                changed: watch::Sender::new(0),
                pulls: Flights::default(),
                pull_slots: Semaphore::new(config.max_parallel_pulls.unwrap_or(PULLS).max(1)),
                layer_flights: Flights::default(),
                layer_slots: Arc::new(Semaphore::new(LAYERS)),
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

    pub(super) fn layers(&self) -> &Arc<Layers> {
        &self.inner.layers
    }

    pub(super) fn layer_flights(&self) -> &Flights<String, Result<(), String>> {
        &self.inner.layer_flights
    }

    pub(super) fn layer_slots(&self) -> Arc<Semaphore> {
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
            done: self.inner.layers.size(&diff_id).is_some(),
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

    /// The image a reference (tag, digest or image id) names, if it is whole in the store.
    pub async fn get(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        let reference = reference.to_owned();
        self.blocking(move |inner, index| index.get(&inner.layers, &reference)).await
    }

    /// Every whole image.
    pub async fn list(&self) -> Result<Vec<Image>, ImageError> {
        self.blocking(|inner, index| index.list(&inner.layers)).await
    }

    /// Pulls by tag or digest for this machine's platform, with those of `credentials` that belong to it, then the
    /// node's. Who asks for what is being pulled already, with the same logins, waits for that.
    pub async fn pull(&self, reference: &str, credentials: &[Credential]) -> Result<Image, ImageError> {
        let parsed = Reference::parse(reference)?;
        let failed = |message: String| ImageError::Pull { reference: reference.to_owned(), message };
        let key = (parsed.clone(), credentials.to_vec());
        let start = || {
            let (store, key) = (self.clone(), key.clone());
            async move { store.pull_one(&key.0, key.1).await }.boxed()
        };
        let (work, _) = self.inner.pulls.join(key.clone(), start);
        work.await.map_err(failed)?;
        let image =
            self.get(&parsed.canonical()).await?.ok_or_else(|| failed("pulled, but removed at once".to_owned()))?;
        self.touch(&image.id);
        Ok(image)
    }

    async fn pull_one(&self, reference: &Reference, mut credentials: Vec<Credential>) -> Result<(), String> {
        let _slot = self.inner.pull_slots.acquire().await.map_err(|e| e.to_string())?;
        credentials.extend(credentials::of_node(&self.inner.config.node_logins));
        let registry = Registry::new(endpoints::of(reference, &self.inner.config, &credentials)?);
        let (name, arch) = (reference.canonical(), std::env::consts::ARCH);
        let pulled = pull::pull(self, reference, registry).await;
        lock(&self.inner.wanted).remove(&name);
        let pulled = pulled?;
        info!(image = name, digest = pulled.top_digest, arch, "pulled");
        let add = move |inner: &Inner, index: &Index| {
            let synced = inner.layers.sync();
            synced.map_err(|source| ImageError::Io { what: "syncing layers".to_owned(), source })?;
            index.add(&name, &pulled)
        };
        self.blocking(add).await.map_err(|e| e.to_string())?;
        self.inner.changed.send_modify(|n| *n += 1);
        Ok(())
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
            let found = index.get(&inner.layers, &reference)?;
            let image = found.ok_or_else(|| ImageError::NotFound(reference.clone()))?;
            if image.is_under(&mounts()?) {
                return Err(ImageError::InUse(reference.clone()));
            }
            index.remove(&inner.layers, |other, _| other.is_some_and(|o| o.id == image.id))?;
            discard(inner, index)
        };
        let freed = self.blocking(remove).await?;
        self.inner.changed.send_modify(|n| *n += 1);
        Ok(freed)
    }

    /// Removes layers of no image, such as those of a pull that was never finished.
    pub(super) async fn discard(&self) -> Result<u64, ImageError> {
        self.blocking(discard).await
    }

    /// See [`super::mount::mount`].
    pub async fn mount(&self, image: &Image, dir: &Path) -> Result<PathBuf, ImageError> {
        // pinned, then looked at: no removal can come between
        let _pins = self.inner.layers.pin(&image.layers);
        if let Some(missing) = image.layers.iter().find(|l| self.inner.layers.size(l).is_none()) {
            return Err(ImageError::NotFound(format!("{} (layer {missing})", image.id)));
        }
        self.touch(&image.id);
        let layers: Vec<PathBuf> = image.layers.iter().map(|l| self.inner.layers.diff(l)).collect();
        super::mount::mount(&layers, dir)
    }

    /// Unmounts and removes `dir`. Safe to repeat.
    pub async fn unmount(&self, dir: &Path) -> Result<(), ImageError> {
        super::mount::unmount(dir)
    }
}

fn mounts() -> Result<Vec<Vec<String>>, ImageError> {
    layers::mounts().map_err(|source| ImageError::Io { what: "reading /proc/self/mountinfo".to_owned(), source })
}

fn discard(inner: &Inner, index: &Index) -> Result<u64, ImageError> {
    let needed: BTreeSet<String> = index.list(&inner.layers)?.into_iter().flat_map(|i| i.layers).collect();
    let freed = inner.layers.discard_all_but(&needed);
    freed.map_err(|source| ImageError::Io { what: "removing layers".to_owned(), source })
}
