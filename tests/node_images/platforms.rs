//! Which image of an index is taken, and images of another processor.

use std::fs;

use pikelet::image::Use;
use serde_json::{Value, json};

use crate::scene::*;

fn unsaid(mut entry: Value) -> Value {
    entry.as_object_mut().unwrap().remove("platform");
    entry
}

fn layer(name: &str) -> (&'static str, Vec<u8>, Vec<u8>) {
    let mut tar = tar::Builder::new(Vec::new());
    entry(&mut tar, "which", 0o644, 0, tar::EntryType::Regular, name);
    let tar = tar.into_inner().unwrap();
    (GZIP, gzip(&tar), tar)
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_without_platform_and_nested_indexes_are_followed() {
    let Some(mut scene) = scene("indexes") else { return };
    let registry = scene.registry(false);
    let store = scene.store("store", &registry, insecure()).await;
    let layout = scene.layout("layout");
    let other = unsaid(layout.manifest("riscv64", "", &[layer("other")]));
    let plain = unsaid(layout.manifest(go_arch(), "", &[layer("plain")]));
    let said = layout.manifest(go_arch(), "", &[layer("said")]);
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let empty = layout.blob("application/vnd.oci.empty.v1+json", b"{}");
    let proof = json!({"schemaVersion": 2, "mediaType": kind, "config": empty, "layers": [empty]});
    let mut proof = layout.blob(kind, proof.to_string().as_bytes());
    proof["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let inner = layout.index(&[proof.clone(), said.clone()]);
    for (name, entries, right) in [
        ("unsaid", vec![other.clone(), plain.clone()], "plain"),
        ("said-first", vec![plain.clone(), said.clone()], "said"),
        ("nested", vec![other.clone(), inner.clone()], "said"),
        ("attested", vec![proof.clone(), plain.clone()], "plain"),
    ] {
        let top = layout.index(&entries);
        let all = [vec![proof.clone(), other.clone(), plain.clone(), said.clone(), inner.clone()], vec![top]].concat();
        put(&layout, &all, &registry, &format!("test/{name}:1")).await;
        let image =
            store.pull(&format!("{registry}/test/{name}:1"), &[]).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        let file = store.dir().join("layers").join(&image.layers[0][7..]).join("diff/which");
        assert_eq!(fs::read_to_string(file).unwrap(), right, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_another_processor_is_refused_before_its_layers_are_fetched() {
    let Some(mut scene) = scene("processor") else { return };
    let registry = scene.registry(false);
    let store = scene.store("store", &registry, insecure()).await;
    let layout = scene.layout("layout");
    let wrong = layout.manifest("s390x", "", &[layer("wrong")]);
    put(&layout, &[unsaid(wrong)], &registry, "test/wrong:1").await;
    let name = format!("{registry}/test/wrong:1");
    // a volume needs its files only
    let image = store.pull_for(&name, &[], Use::Read).await.unwrap();
    assert_eq!(image.layers.len(), 1);
    store.remove(&name).await.unwrap();
    let blob = sha256(&layer("wrong").1);
    let place = scene.dir.join("storage/docker/registry/v2/blobs/sha256").join(&blob[7..9]).join(&blob[7..]);
    fs::remove_dir_all(place).unwrap();
    let error = store.pull(&name, &[]).await.unwrap_err().to_string();
    let own = format!("the image is for linux/s390x, and this machine is linux/{}", go_arch());
    assert!(error.contains(&own), "{error}");
}
