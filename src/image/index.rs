//! Which images there are: an OCI image layout of the documents (`index.json`, `blobs/sha256`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::digest::{hex, is_digest, is_hex};
use super::durable::{sync_dir, write_whole};
use super::layers::Layers;
use super::manifest::{ImageConfig, Manifest};
use super::pull::Pulled;
use super::reference::Reference;
use super::types::{Image, ImageError, ImageProcess};

/// Annotation of an entry: the name it was pulled by.
const NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation of an entry: the digest its name led to.
const PULLED: &str = "io.pikelet.image.digest";

fn io_error(what: String) -> impl FnOnce(io::Error) -> ImageError {
    move |source| ImageError::Io { what, source }
}

/// The documents of a store. One writer at a time.
pub struct Index {
    dir: PathBuf,
}

impl Index {
    /// Opens (and where needed creates) the layout in `dir`; what an earlier run wrote half is removed.
    pub fn open(dir: PathBuf) -> Result<Self, ImageError> {
        let index = Self { dir };
        let open = || {
            fs::create_dir_all(index.blobs())?;
            for dir in [index.dir.clone(), index.blobs()] {
                for entry in fs::read_dir(dir)? {
                    let path = entry?.path();
                    if path.extension().is_some_and(|e| e == "tmp") {
                        fs::remove_file(path)?;
                    }
                }
            }
            write_whole(&index.dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)
        };
        open().map_err(io_error(format!("opening the image store {}", index.dir.display())))?;
        Ok(index)
    }

    fn blobs(&self) -> PathBuf {
        self.dir.join("blobs/sha256")
    }

    fn path(&self) -> PathBuf {
        self.dir.join("index.json")
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.blobs().join(hex(digest))
    }

    fn read(&self) -> Result<Vec<Value>, ImageError> {
        let path = self.path();
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(io_error(format!("reading {}", path.display())))?,
        };
        let index: Value =
            serde_json::from_slice(&text).map_err(|e| io_error(format!("reading {}", path.display()))(e.into()))?;
        Ok(index["manifests"].as_array().cloned().unwrap_or_default())
    }

    fn write(&self, entries: &[Value]) -> Result<(), ImageError> {
        let index =
            json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries});
        let write = |path: &Path| write_whole(path, index.to_string().as_bytes()).and_then(|()| sync_dir(&self.dir));
        write(&self.path()).map_err(io_error(format!("writing {}", self.path().display())))
    }

    fn image(&self, layers: &Layers, entries: &[Value], digest: &str) -> Option<Image> {
        let manifest: Manifest = serde_json::from_slice(&fs::read(self.blob(digest)).ok()?).ok()?;
        let id = manifest.config?.digest;
        let config: ImageConfig = serde_json::from_slice(&fs::read(self.blob(&id)).ok()?).ok()?;
        let diff_ids = config.rootfs.diff_ids;
        let sizes: Option<Vec<u64>> = diff_ids.iter().map(|l| layers.size(l)).collect();
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
            size: sizes?.iter().sum(),
            layers: diff_ids,
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

    /// The image a reference (tag, digest or image id) names, if it is whole.
    pub fn get(&self, layers: &Layers, reference: &str) -> Result<Option<Image>, ImageError> {
        if is_digest(reference) {
            return Ok(self.list(layers)?.into_iter().find(|i| i.id == reference));
        }
        let entries = self.read()?;
        let wanted = Reference::parse(reference)?;
        let name = wanted.canonical();
        let found = entries.iter().find(|e| {
            e["annotations"][NAME] == json!(name)
                || wanted
                    .digest
                    .as_ref()
                    .is_some_and(|d| e["annotations"][PULLED] == json!(d) || e["digest"] == json!(d))
        });
        Ok(found.and_then(|e| e["digest"].as_str()).and_then(|d| self.image(layers, &entries, d)))
    }

    /// Every whole image.
    pub fn list(&self, layers: &Layers) -> Result<Vec<Image>, ImageError> {
        let entries = self.read()?;
        let mut images: BTreeMap<String, Image> = BTreeMap::new();
        let digests: BTreeSet<&str> = entries.iter().filter_map(|e| e["digest"].as_str()).collect();
        for image in digests.into_iter().filter_map(|d| self.image(layers, &entries, d)) {
            if let Some(known) = images.get_mut(&image.id) {
                known.repo_tags.extend(image.repo_tags);
                known.repo_digests.extend(image.repo_digests);
            } else {
                images.insert(image.id.clone(), image);
            }
        }
        Ok(images.into_values().collect())
    }

    /// Adds a pulled image under its name; its layers are in the store.
    pub fn add(&self, name: &str, pulled: &Pulled) -> Result<(), ImageError> {
        for (digest, text) in [(&pulled.manifest_digest, &pulled.manifest), (&pulled.config_digest, &pulled.config)] {
            let path = self.blob(digest);
            write_whole(&path, text).map_err(io_error(format!("writing {}", path.display())))?;
        }
        sync_dir(&self.blobs()).map_err(io_error(format!("writing {}", self.blobs().display())))?;
        let old = self.read()?;
        let entry = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": pulled.manifest_digest,
            "size": pulled.manifest.len(),
            "annotations": {NAME: name, PULLED: pulled.top_digest},
        });
        // a name that led to the same before costs no write
        if old.contains(&entry) {
            return Ok(());
        }
        let mut entries = old;
        entries.retain(|e| e["annotations"][NAME] != json!(name));
        entries.push(entry);
        self.write(&entries)
    }

    /// Takes out the entries of which `gone` is true (by image, if it is whole, and name), and documents nobody needs.
    pub fn remove(&self, layers: &Layers, gone: impl Fn(Option<&Image>, &str) -> bool) -> Result<(), ImageError> {
        let old = self.read()?;
        let mut kept = old.clone();
        kept.retain(|entry| {
            let image = entry["digest"].as_str().and_then(|d| self.image(layers, &old, d));
            !gone(image.as_ref(), entry["annotations"][NAME].as_str().unwrap_or_default())
        });
        self.write(&kept)?;
        let mut needed = BTreeSet::new();
        for digest in kept.iter().filter_map(|e| e["digest"].as_str()) {
            let manifest: Option<Manifest> =
                fs::read(self.blob(digest)).ok().and_then(|t| serde_json::from_slice(&t).ok());
            needed.extend(manifest.and_then(|m| m.config).map(|c| hex(&c.digest).to_owned()));
            needed.insert(hex(digest).to_owned());
        }
        let sweep = || {
            for entry in fs::read_dir(self.blobs())? {
                let entry = entry?;
                if entry.file_name().to_str().is_some_and(|n| is_hex(n) && !needed.contains(n)) {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        sweep().map_err(io_error(format!("removing documents from {}", self.blobs().display())))
    }
}
