//! What the tests stand on: a folder, real registries, and images in the making.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pikelet::image::{ImageStore, RegistryConfig, StoreConfig};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// A folder that goes when the test ends, and the registry processes with it.
pub struct Scene {
    pub dir: PathBuf,
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

pub fn scene(name: &str) -> Option<Scene> {
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
    pub fn registry(&mut self, tls: bool) -> String {
        let certificates = tls.then(|| self.certificates());
        self.start(if tls { "tls" } else { "plain" }, |config| {
            if let Some(certificates) = certificates {
                config["http"]["tls"] = certificates;
            }
        })
    }

    /// As [`Scene::registry`] over HTTPS, with basic authentication.
    pub fn registry_with_login(&mut self, user: &str, password: &str) -> String {
        let file = self.dir.join("htpasswd");
        let hash = Command::new("perl")
            .args(["-e", r#"print "$ARGV[0]:" . crypt($ARGV[1], '$2b$05$' . 'a' x 22)"#, user, password])
            .output()
            .unwrap();
        fs::write(&file, hash.stdout).unwrap();
        let certificates = self.certificates();
        self.start("login", |config| {
            config["http"]["tls"] = certificates;
            config["auth"] = json!({"htpasswd": {"realm": "test", "path": file}});
        })
    }

    /// As [`Scene::registry`], with tokens of a service at `realm` (`token.crt`).
    pub fn registry_with_tokens(&mut self, realm: &str, issuer: &str) -> String {
        let certificate = self.dir.join("token.crt");
        self.start("token", |config| {
            config["auth"] = json!({"token": {"realm": realm, "service": "registry", "issuer": issuer,
                "rootcertbundle": certificate}});
        })
    }

    /// As [`Scene::registry`] over HTTPS, for clients with a certificate (`client.crt`, `client.key`).
    pub fn registry_with_client_ca(&mut self) -> String {
        let mut certificates = self.certificates();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["client".to_owned()]).unwrap();
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        fs::write(self.dir.join("client.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(self.dir.join("client.key"), key.serialize_pem()).unwrap();
        certificates["clientcas"] = json!([self.dir.join("client.crt")]);
        self.start("mtls", |config| config["http"]["tls"] = certificates)
    }

    /// Makes `ca.crt` and `ca.key`, for a registry's `http.tls`.
    fn certificates(&self) -> Value {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        fs::write(self.dir.join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(self.dir.join("ca.key"), key.serialize_pem()).unwrap();
        json!({"certificate": self.dir.join("ca.crt"), "key": self.dir.join("ca.key")})
    }

    fn start(&mut self, name: &str, change: impl FnOnce(&mut Value)) -> String {
        let address = format!("127.0.0.1:{}", Self::free_port());
        let mut config = json!({"version": 0.1, "log": {"level": "error"}, "http": {"addr": address},
            "storage": {"filesystem": {"rootdirectory": self.dir.join("storage")}}});
        change(&mut config);
        let file = self.dir.join(format!("registry-{name}.yaml"));
        fs::write(&file, config.to_string()).unwrap();
        self.run("docker-registry", &["serve", file.to_str().unwrap()], &address);
        address
    }

    pub fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    /// Starts a server and waits until it listens.
    pub fn run(&mut self, program: &str, args: &[&str], address: &str) {
        let child = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.running.push(child.unwrap());
        let end = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < end, "{program} does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn layout(&self, name: &str) -> Layout {
        let dir = self.dir.join(name);
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Layout { dir }
    }

    pub async fn store(&self, name: &str, registry: &str, config: RegistryConfig) -> ImageStore {
        let registries = [(registry.to_owned(), config)].into();
        let config = StoreConfig { dir: self.dir.join(name), registries, ..StoreConfig::default() };
        ImageStore::open(config).await.unwrap()
    }
}

/// An OCI image layout in the making.
pub struct Layout {
    pub dir: PathBuf,
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, b| format!("{text}{b:02x}"))
}

impl Layout {
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = sha256(bytes);
        fs::write(self.dir.join("blobs/sha256").join(&digest[7..]), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// A manifest for an architecture with layers of (media type suffix, blob, tar).
    pub fn manifest(&self, arch: &str, variant: &str, layers: &[(&str, Vec<u8>, Vec<u8>)]) -> Value {
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

    /// An index of `manifests`.
    pub fn index(&self, manifests: &[Value]) -> Value {
        let kind = "application/vnd.oci.image.index.v1+json";
        self.blob(kind, json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests}).to_string().as_bytes())
    }

    /// Names `manifests` as one multi-architecture image and pushes it; returns the index's digest.
    pub fn push(&self, manifests: &[Value], registry: &str, image: &str) -> String {
        let mut entry = self.index(manifests);
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

/// Puts all blobs of a layout and then `manifests`, as they are, the last with a tag, into a registry that speaks plain
/// HTTP: what skopeo would refuse, or change.
pub async fn put(layout: &Layout, manifests: &[Value], registry: &str, image: &str) {
    let (repository, tag) = image.split_once(':').unwrap();
    let base = format!("http://{registry}/v2/{repository}");
    let client = reqwest::Client::new();
    let read = |digest: &str| fs::read(layout.dir.join("blobs/sha256").join(&digest[7..])).unwrap();
    let put_to = async |url: String, kind: &str, bytes: Vec<u8>| {
        let answer = client.put(url).header("content-type", kind).body(bytes).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{status}: {text}");
    };
    for blob in fs::read_dir(layout.dir.join("blobs/sha256")).unwrap() {
        let digest = format!("sha256:{}", blob.unwrap().file_name().to_str().unwrap());
        let upload = client.post(format!("{base}/blobs/uploads/")).send().await.unwrap();
        let place = upload.headers()["location"].to_str().unwrap();
        put_to(format!("{place}&digest={digest}"), "application/octet-stream", read(&digest)).await;
    }
    for (number, manifest) in manifests.iter().enumerate() {
        let digest = manifest["digest"].as_str().unwrap();
        let name = if number + 1 == manifests.len() { tag } else { digest };
        let kind = manifest["mediaType"].as_str().unwrap();
        put_to(format!("{base}/manifests/{name}"), kind, read(digest)).await;
    }
}

/// Plain HTTP.
pub fn insecure() -> RegistryConfig {
    RegistryConfig { insecure: true, ..RegistryConfig::default() }
}

/// A layer of `files` files of `size` bytes that do not compress, the same for the same `seed`.
pub fn noise(seed: u64, files: usize, size: usize) -> (&'static str, Vec<u8>, Vec<u8>) {
    let mut tar = Builder::new(Vec::new());
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for i in 0..files {
        let mut data = Vec::with_capacity(size + 8);
        while data.len() < size {
            // xorshift
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            data.extend_from_slice(&state.to_le_bytes());
        }
        data.truncate(size);
        let mut header = Header::new_gnu();
        header.set_mode(0o640);
        header.set_uid(seed);
        header.set_mtime(1_000_000 + i as u64);
        header.set_entry_type(EntryType::Regular);
        header.set_size(size as u64);
        tar.append_data(&mut header, format!("l{seed}/d{}/f{i}", i % 7), data.as_slice()).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    (GZIP, compress(&tar, flate2::Compression::fast()), tar)
}

/// Pushes an image of `layers` for this machine.
pub fn push_image(scene: &Scene, registry: &str, image: &str, layers: &[(&str, Vec<u8>, Vec<u8>)]) {
    let layout = scene.layout(&image.replace(['/', ':'], "-"));
    layout.push(&[layout.manifest(go_arch(), "", layers)], registry, image);
}

/// What is below a folder: path, and all that an unpacked file is.
pub fn tree(root: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    fn walk(dir: &Path, root: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_file() { sha256(&fs::read(&path).unwrap()) } else { String::new() };
            let name = path.strip_prefix(root).unwrap().display();
            let (uid, gid, rdev) = (meta.uid(), meta.gid(), meta.rdev());
            let time = if meta.is_file() { meta.mtime() } else { 0 };
            found.push(format!("{name} {:o} {uid} {gid} {rdev} {time} {content}", meta.mode()));
            if meta.is_dir() {
                walk(&path, root, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(root, root, &mut found);
    found.sort();
    found
}

pub fn gzip(tar: &[u8]) -> Vec<u8> {
    compress(tar, flate2::Compression::default())
}

fn compress(tar: &[u8], level: flate2::Compression) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(tar: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(tar, ruzstd::encoding::CompressionLevel::Fastest)
}

pub fn entry(builder: &mut Builder<Vec<u8>>, path: &str, mode: u32, owner: u64, kind: EntryType, data: &str) {
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

pub fn base() -> Vec<u8> {
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

pub fn upper() -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    entry(&mut tar, "etc/.wh.gone", 0o644, 0, EntryType::Regular, "");
    entry(&mut tar, "old/.wh..wh..opq", 0o644, 0, EntryType::Regular, "");
    entry(&mut tar, "old/new", 0o644, 0, EntryType::Regular, "new");
    tar.into_inner().unwrap()
}

pub const GZIP: &str = "tar+gzip";
pub const ZSTD: &str = "tar+zstd";

/// amd64 and arm64/v8 of one image; the entry of another architecture alone.
pub fn push_all(scene: &Scene, registry: &str) -> (String, Vec<Value>) {
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

pub fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub fn diff_dirs(store: &Path) -> usize {
    fs::read_dir(store.join("layers")).unwrap().count()
}
