//! Images from a real registry (`docker-registry`), pushed by `skopeo`: over HTTPS with its own certificate authority and
//! over HTTP, by tag and by digest, of several architectures and compressions. Needs root and those programs; says so
//! and passes without doing anything where one is missing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pikelet::image::{ImageStore, RegistryConfig, StoreConfig};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// A folder that goes when the test ends, and the registry processes with it.
struct Scene {
    dir: PathBuf,
    running: Vec<Child>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn scene(name: &str) -> Option<Scene> {
    let found = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !nix::unistd::Uid::effective().is_root() || !found("docker-registry") || !found("skopeo") {
        eprintln!("skipped: root, docker-registry and skopeo are needed");
        return None;
    }
    let dir = std::env::temp_dir().join(format!("pikelet-images-{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    Some(Scene { dir, running: Vec::new() })
}

impl Scene {
    /// Starts a registry on the scene's storage; returns its `host:port`.
    fn registry(&mut self, tls: bool) -> String {
        let address = format!("127.0.0.1:{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
        let mut config = json!({"version": 0.1, "log": {"level": "error"}, "http": {"addr": address},
            "storage": {"filesystem": {"rootdirectory": self.dir.join("storage")}}});
        if tls {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
            fs::write(self.dir.join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
            fs::write(self.dir.join("ca.key"), key.serialize_pem()).unwrap();
            config["http"]["tls"] = json!({"certificate": self.dir.join("ca.crt"), "key": self.dir.join("ca.key")});
        }
        let file = self.dir.join(format!("registry-{tls}.yaml"));
        fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(file).stdout(Stdio::null()).stderr(Stdio::null());
        self.running.push(command.spawn().unwrap());
        let end = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&address).is_err() {
            assert!(Instant::now() < end, "docker-registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        address
    }

    fn layout(&self, name: &str) -> Layout {
        let dir = self.dir.join(name);
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Layout { dir }
    }

    async fn store(&self, name: &str, registry: &str, config: RegistryConfig) -> ImageStore {
        let registries = [(registry.to_owned(), config)].into();
        ImageStore::open(StoreConfig { dir: self.dir.join(name), registries }).await.unwrap()
    }
}

/// An OCI image layout in the making.
struct Layout {
    dir: PathBuf,
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, b| format!("{text}{b:02x}"))
}

impl Layout {
    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = sha256(bytes);
        fs::write(self.dir.join("blobs/sha256").join(&digest[7..]), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// A manifest for an architecture with layers of (media type suffix, blob, tar).
    fn manifest(&self, arch: &str, variant: &str, layers: &[(&str, Vec<u8>, Vec<u8>)]) -> Value {
        let diff_ids: Vec<_> = layers.iter().map(|(_, _, tar)| sha256(tar)).collect();
        let config = json!({"architecture": arch, "variant": variant, "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "config": {"Cmd": [arch], "Env": ["A=b"], "User": "1000"}});
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let layers: Vec<_> = layers
            .iter()
            .map(|(kind, blob, _)| self.blob(&format!("application/vnd.oci.image.layer.v1.{kind}"), blob))
            .collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": layers});
        let mut entry = self.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        entry["platform"] = json!({"architecture": arch, "os": "linux", "variant": variant});
        entry
    }

    /// Names `manifests` as one multi-architecture image and pushes it; returns the index's digest.
    fn push(&self, manifests: &[Value], registry: &str, image: &str) -> String {
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": manifests});
        let mut entry = self.blob("application/vnd.oci.image.index.v1+json", index.to_string().as_bytes());
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "it"});
        let top = json!({"schemaVersion": 2, "manifests": [entry]});
        fs::write(self.dir.join("index.json"), top.to_string()).unwrap();
        let pushed = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:it", self.dir.display()))
            .arg(format!("docker://{registry}/{image}"))
            .output()
            .unwrap();
        assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
        entry["digest"].as_str().unwrap().to_owned()
    }
}

fn gzip(tar: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

fn zstd(tar: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(tar, ruzstd::encoding::CompressionLevel::Fastest)
}

fn entry(builder: &mut Builder<Vec<u8>>, path: &str, mode: u32, owner: u64, kind: EntryType, data: &str) {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_entry_type(kind);
    if kind == EntryType::Link || kind == EntryType::Symlink {
        header.set_size(0);
        builder.append_link(&mut header, path, data).unwrap();
    } else {
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, path, data.as_bytes()).unwrap();
    }
}

fn base() -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    entry(&mut tar, "etc/", 0o755, 0, EntryType::Directory, "");
    entry(&mut tar, "etc/kept", 0o640, 1000, EntryType::Regular, "kept");
    entry(&mut tar, "etc/gone", 0o644, 0, EntryType::Regular, "gone");
    entry(&mut tar, "old/inside", 0o644, 0, EntryType::Regular, "old");
    entry(&mut tar, "bin/su", 0o4755, 0, EntryType::Regular, "program");
    entry(&mut tar, "bin/also", 0o4755, 0, EntryType::Link, "bin/su");
    tar.append_pax_extensions([("SCHILY.xattr.user.note", b"written" as &[u8])]).unwrap();
    entry(&mut tar, "etc/noted", 0o644, 0, EntryType::Regular, "");
    tar.into_inner().unwrap()
}

fn upper() -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    entry(&mut tar, "etc/.wh.gone", 0o644, 0, EntryType::Regular, "");
    entry(&mut tar, "old/.wh..wh..opq", 0o644, 0, EntryType::Regular, "");
    entry(&mut tar, "old/new", 0o644, 0, EntryType::Regular, "new");
    tar.into_inner().unwrap()
}

const GZIP: &str = "tar+gzip";
const ZSTD: &str = "tar+zstd";

/// amd64 and arm64/v8 of one image; the entry of another architecture alone.
fn push_all(scene: &Scene, registry: &str) -> (String, Vec<Value>) {
    let layout = scene.layout("layout");
    let layers = [(GZIP, gzip(&base()), base()), (ZSTD, zstd(&upper()), upper())];
    let manifests = [layout.manifest("amd64", "", &layers), layout.manifest("arm64", "v8", &layers)];
    let digest = layout.push(&manifests, registry, "test/it:1");
    layout.push(&[layout.manifest("riscv64", "", &layers)], registry, "test/other:1");
    layout.push(
        &[layout.manifest("amd64", "", &layers[..1]), layout.manifest("arm64", "v8", &layers[..1])],
        registry,
        "test/base:1",
    );
    (digest, manifests.to_vec())
}

fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn diff_dirs(store: &Path) -> usize {
    fs::read_dir(store.join("layers")).unwrap().count()
}

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

    let strict = scene.store("strict", &registry, RegistryConfig::default()).await;
    let error = strict.pull(&format!("{registry}/test/it:1"), &[]).await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_spoken_only_when_allowed_and_what_is_damaged_is_refused() {
    let Some(mut scene) = scene("http") else { return };
    let registry = scene.registry(false);
    push_all(&scene, &registry);
    let strict = scene.store("strict", &registry, RegistryConfig::default()).await;
    assert!(strict.pull(&format!("{registry}/test/it:1"), &[]).await.is_err());
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
    assert!(error.contains("does not match") || error.contains("reading layer"), "{error}");
    assert!(store.get(&format!("{registry}/test/it:1")).await.unwrap().is_none(), "nothing of it can be used");
    assert_eq!(diff_dirs(&scene.dir.join("store")), 1);
}
