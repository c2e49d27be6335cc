//! Archives of images: in and out, in every form, by skopeo and umoci; and those nobody should have made.

use std::fs;
use std::path::Path;
use std::process::Command;

use pikelet::image::{Image, ImageStore, Imported, Piece, StoreConfig};
use serde_json::json;
use tar::{Builder, EntryType, Header};
use tokio::sync::mpsc;

use crate::scene::*;

/// Imports bytes as they would come from a client.
async fn import(store: &ImageStore, archive: &[u8], name: Option<&str>) -> Result<Vec<Imported>, String> {
    let (tx, rx) = mpsc::channel::<Piece>(1);
    let pieces: Vec<_> = archive.chunks(100_000).map(bytes::Bytes::copy_from_slice).collect();
    tokio::spawn(async move {
        for piece in pieces {
            let _ = tx.send(Some(Ok(piece))).await;
        }
        let _ = tx.send(None).await;
    });
    store.import(rx, name.map(str::to_owned)).await.map_err(|e| e.to_string())
}

async fn one(store: &ImageStore, archive: &[u8], name: Option<&str>) -> Result<String, String> {
    let mut all = import(store, archive, name).await?;
    assert_eq!(all.len(), 1);
    let image = all.remove(0);
    image.result.map(|_| image.name)
}

fn skopeo(from: &str, to: &str) {
    let tls = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    let copied =
        Command::new("skopeo").args(["--insecure-policy", "copy", "--quiet"]).args(tls).args([from, to]).output();
    let copied = copied.unwrap();
    assert!(copied.status.success(), "{from} to {to}: {}", String::from_utf8_lossy(&copied.stderr));
}

pub fn empty_store(scene: &Scene, name: &str, keep_blobs: bool) -> StoreConfig {
    StoreConfig { dir: scene.dir.join(name), keep_blobs, ..StoreConfig::default() }
}

fn layers(store: &ImageStore, image: &Image) -> Vec<Vec<String>> {
    let path = |id: &String| store.dir().join("layers").join(&id[7..]).join("diff");
    image.layers.iter().map(|id| tree(&path(id))).collect()
}

/// An image with all that layers can have, pulled.
async fn pulled(scene: &mut Scene, upper_kind: &'static str) -> (String, ImageStore, Image) {
    let registry = scene.registry(false);
    let blob = if upper_kind == ZSTD { zstd(&upper()) } else { gzip(&upper()) };
    push_image(scene, &registry, "test/it:1", &[(GZIP, gzip(&base()), base()), (upper_kind, blob, upper())]);
    let store = scene.store("pulled", &registry, insecure()).await;
    let image = store.pull(&format!("{registry}/test/it:1"), &[]).await.unwrap();
    (registry, store, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_every_form_are_imported() {
    let Some(mut scene) = scene("import") else { return };
    let (registry, reference, image) = pulled(&mut scene, GZIP).await;
    let from = format!("docker://{registry}/test/it:1");
    let file = |name: &str| scene.dir.join(name).display().to_string();
    skopeo(&from, &format!("oci-archive:{}:r.example/oci:1", file("oci.tar")));
    skopeo(&from, &format!("oci-archive:{}:1.5", file("tag.tar")));
    skopeo(&from, &format!("oci-archive:{}", file("unnamed.tar")));
    skopeo(&from, &format!("docker-archive:{}:r.example/docker:2", file("docker.tar")));
    let read = |name: &str| fs::read(file(name)).unwrap();
    let cases = [
        (read("oci.tar"), None, "r.example/oci:1"),
        (gzip(&read("oci.tar")), None, "r.example/oci:1"),
        (zstd(&read("oci.tar")), Some("r.example/own:3"), "r.example/own:3"),
        (read("tag.tar"), Some("r.example/tagged"), "r.example/tagged:1.5"),
        (read("unnamed.tar"), Some("named"), "docker.io/library/named:latest"),
        (read("docker.tar"), None, "r.example/docker:2"),
        (gzip(&read("docker.tar")), None, "r.example/docker:2"),
    ];
    for (number, (archive, wanted, name)) in cases.into_iter().enumerate() {
        let store = ImageStore::open(empty_store(&scene, &format!("store-{number}"), false)).await.unwrap();
        assert_eq!(one(&store, &archive, wanted).await.unwrap(), name);
        let found = store.get(name).await.unwrap().unwrap();
        assert_eq!((&found.id, &found.layers), (&image.id, &image.layers), "{name}");
        assert_eq!(layers(&store, &found), layers(&reference, &image), "{name}: unpacked as by a pull");
        assert_eq!(fs::read_dir(store.dir().join("layers")).unwrap().count(), 2, "nothing else is left");
        // once more: nothing is unpacked again, the name stays
        assert_eq!(one(&store, &archive, wanted).await.unwrap(), name);
        assert_eq!(store.list().await.unwrap().len(), 1);
    }
    let store = ImageStore::open(empty_store(&scene, "dated", false)).await.unwrap();
    let name = one(&store, &read("tag.tar"), None).await.unwrap();
    assert!(name.starts_with("docker.io/library/import-20") && name.ends_with(":1.5"), "{name}");
    assert!(one(&store, &read("unnamed.tar"), None).await.unwrap_err().contains("--name"));
}

/// A docker archive as `docker save` of several images wrote it: layers shared by links.
pub fn docker_save(images: &[(&str, &str)], tar: &[u8]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    let mut list = Vec::new();
    for (number, (name, arch)) in images.iter().enumerate() {
        let config = json!({"architecture": arch, "os": "linux", "config": {"Cmd": [name]},
            "rootfs": {"type": "layers", "diff_ids": [sha256(tar)]}});
        let config = config.to_string();
        let file = format!("{}.json", &sha256(config.as_bytes())[7..]);
        entry(&mut archive, &file, 0o644, 0, EntryType::Regular, &config);
        let layer = format!("{number}/layer.tar");
        if number == 0 {
            plain(&mut archive, &layer, tar);
        } else {
            entry(&mut archive, &layer, 0o644, 0, EntryType::Symlink, "../0/layer.tar");
        }
        entry(&mut archive, &format!("{number}/VERSION"), 0o644, 0, EntryType::Regular, "1.0");
        list.push(json!({"Config": file, "RepoTags": [name], "Layers": [layer]}));
    }
    entry(&mut archive, "manifest.json", 0o644, 0, EntryType::Regular, &json!(list).to_string());
    archive.into_inner().unwrap()
}

fn plain(archive: &mut Builder<Vec<u8>>, name: &str, bytes: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, name, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_archive_has_many_images_and_a_wrong_one_does_not_keep_the_others_away() {
    let Some(scene) = scene("many") else { return };
    let store = ImageStore::open(empty_store(&scene, "store", false)).await.unwrap();
    let images = [("a:1", go_arch()), ("r.example/b:2", go_arch()), ("c:1", "riscv64")];
    let archive = docker_save(&images, &base());
    let all = import(&store, &archive, None).await.unwrap();
    let ok: Vec<_> = all.iter().filter(|i| i.result.is_ok()).map(|i| i.name.as_str()).collect();
    assert_eq!(ok, ["docker.io/library/a:1", "r.example/b:2"]);
    assert!(all[2].result.as_ref().unwrap_err().contains("the image is for linux/riscv64"), "{all:?}");
    assert_eq!((store.list().await.unwrap().len(), diff_dirs(store.dir())), (2, 1));
    let all = import(&store, &archive, Some("one")).await.unwrap();
    assert!(all[0].result.as_ref().unwrap_err().contains("only one"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_skopeo_and_umoci_can_read() {
    let Some(mut scene) = scene("export") else { return };
    let (_, store, image) = pulled(&mut scene, ZSTD).await;
    let name = image.repo_tags[0].clone();
    let file = scene.dir.join("out.tar");
    let export = store.export(std::slice::from_ref(&name)).await.unwrap();
    let exported = export.images[0].clone();
    assert_eq!((&exported.name, &exported.stored_id), (&name, &image.id));
    assert_ne!(exported.id, image.id, "layers are made again");
    export.write(fs::File::create(&file).unwrap()).unwrap();
    // the same bytes each time
    let mut again = Vec::new();
    store.export(std::slice::from_ref(&name)).await.unwrap().write(&mut again).unwrap();
    assert!(fs::read(&file).unwrap() == again);

    let layout = scene.dir.join("theirs");
    skopeo(&format!("oci-archive:{}", file.display()), &format!("oci:{}:it", layout.display()));
    let bundle = scene.dir.join("bundle");
    let mut umoci = Command::new("umoci");
    umoci.args(["unpack", "--image", &format!("{}:it", layout.display())]).arg(&bundle);
    assert!(umoci.output().unwrap().status.success());
    let write_layer = scene.dir.join("container");
    let root = store.mount(&image, &write_layer).await.unwrap();
    assert_eq!(tree(&bundle.join("rootfs")), tree(&root), "umoci has the same files");
    assert_eq!(fs::read_dir(root.join("old")).unwrap().count(), 1);
    store.unmount(&write_layer).await.unwrap();

    let back = ImageStore::open(empty_store(&scene, "back", false)).await.unwrap();
    assert_eq!(one(&back, &again, None).await.unwrap(), name);
    let image_back = back.get(&name).await.unwrap().unwrap();
    assert_eq!(layers(&back, &image_back), layers(&store, &image), "whiteouts, links and attributes are the same");
    // made again once more it is the same
    let export = back.export(std::slice::from_ref(&name)).await.unwrap();
    assert_eq!(export.images[0].id, exported.id);
    assert!(store.export(&["not/there:1".to_owned()]).await.is_err());
}

fn manifest_of(layout: &str) -> Vec<u8> {
    let shown = Command::new("skopeo").args(["--insecure-policy", "inspect", "--raw", layout]).output().unwrap();
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    shown.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_keeps_blobs_is_a_layout_skopeo_copies_from() {
    let Some(mut scene) = scene("keep") else { return };
    let (registry, without, _) = pulled(&mut scene, GZIP).await;
    let name = format!("{registry}/test/it:1");
    let registries = [(registry.clone(), insecure())].into();
    let config = StoreConfig { registries, ..empty_store(&scene, "store", true) };
    let store = ImageStore::open(config.clone()).await.unwrap();
    let image = store.pull(&name, &[]).await.unwrap();
    let layout = format!("oci:{}:{name}", store.dir().display());
    let copy = scene.dir.join("copy");
    skopeo(&layout, &format!("oci:{}:it", copy.display()));
    assert_eq!(manifest_of(&format!("oci:{}:it", copy.display())), manifest_of(&layout), "the very blobs");

    // out and in again: the id stays
    let export = store.export(std::slice::from_ref(&name)).await.unwrap();
    assert_eq!(export.images[0].id, image.id);
    let mut archive = Vec::new();
    export.write(&mut archive).unwrap();
    let other = ImageStore::open(empty_store(&scene, "other", true)).await.unwrap();
    assert_eq!(one(&other, &archive, None).await.unwrap(), name);
    assert_eq!(other.get(&name).await.unwrap().unwrap().id, image.id);
    skopeo(&format!("oci:{}:{name}", other.dir().display()), &format!("oci:{}:it", scene.dir.join("copy2").display()));
    // docker's archive too has blobs then
    let file = scene.dir.join("docker.tar");
    skopeo(&layout, &format!("docker-archive:{}:r.example/d:1", file.display()));
    one(&other, &fs::read(&file).unwrap(), None).await.unwrap();
    skopeo(&format!("oci:{}:r.example/d:1", other.dir().display()), &format!("oci:{}:d", copy.display()));

    // blobs go with their image, and come to a store that had none before
    let blobs = |store: &ImageStore| fs::read_dir(store.dir().join("blobs/sha256")).unwrap().count();
    assert_eq!((blobs(&store), blobs(&without)), (4, 2));
    store.remove(&name).await.unwrap();
    assert_eq!((blobs(&store), diff_dirs(store.dir())), (0, 0));
    let dir = without.dir().to_owned();
    drop(without);
    let later = ImageStore::open(StoreConfig { dir, ..config }).await.unwrap();
    later.pull(&name, &[]).await.unwrap();
    assert_eq!((blobs(&later), diff_dirs(later.dir())), (4, 2));
}

/// A whole OCI archive of one layer; `change` may spoil it before it is written.
fn oci(layer: &[u8], change: impl FnOnce(&mut Vec<(String, Vec<u8>)>)) -> Vec<u8> {
    let blob = |bytes: &[u8]| (format!("blobs/sha256/{}", &sha256(bytes)[7..]), bytes.to_vec());
    let describe = |kind: &str, bytes: &[u8]| {
        let media_type = format!("application/vnd.oci.image.{kind}");
        json!({"mediaType": media_type, "digest": sha256(bytes), "size": bytes.len()})
    };
    let config = json!({"architecture": go_arch(), "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [sha256(layer)]}})
    .to_string();
    let manifest = json!({"schemaVersion": 2, "config": describe("config.v1+json", config.as_bytes()),
        "layers": [describe("layer.v1.tar", layer)]})
    .to_string();
    let mut top = describe("manifest.v1+json", manifest.as_bytes());
    top["annotations"] = json!({"org.opencontainers.image.ref.name": "r.example/x:1"});
    let index = json!({"schemaVersion": 2, "manifests": [top]}).to_string();
    let mut files = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        blob(layer),
        blob(config.as_bytes()),
        blob(manifest.as_bytes()),
        ("index.json".to_owned(), index.into_bytes()),
    ];
    change(&mut files);
    let mut archive = Builder::new(Vec::new());
    for (name, bytes) in files {
        plain(&mut archive, &name, &bytes);
    }
    archive.into_inner().unwrap()
}

/// A tar with one file of a name the library would refuse to write.
fn outside(path: &str) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_mode(0o644);
    header.set_size(0);
    header.set_cksum();
    let mut tar = Builder::new(Vec::new());
    tar.append(&header, &b""[..]).unwrap();
    tar.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_nobody_should_have_made_are_refused_and_leave_nothing() {
    let Some(scene) = scene("bad-archives") else { return };
    let marker = format!("pikelet-archive-{}", std::process::id());
    let whole = oci(&base(), |_| {});
    let swap = |from: usize, with: Vec<u8>| oci(&base(), move |files| files[from].1 = with);
    let link = {
        let mut tar = Builder::new(Vec::new());
        entry(&mut tar, "way", 0o777, 0, EntryType::Symlink, "/tmp");
        entry(&mut tar, &format!("way/{marker}"), 0o644, 0, EntryType::Regular, "x");
        tar.into_inner().unwrap()
    };
    let mut tar = Builder::new(Vec::new());
    plain(&mut tar, &"x".repeat(2000), b"");
    let long = tar.into_inner().unwrap();
    let mut escaping = outside(&format!("../../../../../../../../tmp/{marker}"));
    escaping.truncate(512);
    escaping.extend(&whole);
    let cases: [(&str, Vec<u8>, &str); 13] = [
        ("empty", Vec::new(), "empty"),
        ("no archive", b"hello".repeat(1000), "reading the archive"),
        ("no images", noise(1, 3, 100).2, "no index.json and no manifest.json"),
        ("cut before the index", whole[..whole.len() - 2048].to_vec(), "cut off"),
        ("cut in a layer", whole[..4000].to_vec(), "reading"),
        ("cut gzip", gzip(&whole)[..200].to_vec(), "reading the archive"),
        ("cut zstd", zstd(&whole)[..200].to_vec(), "reading the archive"),
        ("a long name", long, "a name of more than"),
        ("a sparse file", crate::hostile::sparse("gnu", &scene.dir), "sparse file"),
        ("a name out", escaping, "would leave the archive"),
        ("another layer", swap(1, upper()), "digest does not match"),
        ("another configuration", swap(2, b"{}".to_vec()), "digest does not match"),
        ("a path out", oci(&outside(&format!("../../../../../../tmp/{marker}")), |_| {}), "would leave the root"),
    ];
    for keep in [false, true] {
        for (what, archive, why) in &cases {
            let store = ImageStore::open(empty_store(&scene, &format!("{what}-{keep}"), keep)).await.unwrap();
            let error = one(&store, archive, None).await.expect_err(what);
            assert!(error.contains(why), "{what}: {error}");
            assert!(store.list().await.unwrap().is_empty() && diff_dirs(store.dir()) == 0, "{what}");
            assert_eq!(fs::read_dir(store.dir().join("blobs/sha256")).unwrap().count(), 0, "{what}");
        }
    }
    // a link is followed inside the root
    let store = ImageStore::open(empty_store(&scene, "link", false)).await.unwrap();
    one(&store, &oci(&link, |_| {}), None).await.unwrap();
    assert!(!Path::new("/tmp").join(&marker).exists(), "nothing left the root");
    // what was spoiled is good otherwise
    let store = ImageStore::open(empty_store(&scene, "good", false)).await.unwrap();
    assert_eq!(one(&store, &whole, None).await.unwrap(), "r.example/x:1");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_unpacks_without_end_is_refused_at_the_limit_that_is_set() {
    let Some(scene) = scene("archive-bomb") else { return };
    let mut tar = Builder::new(Vec::new());
    plain(&mut tar, "zeros", &vec![0; 300 << 20]);
    let inner = tar.into_inner().unwrap();
    // a layer inside, and the archive itself
    for (number, archive) in [oci(&gzip(&inner), |_| {}), gzip(&inner)].into_iter().enumerate() {
        let store = ImageStore::open(empty_store(&scene, &format!("store-{number}"), false)).await.unwrap();
        let error = one(&store, &archive, None).await.unwrap_err();
        assert!(error.contains("more than 100 times its size"), "{error}");
        assert_eq!(diff_dirs(store.dir()), 0);
    }
    let config = StoreConfig { max_unpack_ratio: Some(2000), ..empty_store(&scene, "wide", false) };
    let wide = ImageStore::open(config).await.unwrap();
    let error = one(&wide, &gzip(&inner), None).await.unwrap_err();
    assert!(error.contains("no index.json"), "it is read to its end: {error}");
}
