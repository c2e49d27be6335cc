//! Images from a real registry (`docker-registry`), pushed by `skopeo`: over HTTPS with its own certificate authority and
//! over HTTP, by tag and by digest, of several architectures and compressions; several at once, over connections that
//! break, by mirrors and proxies, and through power cuts. Needs root and those programs; says so and passes without
//! doing anything where one is missing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod airgap;
mod archives;
mod collection;
mod commands;
mod conversation;
mod cuts;
mod forward;
mod hostile;
mod logins;
mod platforms;
mod pulls;
mod scene;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use pikelet::image::RegistryConfig;
use scene::*;

#[tokio::test(flavor = "multi_thread")]
async fn images_arrive_whole_over_https_with_an_own_authority() {
    let Some(mut scene) = scene("https") else { return };
    let registry = scene.registry(true);
    let (digest, _) = push_all(&scene, &registry);
    let trusting = RegistryConfig { ca_file: Some(scene.dir.join("ca.crt")), ..RegistryConfig::default() };
    let store = scene.store("store", &registry, trusting).await;
    let image = store.pull(&format!("{registry}/test/it:1"), &[]).await.unwrap();
    assert_eq!(image.config.cmd, [go_arch()], "the index's entry for this machine");
    assert_eq!((image.config.user.as_str(), image.layers.len()), ("1000", 2));
    let by_digest = store.pull(&format!("{registry}/test/it@{digest}"), &[]).await.unwrap();
    assert_eq!(by_digest.id, image.id);
    assert!(by_digest.repo_digests.contains(&format!("{registry}/test/it@{digest}")), "{:?}", by_digest.repo_digests);

    let write_layer = scene.dir.join("container");
    let root = store.mount(&image, &write_layer).await.unwrap();
    let kept = fs::metadata(root.join("etc/kept")).unwrap();
    assert_eq!((kept.permissions().mode() & 0o7777, kept.uid(), kept.gid()), (0o640, 1000, 1000));
    assert_eq!(fs::read_to_string(root.join("etc/kept")).unwrap(), "kept");
    assert!(!root.join("etc/gone").exists(), "a whiteout hides the file below");
    assert_eq!(fs::read_dir(root.join("old")).unwrap().count(), 1, "an opaque directory hides what is below");
    let (program, other) = (fs::metadata(root.join("bin/su")).unwrap(), fs::metadata(root.join("bin/also")).unwrap());
    assert_eq!((program.ino(), program.permissions().mode() & 0o7777), (other.ino(), 0o4755));
    let note = Command::new("python3")
        .args(["-c", "import os,sys; sys.stdout.buffer.write(os.getxattr(sys.argv[1], 'user.note'))"])
        .arg(root.join("etc/noted"))
        .output()
        .unwrap();
    assert_eq!(note.stdout, b"written");
    store.unmount(&write_layer).await.unwrap();

    store.pull(&format!("{registry}/test/base:1"), &[]).await.unwrap();
    assert_eq!(diff_dirs(&scene.dir.join("store")), 2, "layers are shared");
    store.remove(&format!("{registry}/test/base:1")).await.unwrap();
    assert_eq!(diff_dirs(&scene.dir.join("store")), 2, "and kept while an image needs them");
    let error = store.pull(&format!("{registry}/test/other:1"), &[]).await.unwrap_err().to_string();
    assert!(error.contains("linux/riscv64"), "{error}");
    let error = store.pull(&format!("{registry}/test/it:nope"), &[]).await.unwrap_err().to_string();
    assert!(error.contains("manifest unknown"), "{error}");

    let other = as_another_machine(&registry);
    let strict = scene.store("strict", &other, RegistryConfig::default()).await;
    let error = strict.pull(&format!("{other}/test/it:1"), &[]).await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
}

/// The registry by a name that does not say that it is on this machine.
fn as_another_machine(registry: &str) -> String {
    registry.replace("127.0.0.1", "127.1")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_may_have_127_layers() {
    let Some(mut scene) = scene("many-layers") else { return };
    let registry = scene.registry(false);
    let store = scene.store("store", &registry, insecure()).await;
    for count in [57, 127] {
        let layer = |number: usize| {
            let mut tar = tar::Builder::new(Vec::new());
            entry(&mut tar, &format!("own/{number}"), 0o644, 0, tar::EntryType::Regular, "");
            entry(&mut tar, "last", 0o644, 0, tar::EntryType::Regular, &number.to_string());
            let tar = tar.into_inner().unwrap();
            (GZIP, gzip(&tar), tar)
        };
        let name = format!("test/{count}:1");
        push_image(&scene, &registry, &name, &(0..count).map(layer).collect::<Vec<_>>());
        let name = format!("{registry}/{name}");
        let image = store.pull(&name, &[]).await.unwrap();
        let container = scene.dir.join("container");
        let root = store.mount(&image, &container).await.unwrap();
        assert_eq!(fs::read_dir(root.join("own")).unwrap().count(), count);
        assert_eq!(fs::read_to_string(root.join("last")).unwrap(), (count - 1).to_string(), "the highest is on top");
        fs::write(root.join("own/0"), "written").unwrap();
        // whoever looks at the mounts sees what they stand on
        let error = store.remove(&name).await.unwrap_err();
        assert!(matches!(error, pikelet::image::ImageError::InUse(_)), "{error}");
        store.unmount(&container).await.unwrap();
        store.remove(&name).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_may_have_a_layer_twice_and_one_of_another_kind_than_it_says() {
    let Some(mut scene) = scene("twice") else { return };
    let registry = scene.registry(false);
    let store = scene.store("store", &registry, insecure()).await;
    let (again, other) = ((GZIP, gzip(&base()), base()), (GZIP, upper(), upper()));
    // what it says is gzip is not compressed, and what says nothing is zstd
    let unknown = ("squash", zstd(&base()), base());
    for (name, layers) in [("twice", vec![again.clone(), other.clone(), again]), ("kinds", vec![unknown, other])] {
        push_image(&scene, &registry, &format!("test/{name}:1"), &layers);
        let image = store.pull(&format!("{registry}/test/{name}:1"), &[]).await.unwrap();
        assert_eq!(image.layers.len(), layers.len());
        let container = scene.dir.join("container");
        let root = store.mount(&image, &container).await.unwrap();
        assert_eq!(root.join("etc/gone").exists(), name == "twice", "the highest one shows");
        let error = store.remove(&image.id).await.unwrap_err();
        assert!(matches!(error, pikelet::image::ImageError::InUse(_)), "{error}");
        store.unmount(&container).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_that_a_layer_only_implies_are_as_those_below_have_them() {
    use tar::EntryType::{Directory, Regular};
    let Some(mut scene) = scene("implied") else { return };
    let registry = scene.registry(false);
    let store = scene.store("store", &registry, insecure()).await;
    let layer = |all: &[(&str, u32, u64, tar::EntryType)]| {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, mode, owner, kind) in all {
            entry(&mut tar, path, *mode, *owner, *kind, "");
        }
        let tar = tar.into_inner().unwrap();
        (GZIP, gzip(&tar), tar)
    };
    let lowest = layer(&[
        ("tmp/", 0o1777, 0, Directory),
        ("srv/", 0o711, 0, Directory),
        ("srv/data/", 0o2770, 1000, Directory),
        ("gone/", 0o700, 7, Directory),
        ("gone/inner/", 0o700, 7, Directory),
        ("old/", 0o700, 8, Directory),
        ("old/inner/", 0o700, 8, Directory),
        ("later/", 0o700, 9, Directory),
    ]);
    let middle = layer(&[
        (".wh.gone", 0, 0, Regular),
        ("old/.wh..wh..opq", 0, 0, Regular),
        ("old/", 0o710, 8, Directory),
        ("tmp/a", 0o600, 1, Regular),
        ("later/", 0o750, 10, Directory),
    ]);
    let top = layer(&[
        ("tmp/app/x", 0o644, 0, Regular),
        ("srv/data/new", 0o644, 0, Regular),
        ("gone/inner/x", 0o644, 0, Regular),
        ("old/inner/x", 0o644, 0, Regular),
        ("later/x", 0o644, 0, Regular),
        ("fresh/a/b", 0o644, 0, Regular),
    ]);
    push_image(&scene, &registry, "test/it:1", &[lowest, middle, top]);
    let image = store.pull(&format!("{registry}/test/it:1"), &[]).await.unwrap();
    let container = scene.dir.join("container");
    let root = store.mount(&image, &container).await.unwrap();
    let of = |path: &str| {
        let meta = fs::metadata(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        format!("{path} {:o} {}:{}", meta.mode() & 0o7777, meta.uid(), meta.gid())
    };
    for wanted in [
        "tmp 1777 0:0",
        "tmp/app 755 0:0",
        "srv 711 0:0",
        "srv/data 2770 1000:1000",
        // what was deleted in between says nothing
        "gone 755 0:0",
        "gone/inner 755 0:0",
        "old 710 8:8",
        "old/inner 755 0:0",
        "later 750 10:10",
        "fresh 755 0:0",
        "fresh/a 755 0:0",
    ] {
        assert_eq!(of(wanted.split(' ').next().unwrap()), wanted);
    }
    assert!(root.join("tmp/a").exists() && root.join("tmp/app/x").exists() && root.join("srv/data/new").exists());
    assert!(!container.join("upper/fresh").exists(), "nothing is written that is right already");
    store.unmount(&container).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_spoken_only_when_allowed_and_what_is_damaged_is_refused() {
    let Some(mut scene) = scene("http") else { return };
    let registry = scene.registry(false);
    push_all(&scene, &registry);
    let other = as_another_machine(&registry);
    let strict = scene.store("strict", &other, RegistryConfig::default()).await;
    assert!(strict.pull(&format!("{other}/test/it:1"), &[]).await.is_err());
    let local = scene.store("local", &registry, RegistryConfig::default()).await;
    local.pull(&format!("{registry}/test/base:1"), &[]).await.expect("one of this machine may");
    let insecure = RegistryConfig { insecure: true, ..RegistryConfig::default() };
    let store = scene.store("store", &registry, insecure.clone()).await;
    store.pull(&format!("{registry}/test/base:1"), &[]).await.unwrap();

    let blob = sha256(&zstd(&upper()));
    let path =
        scene.dir.join("storage/docker/registry/v2/blobs/sha256").join(&blob[7..9]).join(&blob[7..]).join("data");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = store.pull(&format!("{registry}/test/it:1"), &[]).await.unwrap_err().to_string();
    assert!(error.contains("does not match") || error.contains("reading"), "{error}");
    assert!(store.get(&format!("{registry}/test/it:1")).await.unwrap().is_none(), "nothing of it can be used");
    assert_eq!(diff_dirs(&scene.dir.join("store")), 1);
}
