//! One pull: manifest, configuration and the layers the store lacks, each verified on its way to disk.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, try_join_all};

use super::credentials::Credential;
use super::digest::{is_digest, matches};
use super::download;
use super::hashed::digest_of;
use super::layers::Pins;
use super::manifest::Descriptor;
use super::platform::Machine;
use super::reference::Reference;
use super::registry::Registry;
use super::resolve::{Documents, Start, Use, resolve};
use super::store::ImageStore;

/// The documents of a pulled image; its layers are in the store.
pub struct Pulled {
    /// Digest the reference led to (an index or a manifest), where there is a registry that knows it.
    pub top_digest: Option<String>,
    /// Garbage collection is to leave it alone.
    pub pinned: bool,
    /// Digest of the platform's manifest.
    pub manifest_digest: String,
    /// The platform's manifest.
    pub manifest: Vec<u8>,
    /// Digest of the image configuration: the image's id.
    pub config_digest: String,
    /// The image configuration.
    pub config: Vec<u8>,
    /// The login its manifest was had with, if it was had from a registry with one.
    pub login: Option<Credential>,
    /// Keeps layers and blobs until the image is in the index.
    pub _pins: Vec<Pins>,
}

/// Most layers of an image: a container's root file system has no room for more (overlayfs takes 500).
pub const MOST_LAYERS: usize = 500;

/// Refuses a document that is not the one meant.
pub fn verified(bytes: Vec<u8>, digest: &str) -> Result<Vec<u8>, String> {
    matches(digest, &digest_of(&bytes)).map(|()| bytes)
}

/// Refuses what is no digest: it becomes a part of an address.
fn digest(text: &str) -> Result<&str, String> {
    if is_digest(text) { Ok(text) } else { Err(format!("{text:?} is not a sha256 digest")) }
}

/// The documents of a registry; those that the store has are not asked for.
struct Remote<'a> {
    store: &'a ImageStore,
    registry: &'a Registry,
}

impl Documents for Remote<'_> {
    fn manifest<'a>(&'a self, wanted: &'a str) -> BoxFuture<'a, Result<Vec<u8>, String>> {
        async move {
            match self.store.document(digest(wanted)?).await {
                Some(text) => Ok(text),
                None => verified(self.registry.manifest(wanted).await?, wanted),
            }
        }
        .boxed()
    }

    fn config<'a>(&'a self, wanted: &'a str) -> BoxFuture<'a, Result<Vec<u8>, String>> {
        async move {
            match self.store.document(digest(wanted)?).await {
                Some(text) => Ok(text),
                None => verified(self.registry.document(wanted).await?, wanted),
            }
        }
        .boxed()
    }
}

/// Pulls what `reference` names.
pub async fn pull(
    store: &ImageStore,
    reference: &Reference,
    registry: Registry,
    wanted: Use,
) -> Result<Pulled, String> {
    // what is here is asked for by its digest alone: for a container that starts again and again, nothing else is sent
    if store.knows(reference).await
        && let Some(digest) = registry.digest(reference.version()).await?
        && reference.digest.as_ref().is_none_or(|wanted| *wanted == digest)
        && let Some(found) = store.kept(&digest, wanted).await
    {
        return Ok(Pulled { login: registry.login().cloned(), ..found });
    }
    let mut top = registry.manifest(reference.version()).await?;
    let login = registry.login().cloned();
    let top_digest = digest_of(&top);
    if let Some(digest) = &reference.digest {
        top = verified(top, digest)?;
    }
    let found = resolve(Start::Text(top), &Machine::here(), wanted, &Remote { store, registry: &registry }).await?;
    let (manifest, diff_ids) = (found.manifest, found.image.rootfs.diff_ids);
    check(&manifest.layers, &diff_ids)?;
    let blobs: Vec<String> = manifest.layers.iter().map(|l| l.digest.clone()).collect();
    let pins = vec![store.layers().pin(&diff_ids), store.layers().pin(&blobs)];
    store.wants(reference.canonical(), manifest.layers.iter().cloned().zip(diff_ids.iter().cloned()).collect());
    let registry = Arc::new(registry);
    let wanted = manifest.layers.iter().zip(&diff_ids);
    let host = &reference.host;
    try_join_all(wanted.map(|(layer, diff_id)| obtain(store, host, &registry, layer, diff_id))).await?;
    Ok(Pulled {
        top_digest: Some(top_digest),
        pinned: false,
        manifest_digest: digest_of(&found.text),
        manifest: found.text,
        config_digest: found.config_digest,
        config: found.config_text,
        login,
        _pins: pins,
    })
}

/// Refuses layers that cannot be those of an image.
fn check(layers: &[Descriptor], diff_ids: &[String]) -> Result<(), String> {
    if diff_ids.len() != layers.len() {
        return Err("the image configuration and the manifest differ in their number of layers".to_owned());
    }
    if diff_ids.len() > MOST_LAYERS {
        return Err(format!("the image has {} layers; at most {MOST_LAYERS} can be used", diff_ids.len()));
    }
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        if !is_digest(diff_id) || !is_digest(&layer.digest) {
            return Err(format!("layer {} / {diff_id}: not a sha256 digest", layer.digest));
        }
    }
    Ok(())
}

/// Waits until a layer is in the store, by this pull or by another of the same registry `host` that needs it too.
async fn obtain(
    store: &ImageStore,
    host: &str,
    registry: &Arc<Registry>,
    layer: &Descriptor,
    diff_id: &str,
) -> Result<(), String> {
    loop {
        if store.sink().has(&layer.digest, diff_id) {
            return Ok(());
        }
        let start = || {
            let (sink, slots) = (store.sink().clone(), store.layer_slots());
            let (registry, layer, diff_id) = (registry.clone(), layer.clone(), diff_id.to_owned());
            let host = host.to_owned();
            let meter = store.meter(&layer);
            async move {
                let _slot = slots.take(&host).await?;
                if sink.has(&layer.digest, &diff_id) {
                    return Ok(());
                }
                download::fetch(sink, &registry, layer, diff_id, &meter).await
            }
            .boxed()
        };
        let (work, mine) = store.layer_flights().join((host.to_owned(), diff_id.to_owned()), start);
        match work.await {
            // another pull may have needed less, and its failure may be its login's
            _ if !mine => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_so_many_layers_at_most() {
        let one = format!("sha256:{}", "a".repeat(64));
        let layer: Descriptor = serde_json::from_value(serde_json::json!({"digest": one, "size": 1})).unwrap();
        let of = |count: usize| check(&vec![layer.clone(); count], &vec![one.clone(); count]);
        assert_eq!(of(MOST_LAYERS), Ok(()));
        assert!(of(MOST_LAYERS + 1).unwrap_err().contains("at most 500"));
        assert!(check(std::slice::from_ref(&layer), &[]).unwrap_err().contains("number of layers"));
        assert!(check(&[layer], &["sha256:a".to_owned()]).unwrap_err().contains("not a sha256 digest"));
    }

    #[test]
    fn what_arrived_instead_is_told_nobody() {
        let error = verified(b"secret".to_vec(), "sha256:0").unwrap_err();
        assert!(error.contains("sha256:0") && !error.contains(&digest_of(b"secret")), "{error}");
        assert!(digest("sha256:../../../etc").is_err());
    }
}
