//! One pull: manifest, configuration and the layers the store lacks, each verified on its way to disk.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::manifest::{Descriptor, ImageConfig, Manifest};
use super::reference::Reference;
use super::registry::Registry;
use super::store::ImageStore;
use super::types::{Credential, RegistryConfig};
use super::unpack;

/// Pieces of a download that may wait for the unpacker.
const CHUNKS: usize = 16;

/// The documents of a pulled image; its layers are in the store.
pub struct Pulled {
    /// Digest the reference led to (an index or a manifest).
    pub top_digest: String,
    /// Digest of the platform's manifest.
    pub manifest_digest: String,
    /// The platform's manifest.
    pub manifest: Vec<u8>,
    /// Digest of the image configuration: the image's id.
    pub config_digest: String,
    /// The image configuration.
    pub config: Vec<u8>,
}

fn verified(bytes: Vec<u8>, digest: &str) -> Result<Vec<u8>, String> {
    let got = unpack::digest_of(&bytes);
    if got == digest { Ok(bytes) } else { Err(format!("{digest} arrived as {got}: digest does not match")) }
}

/// Pulls what `reference` names.
pub async fn pull(
    store: &ImageStore,
    reference: &Reference,
    config: &RegistryConfig,
    credentials: &[Credential],
) -> Result<Pulled, String> {
    let registry = Registry::new(reference, config, credentials)?;
    let mut text = registry.manifest(reference.version()).await?;
    let top_digest = unpack::digest_of(&text);
    if let Some(digest) = &reference.digest {
        text = verified(text, digest)?;
    }
    let parse = |text: &[u8]| serde_json::from_slice::<Manifest>(text).map_err(|e| format!("manifest: {e}"));
    let mut manifest = parse(&text)?;
    if !manifest.manifests.is_empty() {
        let chosen = ImageStore::platform(&manifest.manifests)?.digest.clone();
        text = verified(registry.manifest(&chosen).await?, &chosen)?;
        manifest = parse(&text)?;
    }
    let config = manifest.config.ok_or("the manifest has no image configuration")?;
    let config_text = verified(registry.document(&config.digest).await?, &config.digest)?;
    let image: ImageConfig = serde_json::from_slice(&config_text).map_err(|e| format!("image configuration: {e}"))?;
    if image.rootfs.diff_ids.len() != manifest.layers.len() {
        return Err("the image configuration and the manifest differ in their number of layers".to_owned());
    }
    for (layer, diff_id) in manifest.layers.iter().zip(&image.rootfs.diff_ids) {
        if !super::reference::is_digest(diff_id) || !super::reference::is_digest(&layer.digest) {
            return Err(format!("layer {} / {diff_id}: not a sha256 digest", layer.digest));
        }
        if !store.has_layer(diff_id) {
            fetch(store, &registry, layer, diff_id).await?;
        }
    }
    Ok(Pulled {
        top_digest,
        manifest_digest: unpack::digest_of(&text),
        manifest: text,
        config_digest: config.digest,
        config: config_text,
    })
}

/// Downloads and unpacks one layer at once, through a bounded channel.
async fn fetch(store: &ImageStore, registry: &Registry, layer: &Descriptor, diff_id: &str) -> Result<(), String> {
    let mut response = registry.blob(&layer.digest).await?;
    let (tx, rx) = mpsc::channel::<io::Result<Bytes>>(CHUNKS);
    let target = store.layer_dir(diff_id);
    let (media_type, digest, diff_id) = (layer.media_type.clone(), layer.digest.clone(), diff_id.to_owned());
    let unpacking = tokio::task::spawn_blocking(move || {
        place(&target, |dir| unpack::unpack(Chunks::new(rx), &media_type, &digest, &diff_id, dir))
    });
    loop {
        let item = match response.chunk().await {
            Ok(Some(chunk)) => Ok(chunk),
            Ok(None) => break,
            Err(error) => Err(io::Error::other(error)),
        };
        let failed = item.is_err();
        // an unpacker that has given up says why itself
        if tx.send(item).await.is_err() || failed {
            break;
        }
    }
    drop(tx);
    unpacking.await.map_err(|e| format!("unpacking layer {}: {e}", layer.digest))?
}

/// Fills `<target>.tmp/diff`, marks it complete, syncs and renames it.
fn place(target: &Path, fill: impl FnOnce(&Path) -> Result<u64, String>) -> Result<(), String> {
    let temporary = target.with_extension("tmp");
    let failed = |e: io::Error| format!("storing layer {}: {e}", target.display());
    let _ = fs::remove_dir_all(&temporary);
    fs::create_dir_all(temporary.join("diff")).map_err(failed)?;
    let result = fill(&temporary.join("diff")).and_then(|size| {
        let root = File::open(&temporary).map_err(failed)?;
        nix::unistd::syncfs(&root).map_err(|e| failed(e.into()))?;
        let mut mark = File::create(temporary.join("complete")).map_err(failed)?;
        mark.write_all(size.to_string().as_bytes()).and_then(|()| mark.sync_all()).map_err(failed)?;
        let _ = fs::remove_dir_all(target);
        fs::rename(&temporary, target).map_err(failed)
    });
    if result.is_err() {
        let _ = fs::remove_dir_all(&temporary);
    }
    result
}

/// A download as a blocking reader.
struct Chunks {
    rx: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Chunks {
    fn new(rx: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self { rx, current: Bytes::new() }
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.rx.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let n = buffer.len().min(self.current.len());
        buffer[..n].copy_from_slice(&self.current.split_to(n));
        Ok(n)
    }
}
