//! Images out of the store, as one OCI archive: with the blobs they came in where those are kept, else with layers made
//! again of the unpacked ones, and so as a rule with other digests and another id.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tar::{Builder, Header};

use super::compression::Compression;
use super::digest::hex;
use super::hashed::{HashedWriter, digest_of};
use super::layers::Pins;
use super::manifest::Manifest;
use super::retar;
use super::sink::Sink;
use super::store::ImageStore;
use super::types::{Image, ImageError};

/// An image of an archive that is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Exported {
    /// Its name there.
    pub name: String,
    /// Its id there.
    pub id: String,
    /// Its id in the store.
    pub stored_id: String,
}

/// Bytes of an archive's blob.
enum Source {
    Document(Vec<u8>),
    Blob(PathBuf),
    Layer(PathBuf),
}

struct Blob {
    digest: String,
    size: u64,
    source: Source,
}

/// An archive in the making; what it is made of stays in the store until it is dropped.
pub struct Export {
    /// What is in it.
    pub images: Vec<Exported>,
    blobs: Vec<Blob>,
    entries: Vec<Value>,
    pins: Vec<Pins>,
}

impl ImageStore {
    /// Prepares an archive of images given by reference or id. Layers that have to be made again are read once for it.
    pub async fn export(&self, references: &[String]) -> Result<Export, ImageError> {
        let mut images = Vec::new();
        for reference in references {
            let image = self.get(reference).await?.ok_or_else(|| ImageError::NotFound(reference.clone()))?;
            let named = image.repo_tags.iter().find(|t| *t == reference).or(image.repo_tags.first()).cloned();
            images.push((named.unwrap_or_else(|| reference.clone()), image));
        }
        let sink = self.sink().clone();
        // pinned, then looked at: no removal can come between
        let pins = images.iter().map(|(_, image)| sink.layers.pin(&image.layers)).collect();
        let prepare = move || {
            let mut export = Export { images: Vec::new(), blobs: Vec::new(), entries: Vec::new(), pins };
            let mut made = HashMap::new();
            for (name, image) in &images {
                export.add(&sink, name, image, &mut made)?;
            }
            Ok(export)
        };
        let failed = |source| ImageError::Io { what: "reading images".to_owned(), source };
        tokio::task::spawn_blocking(prepare).await.map_err(io::Error::other).flatten().map_err(failed)
    }
}

impl Export {
    fn add(
        &mut self,
        sink: &Sink,
        name: &str,
        image: &Image,
        made: &mut HashMap<String, (String, u64)>,
    ) -> io::Result<()> {
        let manifest_text = sink.blobs.read(&image.manifest)?;
        let mut config_text = sink.blobs.read(&image.id)?;
        let manifest: Manifest = serde_json::from_slice(&manifest_text)?;
        let digests: Vec<String> = manifest.layers.iter().map(|l| l.digest.clone()).collect();
        self.pins.push(sink.layers.pin(&digests));
        let whole = digests.iter().all(|d| sink.blobs.has(d));
        let (text, media_type) = if whole {
            for layer in &manifest.layers {
                let path = sink.blobs.path(&layer.digest);
                let size = path.metadata()?.len();
                self.blobs.push(Blob { digest: layer.digest.clone(), size, source: Source::Blob(path) });
            }
            (manifest_text, manifest.media_type)
        } else {
            let mut layers = Vec::new();
            let mut diff_ids = Vec::new();
            for diff_id in &image.layers {
                let dir = sink.layers.diff(diff_id);
                if sink.layers.size(diff_id).is_none() {
                    return Err(io::Error::other(format!("layer {diff_id} is not in the store any more")));
                }
                let (digest, size) = match made.get(diff_id) {
                    Some(known) => known.clone(),
                    None => measured(&dir)?,
                };
                made.insert(diff_id.clone(), (digest.clone(), size));
                let media_type = Compression::None.layer_media_type();
                layers.push(json!({"mediaType": media_type, "digest": digest, "size": size}));
                diff_ids.push(digest.clone());
                self.blobs.push(Blob { digest, size, source: Source::Layer(dir) });
            }
            if diff_ids != image.layers {
                let mut config: Value = serde_json::from_slice(&config_text)?;
                config["rootfs"]["diff_ids"] = json!(diff_ids);
                config_text = config.to_string().into_bytes();
            }
            let kind = "application/vnd.oci.image.config.v1+json";
            let config = json!({"mediaType": kind, "digest": digest_of(&config_text), "size": config_text.len()});
            let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
            let manifest =
                json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers}).to_string();
            (manifest.into_bytes(), Some(media_type))
        };
        let id = digest_of(&config_text);
        let (digest, size) = (digest_of(&text), text.len() as u64);
        self.entries.push(json!({
            "mediaType": media_type.as_deref().unwrap_or("application/vnd.oci.image.manifest.v1+json"),
            "digest": digest,
            "size": size,
            "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name},
        }));
        let config_size = config_text.len() as u64;
        self.blobs.push(Blob { digest: id.clone(), size: config_size, source: Source::Document(config_text) });
        self.blobs.push(Blob { digest, size, source: Source::Document(text) });
        self.images.push(Exported { name: name.to_owned(), id, stored_id: image.id.clone() });
        Ok(())
    }

    /// Writes the archive.
    pub fn write(self, out: impl Write) -> io::Result<()> {
        let mut archive = Builder::new(out);
        let document = |archive: &mut Builder<_>, name: &str, text: &[u8]| {
            archive.append_data(&mut header(text.len() as u64), name, text)
        };
        document(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let mut written = BTreeSet::new();
        for blob in &self.blobs {
            if !written.insert(&blob.digest) {
                continue;
            }
            let name = format!("blobs/sha256/{}", hex(&blob.digest));
            match &blob.source {
                Source::Document(text) => document(&mut archive, &name, text)?,
                Source::Blob(path) => {
                    archive.append_data(&mut header(blob.size), name, File::open(path)?.take(blob.size))?;
                }
                Source::Layer(dir) => {
                    // its size is known: the archive's entry is written as it is made
                    let mut entry_header = header(blob.size);
                    entry_header.set_path(&name)?;
                    entry_header.set_cksum();
                    let out = archive.get_mut();
                    out.write_all(entry_header.as_bytes())?;
                    let mut layer = HashedWriter::new(&mut *out);
                    retar::write(dir, &mut layer)?;
                    if (layer.digest(), layer.count) != (blob.digest.clone(), blob.size) {
                        return Err(io::Error::other(format!("{} has changed meanwhile", dir.display())));
                    }
                    let padding = blob.size.next_multiple_of(512) - blob.size;
                    out.write_all(&[0; 512][..padding as usize])?;
                }
            }
        }
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": self.entries});
        document(&mut archive, "index.json", index.to_string().as_bytes())?;
        archive.into_inner()?.flush()
    }
}

/// Digest and size of a layer that is made again.
fn measured(dir: &std::path::Path) -> io::Result<(String, u64)> {
    let mut layer = HashedWriter::new(io::sink());
    retar::write(dir, &mut layer)?;
    Ok((layer.digest(), layer.count))
}

fn header(size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header
}
