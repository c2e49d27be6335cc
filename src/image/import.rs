//! The images of an archive under their names: which there are, by an OCI layout's `index.json` or docker's `manifest.json`.

use std::collections::BTreeMap;

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use serde::Deserialize;
use serde_json::{Value, json};

use super::archive::{Contents, Layer};
use super::digest::is_digest;
use super::hashed::digest_of;
use super::manifest::{Descriptor, ImageConfig};
use super::platform::Machine;
use super::pull::Pulled;
use super::reference::Reference;
use super::resolve::{Documents, Start, Use, resolve};

/// Annotations that name an image, first the one that counts: containerd's, then that of the OCI Image Layout.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// An image of an archive: its name as written there, and what it is, or why it cannot be had.
pub type Found = (Option<String>, Result<Pulled, String>);

/// An entry of docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Docker {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The images of an archive, for a machine. They rely on its layers: keep the pins.
pub fn images(contents: &Contents, machine: &Machine) -> Result<Vec<Found>, String> {
    fn parse<'a, T: Deserialize<'a>>(name: &str, text: &'a [u8]) -> Result<T, String> {
        serde_json::from_slice(text).map_err(|e| format!("{name} of the archive: {e}"))
    }
    // newer archives of docker have both, and mean the same
    if contents.document("oci-layout").is_some()
        && let Some(index) = contents.document("index.json")
    {
        let index: Value = parse("index.json", index)?;
        return Ok(of_layout(contents, &index, machine));
    }
    let list = contents
        .document("manifest.json")
        .ok_or("the archive has no index.json and no manifest.json: it is no OCI or docker archive, or was cut off")?;
    let mut found = Vec::new();
    for image in parse::<Vec<Docker>>("manifest.json", list)? {
        let names = image.repo_tags.clone().unwrap_or_default();
        let names = if names.is_empty() { vec![None] } else { names.into_iter().map(Some).collect() };
        found.extend(names.into_iter().map(|name| (name, of_docker(contents, &image, machine))));
    }
    Ok(found)
}

fn of_layout(contents: &Contents, index: &Value, machine: &Machine) -> Vec<Found> {
    // platforms of one image may stand side by side under one name
    let mut named: BTreeMap<Option<String>, Vec<Descriptor>> = BTreeMap::new();
    for entry in index["manifests"].as_array().into_iter().flatten() {
        let name = NAMES.iter().find_map(|key| entry["annotations"][*key].as_str()).map(str::to_owned);
        if let Ok(descriptor) = serde_json::from_value(entry.clone()) {
            named.entry(name).or_default().push(descriptor);
        }
    }
    let image = |entries: Vec<Descriptor>| {
        let (one, start) = match entries.as_slice() {
            [one] => (Some(one.digest.clone()), Start::Text(contents.blob(&one.digest)?.to_vec())),
            _ => (None, Start::Entries(entries)),
        };
        let found = resolve(start, machine, Use::Run, contents).now_or_never();
        let found = found.ok_or("reading the archive: its documents are not in memory")??;
        let manifest = found.manifest;
        let diff_ids = found.image.rootfs.diff_ids;
        same_count(&diff_ids, manifest.layers.len())?;
        for (layer, diff_id) in manifest.layers.iter().zip(&diff_ids) {
            let found = contents.layer_at(&format!("blobs/{}", layer.digest.replace(':', "/")))?;
            agree(found, Some(&layer.digest), diff_id)?;
        }
        Ok(pulled(one.or(found.first), found.text, found.config_text))
    };
    named.into_iter().map(|(name, entries)| (name, image(entries))).collect()
}

impl Documents for Contents {
    fn manifest<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Vec<u8>, String>> {
        ready(self.blob(digest).map(<[u8]>::to_vec)).boxed()
    }

    fn config<'a>(&'a self, digest: &'a str) -> BoxFuture<'a, Result<Vec<u8>, String>> {
        self.manifest(digest)
    }
}

fn of_docker(contents: &Contents, image: &Docker, machine: &Machine) -> Result<Pulled, String> {
    let config = &image.config;
    let text = contents.document(config).ok_or_else(|| format!("{config} is not in the archive"))?;
    let digest = digest_of(text);
    // it is called by its digest, or was changed
    let stem = config.rsplit('/').next().unwrap_or(config).trim_end_matches(".json");
    let says = format!("sha256:{stem}");
    if is_digest(&says) && says != digest {
        return Err(format!("{config} has the digest {digest}: digest does not match"));
    }
    let made: ImageConfig = serde_json::from_slice(text).map_err(|e| format!("image configuration: {e}"))?;
    machine.refusal(&made.platform).map_or(Ok(()), Err)?;
    let diff_ids = made.rootfs.diff_ids;
    same_count(&diff_ids, image.layers.len())?;
    let mut layers = Vec::new();
    for (name, diff_id) in image.layers.iter().zip(&diff_ids) {
        let layer = contents.layer_at(name)?;
        agree(layer, None, diff_id)?;
        let media_type = layer.compression.layer_media_type();
        layers.push(json!({"mediaType": media_type, "digest": layer.digest, "size": layer.size}));
    }
    // the archive has none
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": text.len()},
        "layers": layers,
    });
    Ok(pulled(None, manifest.to_string().into_bytes(), text.to_vec()))
}

fn same_count(diff_ids: &[String], layers: usize) -> Result<(), String> {
    if diff_ids.len() == layers {
        return Ok(());
    }
    Err("the image configuration and the manifest differ in their number of layers".to_owned())
}

fn agree(layer: &Layer, digest: Option<&str>, diff_id: &str) -> Result<(), String> {
    if digest.is_some_and(|d| d != layer.digest) {
        return Err(format!("layer {} arrived as {}: digest does not match", digest.unwrap_or_default(), layer.digest));
    }
    if layer.diff_id != diff_id {
        let (blob, got) = (&layer.digest, &layer.diff_id);
        return Err(format!("layer {blob} unpacks to {got}, its image says {diff_id}: digest does not match"));
    }
    Ok(())
}

fn pulled(top_digest: Option<String>, manifest: Vec<u8>, config: Vec<u8>) -> Pulled {
    Pulled {
        top_digest,
        pinned: false,
        manifest_digest: digest_of(&manifest),
        manifest,
        config_digest: digest_of(&config),
        config,
        login: None,
        _pins: Vec::new(),
    }
}

/// What an image of an archive is called in the store. `wanted` is what a person chose for the only one, or the
/// repository of those that have no more than a tag; `import-<date>` is the repository where nobody chose.
pub fn name(written: Option<&str>, wanted: Option<&str>, only: bool, date: &str) -> Result<String, String> {
    let parse = |text: &str| Reference::parse(text).map_err(|e| format!("name {:?}: {}", e.reference, e.message));
    let full = written.filter(|name| name.contains(['/', ':']));
    let tag = written.filter(|_| full.is_none());
    let repository = |repository: &str, tag: &str| parse(&format!("{repository}:{tag}")).map(|r| r.canonical());
    match (wanted, full, tag) {
        (Some(wanted), _, tag) if only => match tag.filter(|_| !has_tag(wanted)) {
            Some(tag) => repository(wanted, tag),
            None => Ok(parse(wanted)?.canonical()),
        },
        (Some(wanted), None, Some(tag)) if !has_tag(wanted) => repository(wanted, tag),
        (Some(_), ..) => Err("the archive has several images: --name can name only one".to_owned()),
        (None, Some(full), _) => Ok(parse(full)?.canonical()),
        (None, None, Some(tag)) => repository(&format!("import-{date}"), tag),
        (None, None, None) => Err("the archive does not name it: give it a name with --name".to_owned()),
    }
}

fn has_tag(name: &str) -> bool {
    name.contains('@') || name.rsplit('/').next().is_some_and(|last| last.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_called_as_the_archive_or_the_person_says() {
        let of = |written, wanted, only| name(written, wanted, only, "2026-01-02").unwrap_or_else(|e| e);
        assert_eq!(of(Some("r.example/a:1"), None, false), "r.example/a:1");
        assert_eq!(of(Some("busybox:1"), None, false), "docker.io/library/busybox:1");
        assert_eq!(of(Some("1.36"), None, false), "docker.io/library/import-2026-01-02:1.36");
        assert_eq!(of(Some("1.36"), Some("r.example/a"), true), "r.example/a:1.36");
        assert_eq!(of(Some("1.36"), Some("r.example/a"), false), "r.example/a:1.36");
        assert_eq!(of(Some("x/y:1"), Some("r.example/a:2"), true), "r.example/a:2");
        assert_eq!(of(None, Some("r.example:5000/a"), true), "r.example:5000/a:latest");
        assert!(of(Some("x/y:1"), Some("r.example/a"), false).contains("only one"));
        assert!(of(None, None, true).contains("--name"));
        assert!(of(Some("UP/x:1"), None, true).contains("invalid reference"));
    }
}
