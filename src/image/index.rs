//! Which images there are: an OCI image layout of the documents (`index.json`, `blobs/sha256`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tracing::warn;

use super::blobs::Blobs;
use super::digest::{hex, is_digest};
use super::hashed::digest_of;
use super::layers::{Gone, Layers};
use super::manifest::{ImageConfig, Manifest};
use super::platform::Platform;
use super::pull::Pulled;
use super::reference::Reference;
use super::sink::Sink;
use super::types::{Image, ImageError, ImageProcess};
use crate::files::{sync_dir, write_changed};

/// Annotation of an entry: the name it was pulled by.
const NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation of an entry: garbage collection leaves it alone.
const PINNED: &str = "io.pikelet.image.pinned";
/// Annotation of an entry: the digest its name led to.
const PULLED: &str = "io.pikelet.image.digest";

/// Bytes of the largest blob that may be a document.
const DOCUMENT: u64 = 4 << 20;
/// Media type of a manifest that does not say its own.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn io_error(what: String) -> impl FnOnce(io::Error) -> ImageError {
    move |source| ImageError::Io { what, source }
}

/// The documents of a store. One writer at a time.
pub struct Index {
    dir: PathBuf,
    blobs: Blobs,
}

impl Index {
    /// Opens (and where needed creates) the layout in `dir`.
    pub fn open(dir: PathBuf, blobs: Blobs) -> Result<Self, ImageError> {
        write_changed(&dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#, 0o600)
            .map(drop)
            .map_err(io_error(format!("opening the image store {}", dir.display())))?;
        Ok(Self { dir, blobs })
    }

    fn path(&self) -> PathBuf {
        self.dir.join("index.json")
    }

    fn read(&self) -> Result<Vec<Value>, ImageError> {
        let path = self.path();
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(io_error(format!("reading {}", path.display())))?,
        };
        match serde_json::from_slice::<Value>(&text) {
            Ok(index) => Ok(index["manifests"].as_array().cloned().unwrap_or_default()),
            Err(error) => self.rebuild(&error.to_string()),
        }
    }

    /// Sets an index aside that cannot be read as one (a card forgets), and makes another of the documents, so that nothing
    /// of the store is lost but the images' names: a pull that finds an image here gives it one again without a download.
    fn rebuild(&self, why: &str) -> Result<Vec<Value>, ImageError> {
        let (path, aside) = (self.path(), self.dir.join("index.json.broken"));
        fs::rename(&path, &aside).map_err(io_error(format!("setting {} aside", path.display())))?;
        let mut entries = Vec::new();
        for digest in self.blobs.digests().map_err(io_error(format!("listing blobs of {}", self.dir.display())))? {
            // layers may be kept there too
            let size = fs::metadata(self.blobs.path(&digest)).map_or(0, |meta| meta.len());
            if size > DOCUMENT {
                continue;
            }
            let Some((manifest, _)) = self.documents(&digest) else { continue };
            let media_type = manifest.media_type.as_deref().unwrap_or(MANIFEST);
            entries.push(json!({"mediaType": media_type, "digest": digest, "size": size}));
        }
        warn!(index = %path.display(), aside = %aside.display(), why, images = entries.len(),
            "the index of images cannot be read: made anew of the documents, without names");
        self.write(&entries)?;
        Ok(entries)
    }

    fn write(&self, entries: &[Value]) -> Result<(), ImageError> {
        let index =
            json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries});
        let write =
            |path: &Path| write_changed(path, index.to_string().as_bytes(), 0o600).and_then(|_| sync_dir(&self.dir));
        write(&self.path()).map_err(io_error(format!("writing {}", self.path().display())))
    }

    /// An image's manifest and configuration.
    fn documents(&self, digest: &str) -> Option<(Manifest, ImageConfig)> {
        let manifest: Manifest = serde_json::from_slice(&self.blobs.read(digest).ok()?).ok()?;
        let config = self.blobs.read(&manifest.config.as_ref()?.digest).ok()?;
        Some((manifest, serde_json::from_slice(&config).ok()?))
    }

    /// For which machine an image says it is.
    pub fn platform(&self, digest: &str) -> Option<Platform> {
        Some(self.documents(digest)?.1.platform)
    }

    fn image(&self, layers: &Layers, entries: &[Value], digest: &str) -> Option<Image> {
        let (manifest, config) = self.documents(digest)?;
        let id = manifest.config?.digest;
        let diff_ids = config.rootfs.diff_ids;
        let sizes: Option<Vec<u64>> = diff_ids.iter().map(|l| layers.size(l)).collect();
        let process = config.config.unwrap_or_default();
        let (mut repo_tags, mut repo_digests, mut pinned) = (Vec::new(), Vec::new(), false);
        for entry in entries.iter().filter(|e| e["digest"] == json!(digest)) {
            pinned |= is_pinned(entry);
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
            manifest: digest.to_owned(),
            pinned,
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
                volumes: process.volumes.unwrap_or_default().into_keys().collect(),
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

    /// The image to which a digest led before, if nothing of it is missing. It is kept while that lives.
    pub fn kept(&self, sink: &Sink, digest: &str) -> Result<Option<Pulled>, ImageError> {
        let entries = self.read()?;
        let found = entries.iter().find(|e| e["annotations"][PULLED] == json!(digest));
        let Some(manifest_digest) = found.and_then(|e| e["digest"].as_str()) else { return Ok(None) };
        let Some((manifest, config)) = self.documents(manifest_digest) else { return Ok(None) };
        let Some(config_digest) = manifest.config.map(|config| config.digest) else { return Ok(None) };
        let read = |digest: &str| self.blobs.read(digest).ok().filter(|text| digest_of(text) == digest);
        let Some((text, config_text)) = read(manifest_digest).zip(read(&config_digest)) else { return Ok(None) };
        let (diff_ids, blobs) = (config.rootfs.diff_ids, manifest.layers.into_iter().map(|l| l.digest));
        let blobs: Vec<String> = blobs.collect();
        // pinned, then looked at: no removal can come between
        let pins = vec![sink.layers.pin(&diff_ids), sink.layers.pin(&blobs)];
        let whole = blobs.len() == diff_ids.len() && blobs.iter().zip(&diff_ids).all(|(b, d)| sink.has(b, d));
        Ok(whole.then(|| Pulled {
            top_digest: Some(digest.to_owned()),
            pinned: false,
            manifest_digest: manifest_digest.to_owned(),
            manifest: text,
            config_digest,
            config: config_text,
            login: None,
            _pins: pins,
        }))
    }

    /// Every whole image.
    pub fn list(&self, layers: &Layers) -> Result<Vec<Image>, ImageError> {
        let entries = self.read()?;
        let mut images: BTreeMap<String, Image> = BTreeMap::new();
        let digests: BTreeSet<&str> = entries.iter().filter_map(|e| e["digest"].as_str()).collect();
        for image in digests.into_iter().filter_map(|d| self.image(layers, &entries, d)) {
            if let Some(known) = images.get_mut(&image.id) {
                known.pinned |= image.pinned;
                known.repo_tags.extend(image.repo_tags);
                known.repo_digests.extend(image.repo_digests);
            } else {
                images.insert(image.id.clone(), image);
            }
        }
        Ok(images.into_values().collect())
    }

    /// The image of a manifest, if it is whole.
    pub fn of_manifest(&self, layers: &Layers, digest: &str) -> Option<Image> {
        self.image(layers, &[], digest)
    }

    /// Adds an image under its name; its layers are in the store. What is pinned stays so. The one that had the name before
    /// (by the digest of its manifest) stays under its digest if it is `in_use`: containers start from it again.
    pub fn add(&self, name: &str, pulled: &Pulled, in_use: impl Fn(&str) -> bool) -> Result<(), ImageError> {
        for (digest, text) in [(&pulled.manifest_digest, &pulled.manifest), (&pulled.config_digest, &pulled.config)] {
            let write = self.blobs.write(digest, text);
            write.map_err(io_error(format!("writing {}", self.blobs.path(digest).display())))?;
        }
        self.blobs.sync().map_err(io_error(format!("writing blobs of {}", self.dir.display())))?;
        let old = self.read()?;
        let before = old.iter().find(|e| e["annotations"][NAME] == json!(name));
        let mut annotations = json!({NAME: name});
        if let Some(digest) = &pulled.top_digest {
            annotations[PULLED] = json!(digest);
        }
        if pulled.pinned || before.is_some_and(is_pinned) {
            annotations[PINNED] = json!("true");
        }
        let media_type = serde_json::from_slice(&pulled.manifest).ok().and_then(|m: Manifest| m.media_type);
        let entry = json!({
            "mediaType": media_type.as_deref().unwrap_or(MANIFEST),
            "digest": pulled.manifest_digest,
            "size": pulled.manifest.len(),
            "annotations": annotations,
        });
        // a name that led to the same before costs no write
        if before == Some(&entry) {
            return Ok(());
        }
        let moved = before.filter(|e| e["digest"] != entry["digest"]).and_then(|old| {
            let led_to = old["annotations"][PULLED].as_str()?;
            let by_digest = format!("{}@{led_to}", Reference::parse(name).ok()?.name());
            let mut kept = old.clone();
            kept["annotations"] = json!({NAME: by_digest, PULLED: led_to});
            in_use(old["digest"].as_str()?).then_some(kept)
        });
        let mut entries = old.clone();
        let known = |kept: &Value| entries.iter().any(|e| e["annotations"][NAME] == kept["annotations"][NAME]);
        let moved = moved.filter(|kept| !known(kept));
        entries.retain(|e| e["annotations"][NAME] != json!(name));
        entries.extend(moved);
        entries.push(entry);
        self.write(&entries)
    }

    /// The layers whose compressed form is known from an image's manifest: blob digest to diff id.
    pub fn known(&self) -> Result<HashMap<String, String>, ImageError> {
        let mut known = HashMap::new();
        for digest in self.read()?.iter().filter_map(|e| e["digest"].as_str()) {
            let Some((manifest, config)) = self.documents(digest) else { continue };
            let layers = manifest.layers.into_iter().map(|l| l.digest);
            known.extend(layers.zip(config.rootfs.diff_ids));
        }
        Ok(known)
    }

    /// Takes out the entries of which `gone` is true (by image, if it is whole, and name), and the blobs nobody needs;
    /// those are to be cleared.
    pub fn remove(&self, layers: &Layers, gone: impl Fn(Option<&Image>, &str) -> bool) -> Result<Gone, ImageError> {
        let old = self.read()?;
        let mut kept = old.clone();
        kept.retain(|entry| {
            let image = entry["digest"].as_str().and_then(|d| self.image(layers, &old, d));
            !gone(image.as_ref(), entry["annotations"][NAME].as_str().unwrap_or_default())
        });
        self.write(&kept)?;
        self.sweep(layers)
    }

    /// Takes out the blobs of no image that nobody relies on; they are to be cleared.
    pub fn sweep(&self, layers: &Layers) -> Result<Gone, ImageError> {
        let mut needed = BTreeSet::new();
        for digest in self.read()?.iter().filter_map(|e| e["digest"].as_str()) {
            let manifest: Option<Manifest> =
                self.blobs.read(digest).ok().and_then(|text| serde_json::from_slice(&text).ok());
            needed.insert(hex(digest).to_owned());
            let Some(manifest) = manifest else { continue };
            let parts = manifest.config.iter().chain(&manifest.layers);
            needed.extend(parts.map(|part| hex(&part.digest).to_owned()));
        }
        let freed = self.blobs.sweep(|name| needed.contains(name) || layers.pinned(name));
        freed.map_err(io_error(format!("removing blobs of {}", self.dir.display())))
    }
}

fn is_pinned(entry: &Value) -> bool {
    entry["annotations"][PINNED] == json!("true")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::folder::Folder;

    #[test]
    fn an_index_that_cannot_be_read_is_made_anew_of_the_documents() {
        let folder = Folder::new();
        let dir = folder.path();
        let index = Index::open(dir.to_owned(), Blobs::open(dir).unwrap()).unwrap();
        let layers = Layers::open(dir.join("layers")).unwrap();
        let layer = "c".repeat(64);
        fs::create_dir_all(dir.join("layers").join(&layer)).unwrap();
        fs::write(dir.join("layers").join(&layer).join("complete"), "7").unwrap();
        let (manifest, config) = (format!("sha256:{}", "a".repeat(64)), format!("sha256:{}", "b".repeat(64)));
        let pulled = Pulled {
            manifest_digest: manifest.clone(),
            manifest: json!({"config": {"digest": config, "size": 1}, "layers": []}).to_string().into(),
            config_digest: config.clone(),
            config: json!({"rootfs": {"diff_ids": [format!("sha256:{layer}")]}}).to_string().into(),
            top_digest: None,
            pinned: false,
            login: None,
            _pins: Vec::new(),
        };
        index.add("r.example/app:1", &pulled, |_| false).unwrap();
        fs::write(dir.join("index.json"), "\0\0\0").unwrap();
        let images = index.list(&layers).unwrap();
        assert_eq!(images.iter().map(|i| (&i.id, &i.manifest)).collect::<Vec<_>>(), [(&config, &manifest)]);
        assert_eq!(fs::read(dir.join("index.json.broken")).unwrap(), b"\0\0\0");
        assert_eq!(index.sweep(&layers).unwrap().clear(), 0, "what is needed is known again");
        index.add("r.example/app:1", &pulled, |_| false).unwrap();
        assert_eq!(index.get(&layers, "r.example/app:1").unwrap().map(|i| i.id), Some(config));
    }
}
