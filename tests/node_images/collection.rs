//! Garbage collection on a small file system of its own (tmpfs).

use std::process::Command;
use std::time::Duration;

use pikelet::image::{GcError, GcPolicy, ImageError, ImageStore, StoreConfig};

use crate::scene::*;

/// A mount that goes with the test.
pub struct Disk(pub std::path::PathBuf);

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_the_images_nobody_uses_and_no_other() {
    let Some(mut scene) = scene("gc") else { return };
    let registry = scene.registry(false);
    let base = noise(1, 4, 1 << 20);
    // 4 MiB they share, and 4 each
    for (seed, name) in [(11, "a"), (12, "b"), (13, "c"), (14, "d")] {
        push_image(&scene, &registry, &format!("test/{name}:1"), &[base.clone(), noise(seed, 4, 1 << 20)]);
    }
    let disk = Disk(scene.dir.join("disk"));
    std::fs::create_dir_all(&disk.0).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"]).arg(&disk.0).status();
    assert!(mounted.unwrap().success());
    let registries = [(registry.clone(), insecure())].into();
    let config = StoreConfig { dir: disk.0.join("images"), registries, ..StoreConfig::default() };
    let store = ImageStore::open(config).await.unwrap();
    let name = |n: &str| format!("{registry}/test/{n}:1");
    let policy = GcPolicy { min_age: Duration::ZERO, ..GcPolicy::default() };
    let first = store.pull(&name("a"), &[]).await.unwrap();
    let container = disk.0.join("container");
    store.mount(&first, &container).await.unwrap();
    for n in ["b", "c", "d"] {
        assert_eq!(store.collect_garbage(&policy).await.unwrap(), 0, "there is room");
        store.pull(&name(n), &[]).await.unwrap();
    }
    let again = store.get(&name("b")).await.unwrap().unwrap();
    store.mount(&again, &disk.0.join("short")).await.unwrap();
    store.unmount(&disk.0.join("short")).await.unwrap();

    // 20 of 24 MiB are 83 %
    std::fs::write(disk.0.join("filler"), vec![1; 1 << 20]).unwrap();
    let kept = GcPolicy { min_age: Duration::from_mins(2), ..policy };
    assert!(matches!(store.collect_garbage(&kept).await, Err(GcError::NotEnough { .. })), "all are too young");
    // its documents too
    let mebibytes = |bytes: u64| bytes >> 20;
    assert_eq!(mebibytes(store.collect_garbage(&policy).await.unwrap()), 4);
    let names = |images: Vec<pikelet::image::Image>| {
        let mut names: Vec<_> = images.into_iter().flat_map(|i| i.repo_tags).collect();
        names.sort();
        names
    };
    let left = names(store.list().await.unwrap());
    assert_eq!(left, [name("a"), name("b"), name("d")], "the least recently used one went");
    assert!(matches!(store.remove(&name("a")).await, Err(ImageError::InUse(_))));

    // one after the other, until only the one in use is left
    for (filler, left) in [(7, vec![name("a"), name("b")]), (11, vec![name("a")])] {
        std::fs::write(disk.0.join("filler"), vec![1; filler << 20]).unwrap();
        assert_eq!(mebibytes(store.collect_garbage(&policy).await.unwrap()), 4);
        assert_eq!(names(store.list().await.unwrap()), left);
    }
    std::fs::write(disk.0.join("filler"), vec![1; 15 << 20]).unwrap();
    let error = store.collect_garbage(&policy).await.unwrap_err().to_string();
    assert!(error.starts_with("Failed to garbage collect required amount of images."), "{error}");
    assert_eq!(names(store.list().await.unwrap()), [name("a")], "the one in use stays, whatever the need");
    assert_eq!(std::fs::read_dir(container.join("rootfs")).unwrap().count(), 2);
    std::fs::remove_file(disk.0.join("filler")).unwrap();

    store.unmount(&container).await.unwrap();
    let old = GcPolicy { max_age: Duration::from_nanos(1), ..policy };
    assert_eq!(mebibytes(store.collect_garbage(&old).await.unwrap()), 8, "imageMaximumGCAge needs no full disk");
    assert_eq!(std::fs::read_dir(disk.0.join("images/layers")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(disk.0.join("images/blobs/sha256")).unwrap().count(), 0);

    // one that was removed and is pulled again is young again: a container is about to be made of it
    std::fs::write(disk.0.join("filler"), vec![1; 14 << 20]).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    store.pull(&name("a"), &[]).await.unwrap();
    let kept = GcPolicy { min_age: Duration::from_secs(3), ..policy };
    assert!(matches!(store.collect_garbage(&kept).await, Err(GcError::NotEnough { freed: 0, .. })));
}
