//! Images nobody should have made.

use std::fs;

use pikelet::image::ImageStore;
use tar::{Builder, EntryType, Header};

use crate::scene::*;

/// A tar with one regular file under a name the library would refuse to write.
fn named(path: &str) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    raw(&mut tar, path, EntryType::Regular, "");
    tar.into_inner().unwrap()
}

fn raw(tar: &mut Builder<Vec<u8>>, path: &str, kind: EntryType, link: &str) {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_mode(0o644);
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_cksum();
    tar.append(&header, &b""[..]).unwrap();
}

fn through(link: &str, kind: EntryType, entry: &str) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    raw(&mut tar, "way", kind, link);
    raw(&mut tar, entry, EntryType::Regular, "");
    tar.into_inner().unwrap()
}

async fn refused(store: &ImageStore, image: &str, why: &str) {
    let error = store.pull(image, &[]).await.unwrap_err().to_string();
    assert!(error.contains(why), "{image}: {error}");
    assert!(store.get(image).await.unwrap().is_none());
    assert_eq!(fs::read_dir(store.dir().join("layers")).unwrap().count(), 0, "nothing of {image} is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_refused_with_its_reason_and_nothing_left() {
    let Some(mut scene) = scene("hostile") else { return };
    let registry = scene.registry(false);
    let store = scene.store("store", &registry, insecure()).await;
    let marker = format!("pikelet-hostile-{}", std::process::id());
    let outside = std::env::temp_dir().join(&marker);
    let up = format!("{}{}", "../".repeat(12), outside.strip_prefix("/").unwrap().display());
    let out = format!("way/{marker}");
    let plain = |tar: Vec<u8>| (GZIP, gzip(&tar), tar);
    let cut = |(kind, blob, tar): (&'static str, Vec<u8>, Vec<u8>)| (kind, blob[..blob.len() / 2].to_vec(), tar);
    let files = noise(1, 4, 100_000).2;
    let cases = [
        ("up", plain(named(&up)), "would leave the root"),
        ("link", plain(through("/tmp", EntryType::Symlink, &out)), "no directory"),
        ("hardlink", plain(through(&up, EntryType::Link, "x")), "would leave the root"),
        ("cut-gzip", cut(plain(files.clone())), "reading"),
        ("cut-zstd", cut((ZSTD, zstd(&files), files.clone())), "reading"),
        ("other-layer", (GZIP, gzip(&files), named("else")), "its image says"),
        ("kind", ("tar+lz4", files.clone(), files), "media type"),
    ];
    for (name, layer, why) in cases {
        push_image(&scene, &registry, &format!("test/{name}:1"), &[layer]);
        refused(&store, &format!("{registry}/test/{name}:1"), why).await;
    }
    assert!(!outside.exists(), "nothing left the root");

    // absolute names are taken from the root, as every engine does
    push_image(&scene, &registry, "test/absolute:1", &[plain(named("/etc/file"))]);
    let image = store.pull(&format!("{registry}/test/absolute:1"), &[]).await.unwrap();
    let layer = store.dir().join("layers").join(&image.layers[0][7..]).join("diff/etc/file");
    assert!(layer.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_unpacks_without_end_is_refused() {
    let Some(mut scene) = scene("bomb") else { return };
    let registry = scene.registry(false);
    let store = scene.store("store", &registry, insecure()).await;
    let mut tar = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(300 << 20);
    tar.append_data(&mut header, "zeros", vec![0_u8; 300 << 20].as_slice()).unwrap();
    let tar = tar.into_inner().unwrap();
    push_image(&scene, &registry, "test/bomb:1", &[(GZIP, gzip(&tar), tar)]);
    refused(&store, &format!("{registry}/test/bomb:1"), "more than 100 times its size").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_of_100_mb_is_refused() {
    let Some(mut scene) = scene("manifest") else { return };
    let (files, port) = (scene.dir.join("files"), Scene::free_port());
    fs::create_dir_all(files.join("v2/test/it/manifests")).unwrap();
    fs::File::create(files.join("v2/test/it/manifests/1")).unwrap().set_len(100 << 20).unwrap();
    // docker-registry would not serve it
    let server =
        ["-m", "http.server", "--bind", "127.0.0.1", &port.to_string(), "--directory", files.to_str().unwrap()];
    scene.run("python3", &server, &format!("127.0.0.1:{port}"));
    let registry = format!("127.0.0.1:{port}");
    let store = scene.store("store", &registry, insecure()).await;
    refused(&store, &format!("{registry}/test/it:1"), "larger than").await;
}
