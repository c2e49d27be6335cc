//! The store: an OCI image layout for the documents, and one directory per unpacked layer.
//!
//! Everything is written under a temporary name, synced and renamed; a layer counts only with its completion mark.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::{Mutex, watch};
use tracing::info;

use super::manifest::{self, ImageConfig, Manifest};
use super::pull;
use super::reference::Reference;
use super::types::{Credential, Image, ImageError, ImageProcess, StoreConfig};

const NAME: &str = "org.opencontainers.image.ref.name";
const PULLED: &str = "io.pikelet.image.digest";

struct Inner {
    config: StoreConfig,
    /// Pulls and changes of the index, one at a time.
    writing: Mutex<()>,
    changed: watch::Sender<u64>,
}

/// The image store; cheap to clone.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

fn io_error(what: String) -> impl FnOnce(io::Error) -> ImageError {
    move |source| ImageError::Io { what, source }
}

fn hex(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}

/// Writes a file so that it is there whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let temporary = path.with_extension("tmp");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&temporary, path)
    };
    write().map_err(io_error(format!("writing {}", path.display())))
}

impl ImageStore {
    /// Opens (and where needed creates) the store; half-unpacked layers of an earlier run are removed.
    pub async fn open(config: StoreConfig) -> Result<Self, ImageError> {
        let dir = &config.dir;
        for sub in ["blobs/sha256", "layers"] {
            fs::create_dir_all(dir.join(sub)).map_err(io_error(format!("creating {}", dir.join(sub).display())))?;
        }
        if !dir.join("oci-layout").exists() {
            write_whole(&dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        for entry in fs::read_dir(dir.join("layers")).into_iter().flatten().flatten() {
            if !entry.path().join("complete").exists() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(Self { inner: Arc::new(Inner { config, writing: Mutex::new(()), changed: watch::Sender::new(0) }) })
    }

    /// Wakes when images were added or removed.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    fn dir(&self) -> &Path {
        &self.inner.config.dir
    }

    fn blob_path(&self, digest: &str) -> PathBuf {
        self.dir().join("blobs/sha256").join(hex(digest))
    }

    /// Directory of an unpacked layer's files.
    pub(super) fn layer_dir(&self, diff_id: &str) -> PathBuf {
        self.dir().join("layers").join(hex(diff_id))
    }

    /// True when a layer is whole.
    pub(super) fn has_layer(&self, diff_id: &str) -> bool {
        self.layer_dir(diff_id).join("complete").exists()
    }

    fn index(&self) -> Result<Vec<Value>, ImageError> {
        let path = self.dir().join("index.json");
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(io_error(format!("reading {}", path.display())))?,
        };
        let index: Value =
            serde_json::from_slice(&text).map_err(|e| io_error(format!("reading {}", path.display()))(e.into()))?;
        Ok(index["manifests"].as_array().cloned().unwrap_or_default())
    }

    fn write_index(&self, entries: &[Value]) -> Result<(), ImageError> {
        let index =
            json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries});
        write_whole(&self.dir().join("index.json"), index.to_string().as_bytes())?;
        self.inner.changed.send_modify(|n| *n += 1);
        Ok(())
    }

    fn load(&self, entries: &[Value], digest: &str) -> Option<Image> {
        let manifest: Manifest = serde_json::from_slice(&fs::read(self.blob_path(digest)).ok()?).ok()?;
        let id = manifest.config?.digest;
        let config: ImageConfig = serde_json::from_slice(&fs::read(self.blob_path(&id)).ok()?).ok()?;
        let layers = config.rootfs.diff_ids;
        if !layers.iter().all(|l| self.has_layer(l)) {
            return None;
        }
        let size = layers
            .iter()
            .filter_map(|l| fs::read_to_string(self.layer_dir(l).join("complete")).ok()?.parse::<u64>().ok())
            .sum();
        let process = config.config.unwrap_or_default();
        let (mut repo_tags, mut repo_digests) = (Vec::new(), Vec::new());
        for entry in entries.iter().filter(|e| e["digest"] == json!(digest)) {
            let annotation = |key: &str| entry["annotations"][key].as_str().map(str::to_owned);
            if let Some(name) = annotation(NAME) {
                let repository = Reference::parse(&name).ok().map(|r| r.name()).unwrap_or_default();
                if !name.contains('@') {
                    repo_tags.push(name);
                }
                repo_digests.extend(annotation(PULLED).map(|d| format!("{repository}@{d}")));
            }
        }
        repo_digests.sort();
        repo_digests.dedup();
        Some(Image {
            id,
            repo_tags,
            repo_digests,
            size,
            layers,
            config: ImageProcess {
                entrypoint: process.entrypoint.unwrap_or_default(),
                cmd: process.cmd.unwrap_or_default(),
                env: process.env.unwrap_or_default(),
                working_dir: process.working_dir.unwrap_or_default(),
                user: process.user.unwrap_or_default(),
                stop_signal: process.stop_signal,
            },
        })
    }

    /// The image a reference (tag, digest or image id) names, if it is whole in the store.
    pub async fn get(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        let entries = self.index()?;
        if super::reference::is_digest(reference) {
            return Ok(self.list().await?.into_iter().find(|i| i.id == reference));
        }
        let wanted = Reference::parse(reference)?;
        let name = wanted.canonical();
        let found = entries.iter().find(|e| {
            e["annotations"][NAME] == json!(name)
                || wanted
                    .digest
                    .as_ref()
                    .is_some_and(|d| e["annotations"][PULLED] == json!(d) || e["digest"] == json!(d))
        });
        Ok(found.and_then(|e| e["digest"].as_str()).and_then(|d| self.load(&entries, d)))
    }

    /// Every whole image.
    pub async fn list(&self) -> Result<Vec<Image>, ImageError> {
        let entries = self.index()?;
        let mut images = BTreeMap::new();
        for digest in entries.iter().filter_map(|e| e["digest"].as_str()) {
            if let Some(image) = self.load(&entries, digest) {
                images.insert(image.id.clone(), image);
            }
        }
        Ok(images.into_values().collect())
    }

    /// Pulls by tag or digest for this machine's platform. A matching login of `credentials` is used.
    pub async fn pull(&self, reference: &str, credentials: &[Credential]) -> Result<Image, ImageError> {
        let parsed = Reference::parse(reference)?;
        let failed = |message: String| ImageError::Pull { reference: reference.to_owned(), message };
        let _one = self.inner.writing.lock().await;
        let registry = self.inner.config.registries.get(&parsed.host).cloned().unwrap_or_default();
        let pulled = pull::pull(self, &parsed, &registry, credentials).await.map_err(failed)?;
        write_whole(&self.blob_path(&pulled.manifest_digest), &pulled.manifest)?;
        write_whole(&self.blob_path(&pulled.config_digest), &pulled.config)?;
        let name = parsed.canonical();
        let mut entries = self.index()?;
        entries.retain(|e| e["annotations"][NAME] != json!(name));
        let arch = std::env::consts::ARCH;
        info!(image = name, digest = pulled.top_digest, arch, "pulled");
        entries.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": pulled.manifest_digest,
            "size": pulled.manifest.len(),
            "annotations": {NAME: name, PULLED: pulled.top_digest},
        }));
        self.write_index(&entries)?;
        self.get(reference).await?.ok_or_else(|| failed("pulled, but not whole in the store".to_owned()))
    }

    /// Removes an image by reference or id; layers no other image needs go too.
    pub async fn remove(&self, reference: &str) -> Result<(), ImageError> {
        let _one = self.inner.writing.lock().await;
        let image = self.get(reference).await?.ok_or_else(|| ImageError::NotFound(reference.to_owned()))?;
        let mut entries = self.index()?;
        let digests = entries.clone();
        entries.retain(|e| {
            e["digest"].as_str().and_then(|d| self.load(&digests, d)).is_none_or(|other| other.id != image.id)
        });
        self.write_index(&entries)?;
        let kept: Vec<String> = self.list().await?.into_iter().flat_map(|i| i.layers).collect();
        for layer in image.layers.iter().filter(|l| !kept.contains(l)) {
            let dir = self.layer_dir(layer);
            fs::remove_dir_all(&dir).map_err(io_error(format!("removing {}", dir.display())))?;
        }
        Ok(())
    }

    /// See [`super::mount::mount`].
    pub async fn mount(&self, image: &Image, dir: &Path) -> Result<PathBuf, ImageError> {
        let layers: Vec<PathBuf> = image.layers.iter().map(|l| self.layer_dir(l).join("diff")).collect();
        super::mount::mount(&layers, dir)
    }

    /// Unmounts and removes `dir`. Safe to repeat.
    pub async fn unmount(&self, dir: &Path) -> Result<(), ImageError> {
        super::mount::unmount(dir)
    }

    /// Chooses a platform's manifest from an index.
    pub(super) fn platform(entries: &[manifest::Descriptor]) -> Result<&manifest::Descriptor, String> {
        manifest::choose(entries, std::env::consts::ARCH)
    }
}
