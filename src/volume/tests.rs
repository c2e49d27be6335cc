//! Tests of each kind of volume and of the atomic writer. Those with tmpfs need root and say so when they pass by.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::atomic::{Entry, Payload};
use super::*;

static COUNT: AtomicU32 = AtomicU32::new(0);

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("pikelet-volume-{}-{n}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for error in mounts::remove_tree(&self.0) {
            eprintln!("{error}");
        }
    }
}

#[derive(Default)]
struct Fake {
    color: Mutex<String>,
    tokens: AtomicU32,
}

impl ObjectSource for Fake {
    fn config_map<'a>(&'a self, _ns: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<ConfigMap>, String>> {
        let color = self.color.lock().unwrap().clone();
        let map = serde_json::json!({"data": {"color": color, "b": "2"}, "binaryData": {"bin": "AAE="}});
        Box::pin(async move { Ok((name == "cm").then(|| serde_json::from_value(map).unwrap())) })
    }
    fn secret<'a>(&'a self, _ns: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<Secret>, String>> {
        let secret = serde_json::json!({"data": {"pass": "aHVudGVy"}});
        Box::pin(async move { Ok((name == "s").then(|| serde_json::from_value(secret).unwrap())) })
    }
    fn token<'a>(
        &'a self,
        _ns: &'a str,
        service_account: &'a str,
        _pod_name: &'a str,
        _pod_uid: &'a str,
        _audience: Option<String>,
        expiration_seconds: i64,
    ) -> BoxFuture<'a, Result<(String, i64), String>> {
        let n = self.tokens.fetch_add(1, Ordering::Relaxed);
        let expires = jiff::Timestamp::now().as_second() + expiration_seconds;
        Box::pin(async move { Ok((format!("{service_account}-{n}"), expires)) })
    }
}

fn pod(spec: serde_json::Value) -> Pod {
    let labels = serde_json::json!({"app": "web"});
    let meta = serde_json::json!({"name": "p", "namespace": "ns", "uid": "u-1", "labels": labels});
    serde_json::from_value(serde_json::json!({"metadata": meta, "spec": spec})).unwrap()
}

fn with_volume(volume: serde_json::Value) -> Pod {
    pod(serde_json::json!({"containers": [{"name": "c"}], "volumes": [volume]}))
}

fn volumes(dir: &Scratch) -> (Volumes, Arc<Fake>) {
    let fake = Arc::new(Fake { color: Mutex::new("red".into()), tokens: AtomicU32::new(0) });
    (Volumes::new(dir.0.clone(), fake.clone(), allocatable()), fake)
}

fn allocatable() -> fields::Allocatable {
    [("cpu", 1900), ("memory", 100 << 20)].into()
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("passed by: mounting needs root");
    }
    root
}

fn payload(files: &[(&str, &str)]) -> Payload {
    files
        .iter()
        .map(|(path, data)| ((*path).into(), Entry { data: (*data).into(), mode: 0o644, owner: None }))
        .collect()
}

#[test]
fn the_writer_swaps_all_files_at_once_and_leaves_the_unchanged_alone() {
    let dir = Scratch::new();
    assert!(atomic::write(&dir.0, &payload(&[("a", "1"), ("d/b", "2")]), None).unwrap());
    assert_eq!(fs::read_to_string(dir.0.join("d/b")).unwrap(), "2");
    assert_eq!(fs::read_link(dir.0.join("a")).unwrap(), Path::new("..data/a"));
    let first = fs::read_link(dir.0.join("..data")).unwrap();
    assert!(!atomic::write(&dir.0, &payload(&[("a", "1"), ("d/b", "2")]), None).unwrap());
    assert_eq!(fs::read_link(dir.0.join("..data")).unwrap(), first);
    assert!(atomic::write(&dir.0, &payload(&[("a", "9")]), None).unwrap());
    assert_eq!(fs::read_to_string(dir.0.join("a")).unwrap(), "9");
    assert!(!dir.0.join(first).exists());
    assert!(fs::symlink_metadata(dir.0.join("d")).is_err());
    assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 3);
}

#[test]
fn the_writer_refuses_paths_that_lead_out() {
    let dir = Scratch::new();
    for path in ["../x", "/etc/x", "a/../../x", "..data", ""] {
        assert!(atomic::write(&dir.0, &payload(&[(path, "1")]), None).is_err(), "{path}");
    }
}

#[test]
fn the_writer_gives_files_to_the_group() {
    if !is_root() {
        return;
    }
    let dir = Scratch::new();
    let files = Payload::from([("a".into(), Entry { data: vec![], mode: 0o600, owner: None })]);
    assert!(atomic::write(&dir.0, &files, Some(2000)).unwrap());
    let meta = fs::metadata(dir.0.join("a")).unwrap();
    assert_eq!((meta.gid(), meta.mode() & 0o777), (2000, 0o640));
    assert!(!atomic::write(&dir.0, &files, Some(2000)).unwrap());
}

#[tokio::test]
async fn config_map_is_written_and_refreshed() {
    let dir = Scratch::new();
    let (volumes, fake) = volumes(&dir);
    let pod = with_volume(serde_json::json!({"name": "v", "configMap": {"name": "cm", "defaultMode": 0o400,
        "items": [{"key": "color", "path": "x/color"}, {"key": "bin", "path": "bin", "mode": 0o444}]}}));
    let path = volumes.prepare(&pod).await.unwrap()["v"].clone();
    assert_eq!(path, dir.0.join("u-1/volumes/kubernetes.io~configmap/v"));
    assert_eq!(fs::read_to_string(path.join("x/color")).unwrap(), "red");
    assert_eq!(fs::read(path.join("bin")).unwrap(), [0, 1]);
    assert_eq!(fs::metadata(path.join("x/color")).unwrap().mode() & 0o777, 0o400);
    *fake.color.lock().unwrap() = "blue".into();
    volumes.refresh(&pod).await.unwrap();
    assert_eq!(fs::read_to_string(path.join("x/color")).unwrap(), "blue");
}

#[tokio::test]
async fn what_is_missing_is_named_as_kubelet_does() {
    let dir = Scratch::new();
    let (volumes, _) = volumes(&dir);
    for (volume, message) in [
        (serde_json::json!({"name": "v", "configMap": {"name": "y"}}), "configmap \"y\" not found"),
        (serde_json::json!({"name": "v", "secret": {"secretName": "y"}}), "secret \"y\" not found"),
        (
            serde_json::json!({"name": "v", "configMap": {"name": "cm", "items": [{"key": "k", "path": "k"}]}}),
            "references non-existent config key: k",
        ),
        (
            serde_json::json!({"name": "v", "iscsi": {"targetPortal": "s", "iqn": "i", "lun": 0}}),
            "this agent has no iscsi volumes",
        ),
    ] {
        let error = volumes.prepare(&with_volume(volume)).await.unwrap_err();
        assert_eq!(error.to_string(), format!("MountVolume.SetUp failed for volume \"v\" : {message}"));
    }
    let optional = serde_json::json!({"name": "v", "configMap": {"name": "y", "optional": true}});
    assert!(volumes.prepare(&with_volume(optional)).await.unwrap()["v"].is_dir());
}

#[tokio::test]
async fn projected_joins_its_sources_on_a_tmpfs_and_teardown_removes_it() {
    if !is_root() {
        return;
    }
    let dir = Scratch::new();
    let (volumes, fake) = volumes(&dir);
    let pod = with_volume(serde_json::json!({"name": "v", "projected": {"sources": [
        {"configMap": {"name": "cm"}}, {"secret": {"name": "s"}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}]}}));
    let path = volumes.prepare(&pod).await.unwrap()["v"].clone();
    volumes.refresh(&pod).await.unwrap();
    assert_eq!(fake.tokens.load(Ordering::Relaxed), 1);
    let read = |name: &str| fs::read_to_string(path.join(name)).unwrap();
    assert_eq!((read("color"), read("pass")), ("red".into(), "hunter".into()));
    assert_eq!((read("labels"), read("token")), ("app=\"web\"".into(), "default-0".into()));
    assert_ne!(fs::metadata(&path).unwrap().dev(), fs::metadata(&dir.0).unwrap().dev());
    assert_eq!(volumes.teardown("u-1").await, Vec::<String>::new());
    assert_eq!(volumes.teardown("u-1").await, Vec::<String>::new());
    assert!(!dir.0.join("u-1").exists());
}

#[tokio::test]
async fn empty_dir_is_open_to_all_and_given_to_the_group() {
    if !is_root() {
        return;
    }
    let dir = Scratch::new();
    let (volumes, _) = volumes(&dir);
    let pod = pod(serde_json::json!({"containers": [{"name": "c"}], "securityContext": {"fsGroup": 2000}, "volumes": [
        {"name": "disk", "emptyDir": {}}, {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]}));
    let paths = volumes.prepare(&pod).await.unwrap();
    volumes.prepare(&pod).await.unwrap();
    let meta = fs::metadata(&paths["disk"]).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o2777, 2000));
    assert!(fs::write(paths["mem"].join("big"), vec![0; 2 << 20]).is_err());
    assert_eq!(volumes.teardown("u-1").await, Vec::<String>::new());
}

#[tokio::test]
async fn teardown_does_not_follow_links() {
    let (dir, other) = (Scratch::new(), Scratch::new());
    let (volumes, _) = volumes(&dir);
    let path = volumes.prepare(&with_volume(serde_json::json!({"name": "v", "emptyDir": {}}))).await.unwrap();
    fs::write(other.0.join("keep"), "").unwrap();
    symlink(&other.0, path["v"].join("out")).unwrap();
    assert_eq!(volumes.teardown("u-1").await, Vec::<String>::new());
    assert!(other.0.join("keep").exists());
    assert_eq!(volumes.teardown("../x").await.len(), 1);
}

#[tokio::test]
async fn host_path_is_checked_against_its_type() {
    let dir = Scratch::new();
    let (volumes, _) = volumes(&dir);
    let at = |path: &str, kind: &str| {
        with_volume(serde_json::json!({"name": "v", "hostPath": {"path": path, "type": kind}}))
    };
    let error = volumes.prepare(&at("/etc/passwd", "Directory")).await.unwrap_err();
    assert_eq!(error.message, "hostPath type check failed: /etc/passwd is not a directory");
    let error = volumes.prepare(&at("/nonexistent", "File")).await.unwrap_err();
    assert_eq!(error.message, "hostPath type check failed: /nonexistent is not a file");
    assert!(volumes.prepare(&at("/dev/null", "CharDevice")).await.is_ok());
    let fresh = dir.0.join("a/b");
    volumes.prepare(&at(fresh.to_str().unwrap(), "DirectoryOrCreate")).await.unwrap();
    assert!(fresh.is_dir());
}

#[test]
fn resource_fields_are_divided() {
    let pod = pod(serde_json::json!({"containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m"}}}]}));
    let value = |resource: &str, divisor: &str| {
        let selector = serde_json::json!({"containerName": "c", "resource": resource, "divisor": divisor});
        let selector = serde_json::from_value(selector).unwrap();
        fields::resource_field(&pod, &selector, None, &allocatable()).unwrap()
    };
    assert_eq!((value("limits.cpu", "1"), value("limits.cpu", "1m")), ("2".into(), "1500".into()));
    assert_eq!(value("limits.memory", "1Mi"), "100", "what pods may have of the node");
    assert_eq!((value("limits.hugepages-2Mi", "1"), value("requests.memory", "1")), ("0".into(), "0".into()));
}

#[tokio::test]
async fn empty_dirs_of_huge_pages() {
    let dir = Scratch::new();
    let (volumes, _) = volumes(&dir);
    let on = |medium: &str, sizes: &[&str]| {
        let limits: BTreeMap<String, &str> = sizes.iter().map(|s| (format!("hugepages-{s}"), "4Mi")).collect();
        pod(serde_json::json!({"containers": [{"name": "c", "resources": {"limits": limits}}],
            "volumes": [{"name": "v", "emptyDir": {"medium": medium}}]}))
    };
    for (medium, sizes, error) in [
        ("HugePages", &[][..], "no container of the pod asks for huge pages"),
        ("HugePages", &["2Mi", "1Gi"], "say which"),
        ("HugePages-1Gi", &["2Mi"], "asks for hugepages-1Gi"),
        ("Other", &[], "not supported"),
    ] {
        let failed = volumes.prepare(&on(medium, sizes)).await.unwrap_err();
        assert!(failed.message.contains(error), "{failed}");
    }
    if !is_root() || !Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists() {
        eprintln!("no huge pages of 2 MiB here: not mounted");
        return;
    }
    let place = volumes.prepare(&on("HugePages", &["2Mi"])).await.unwrap()["v"].clone();
    let found = nix::sys::statfs::statfs(&place).unwrap();
    assert_eq!((found.filesystem_type(), found.block_size()), (nix::sys::statfs::HUGETLBFS_MAGIC, 2 << 20));
    assert!(mounts::remove_tree(&place).is_empty());
}
