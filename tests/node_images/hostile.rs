//! Images nobody should have made.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use pikelet::image::{ImageStore, StoreConfig};
use tar::{Builder, EntryType, Header};

use crate::collection::Disk;
use crate::forward::{Fault, line};
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

/// What `tar` writes of a file of 10 GiB that is all a hole.
pub fn sparse(format: &str, dir: &Path) -> Vec<u8> {
    fs::File::create(dir.join("hole")).unwrap().set_len(10 << 30).unwrap();
    let format = format!("--format={format}");
    let tar = Command::new("tar").args(["--sparse", &format, "-cf", "-", "-C", dir.to_str().unwrap(), "hole"]).output();
    tar.unwrap().stdout
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
        ("hardlink", plain(through(&up, EntryType::Link, "x")), "would leave the root"),
        ("cut-gzip", cut(plain(files.clone())), "reading"),
        ("cut-zstd", cut((ZSTD, zstd(&files), files.clone())), "reading"),
        ("other-layer", (GZIP, gzip(&files), named("else")), "its image says"),
        ("kind", ("tar+lz4", [b"\x04\x22\x4d\x18", files.as_slice()].concat(), files), "media type"),
        ("file-as-directory", plain(through("x", EntryType::Regular, "way/below")), "no directory"),
        ("holes", plain(sparse("gnu", &scene.dir)), "maxImageUnpackRatio"),
        ("pax-holes", plain(sparse("pax", &scene.dir)), "PAX"),
    ];
    for (name, layer, why) in cases {
        push_image(&scene, &registry, &format!("test/{name}:1"), &[layer]);
        refused(&store, &format!("{registry}/test/{name}:1"), why).await;
    }
    // a link is followed as if the layer's root were /
    push_image(&scene, &registry, "test/link:1", &[plain(through("/tmp", EntryType::Symlink, &out))]);
    let image = store.pull(&format!("{registry}/test/link:1"), &[]).await.unwrap();
    let layer = store.dir().join("layers").join(&image.layers[0][7..]).join("diff");
    assert!(layer.join("tmp").join(&marker).exists());
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

#[tokio::test(flavor = "multi_thread")]
async fn a_file_may_become_a_directory_and_devices_are_what_they_are() {
    let Some(mut scene) = scene("becomes") else { return };
    let registry = scene.registry(false);
    let store = scene.store("store", &registry, insecure()).await;
    let mut tar = Builder::new(Vec::new());
    for (name, kind) in [("a", EntryType::Regular), ("a", EntryType::Directory), ("a/b", EntryType::Regular)] {
        raw(&mut tar, name, kind, "");
    }
    for (name, kind) in [("d", EntryType::Directory), ("d/in", EntryType::Regular), ("d", EntryType::Regular)] {
        raw(&mut tar, name, kind, "");
    }
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Char);
    header.set_mode(0o666);
    header.set_size(0);
    header.set_device_major(1).unwrap();
    header.set_device_minor(3).unwrap();
    tar.append_data(&mut header, "null", std::io::empty()).unwrap();
    let lower = tar.into_inner().unwrap();
    let mut tar = Builder::new(Vec::new());
    raw(&mut tar, "d/", EntryType::Directory, "");
    raw(&mut tar, "d/new", EntryType::Regular, "");
    let upper = tar.into_inner().unwrap();
    push_image(&scene, &registry, "test/it:1", &[(GZIP, gzip(&lower), lower), (GZIP, gzip(&upper), upper)]);
    let image = store.pull(&format!("{registry}/test/it:1"), &[]).await.unwrap();
    let container = scene.dir.join("container");
    let root = store.mount(&image, &container).await.unwrap();
    assert!(root.join("a/b").is_file() && root.join("d/new").is_file() && !root.join("d/in").exists());
    let null = fs::metadata(root.join("null")).unwrap();
    assert!(null.file_type().is_char_device() && null.rdev() == nix::sys::stat::makedev(1, 3));
    // nobody but root comes to them, or to programs that run as root, by way of the store
    assert_eq!(fs::metadata(store.dir().join("layers")).unwrap().permissions().mode() & 0o077, 0);
    store.unmount(&container).await.unwrap();
}

/// Answers every connection with the same bytes.
fn parrot(answer: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // ends with the test's process
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let _ = client.read(&mut [0; 4096]);
            let _ = client.write_all(&answer);
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_answers_slowly_or_wrongly() {
    let Some(mut scene) = scene("answers") else { return };
    let registry = scene.registry(false);
    push_image(&scene, &registry, "test/it:1", &[noise(9, 4, 200_000)]);
    let slow = line(&registry, Fault::Slow { pause: 30 });
    let store = scene.store("slow", &slow.address, insecure()).await;
    let start = Instant::now();
    store.pull(&format!("{}/test/it:1", slow.address), &[]).await.expect("slow is not wrong");
    assert!(start.elapsed() > Duration::from_secs(1));

    let ok =
        |head: &str, body: &str| format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{head}\r\n\r\n{body}").into_bytes();
    let cases = [
        ("a web page", ok("Content-Length: 13", "<html></html>"), "manifest: "),
        ("no manifest", ok("Content-Length: 2", "{}"), "no image configuration"),
        ("a list", ok("Content-Length: 2", "[]"), "manifest: "),
        ("half an answer", ok("Content-Length: 500", "{"), ""),
        ("no HTTP", b"220 mail.example ESMTP\r\n".to_vec(), ""),
        ("nothing", Vec::new(), ""),
        ("an error", b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(), "500"),
        (
            "itself",
            b"HTTP/1.1 307 There\r\nLocation: /v2/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
            "redirect",
        ),
    ];
    for (what, answer, why) in cases {
        let address = parrot(answer);
        let store = scene.store(&format!("store-{what}"), &address, insecure()).await;
        let image = format!("{address}/test/it:1");
        let start = Instant::now();
        refused(&store, &image, why).await;
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_while_pulling_is_said_and_left_as_it_was() {
    let Some(mut scene) = scene("full") else { return };
    let registry = scene.registry(false);
    let layers = [noise(21, 4, 1 << 20), noise(22, 8, 1 << 20), noise(23, 2000, 100)];
    push_image(&scene, &registry, "test/small:1", &[noise(20, 1, 1 << 20)]);
    push_image(&scene, &registry, "test/it:1", &layers);
    // no room for the bytes, and none for the files
    for (number, (little, enough)) in
        [("size=10m", "size=64m"), ("size=64m,nr_inodes=500", "size=64m,nr_inodes=9000")].into_iter().enumerate()
    {
        for keep_blobs in [false, true] {
            let disk = Disk(scene.dir.join(format!("disk-{number}-{keep_blobs}")));
            fs::create_dir_all(&disk.0).unwrap();
            let mount = |options: &str| {
                Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&disk.0).status().unwrap()
            };
            assert!(mount(little).success());
            let registries = [(registry.clone(), insecure())].into();
            let config = StoreConfig { dir: disk.0.join("images"), registries, keep_blobs, ..StoreConfig::default() };
            let store = ImageStore::open(config).await.unwrap();
            let small = format!("{registry}/test/small:1");
            store.pull(&small, &[]).await.unwrap();
            let name = format!("{registry}/test/it:1");
            let error = store.pull(&name, &[]).await.unwrap_err().to_string();
            assert!(error.contains("No space left on device"), "{error}");
            assert!(store.get(&name).await.unwrap().is_none());
            // the other layers of the image are still on their way down
            let half = || {
                let found = Command::new("find").arg(store.dir()).args(["-name", "*.tmp"]).output().unwrap();
                String::from_utf8(found.stdout).unwrap()
            };
            let end = Instant::now() + Duration::from_secs(10);
            while !half().is_empty() {
                assert!(Instant::now() < end, "half-written files take room: {}", half());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let image = store.get(&small).await.unwrap().expect("what was there stays");
            assert_eq!(image.size, 1 << 20);
            assert!(mount(&format!("remount,{enough}")).success());
            store.pull(&name, &[]).await.expect("with room it goes on");
        }
    }
}
