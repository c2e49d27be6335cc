//! Tests of each kind of volume and of the atomic writer. Those with tmpfs need root and say so when they pass by.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::atomic::{Entry, Payload};
use super::*;
use k8s_openapi::api::core::v1::VolumeMount;

static COUNT: AtomicU32 = AtomicU32::new(0);

pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
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
pub(super) struct Fake {
    color: Mutex<String>,
    tokens: AtomicU32,
    /// What the persistent volume `pv` is.
    pub(super) pv: Mutex<serde_json::Value>,
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
    fn claim<'a>(
        &'a self,
        _ns: &'a str,
        _name: &'a str,
        _uid: &'a str,
    ) -> BoxFuture<'a, Result<Option<PersistentVolumeClaim>, String>> {
        let claim =
            serde_json::json!({"metadata": {"uid": "c-1"}, "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}});
        Box::pin(async move { Ok(Some(serde_json::from_value(claim).unwrap())) })
    }
    fn persistent_volume<'a>(
        &'a self,
        name: &'a str,
        _uid: &'a str,
    ) -> BoxFuture<'a, Result<Option<PersistentVolume>, String>> {
        let mut spec = self.pv.lock().unwrap().clone();
        spec["claimRef"] = serde_json::json!({"uid": "c-1"});
        let pv = serde_json::json!({"metadata": {"name": name}, "spec": spec});
        Box::pin(async move { Ok(Some(serde_json::from_value(pv).unwrap())) })
    }
    fn selects_node<'a>(&'a self, selector: &'a NodeSelector) -> BoxFuture<'a, bool> {
        let labels = [("disk".to_owned(), "sd".to_owned())].into();
        Box::pin(async move { crate::node_selector::matches(selector, &labels, "pi") })
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
    let mut pod: Pod = serde_json::from_value(serde_json::json!({"metadata": meta, "spec": spec})).unwrap();
    let mount = |v: &Volume| VolumeMount { name: v.name.clone(), ..VolumeMount::default() };
    let mounts = pod_volumes(&pod).iter().map(mount).collect();
    pod.spec.as_mut().unwrap().containers[0].volume_mounts = Some(mounts);
    pod
}

pub(super) fn with_volume(volume: serde_json::Value) -> Pod {
    pod(serde_json::json!({"containers": [{"name": "c"}], "volumes": [volume]}))
}

pub(super) fn volumes(dir: &Scratch) -> (Volumes, Arc<Fake>) {
    let fake = Arc::new(Fake { color: Mutex::new("red".into()), ..Fake::default() });
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
fn the_writer_follows_nothing_that_others_put_into_the_volume() {
    let dir = Scratch::new();
    let (volume, outside) = (dir.0.join("volume"), dir.0.join("outside"));
    fs::create_dir_all(&volume).unwrap();
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("a"), "1").unwrap();
    fs::set_permissions(outside.join("a"), fs::Permissions::from_mode(0o644)).unwrap();
    // what is outside is not taken for the volume's own
    symlink(&outside, volume.join("..data")).unwrap();
    assert!(atomic::write(&volume, &payload(&[("a", "1")]), None).unwrap());
    // a FIFO in the place of a file is not waited for, and a folder in that of a link goes
    let current = volume.join(fs::read_link(volume.join("..data")).unwrap());
    fs::remove_file(current.join("a")).unwrap();
    nix::unistd::mkfifo(&current.join("a"), nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    fs::remove_file(volume.join("a")).unwrap();
    fs::create_dir_all(volume.join("a/b")).unwrap();
    assert!(atomic::write(&volume, &payload(&[("a", "1")]), None).unwrap());
    assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "1");
    // folders that are changed for links while they are filled
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for entry in fs::read_dir(&volume).into_iter().flatten().flatten() {
                    if entry.file_name().to_string_lossy().starts_with("..2") {
                        let _ = fs::rename(entry.path(), volume.join("moved"));
                        let _ = symlink(&outside, entry.path());
                    }
                }
            }
        });
        for n in 0..300 {
            // whether it works is the others' choice
            let _ = atomic::write(&volume, &payload(&[("b", &n.to_string()), ("d/c", "2")]), None);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let left: Vec<_> = fs::read_dir(&outside).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["a"], "written outside of the volume");
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
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(path.to_str().unwrap())).unwrap();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let number: Vec<u32> = release.split('.').take(2).filter_map(|n| n.parse().ok()).collect();
    assert!(line.contains("noswap") || number < vec![6, 4], "{line}");
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

/// Runs `work` where mounts are shared, as on machines with systemd, and nobody else sees them.
fn where_mounts_are_shared<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send + 'static) {
    if !is_root() {
        return;
    }
    let run = || {
        crate::mount_tree::shared_namespace();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work());
    };
    std::thread::spawn(run).join().unwrap();
}

fn tmpfs(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    nix::mount::mount(Some("tmpfs"), dir, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
    fs::write(dir.join("file"), "1").unwrap();
}

#[test]
fn the_end_of_a_pod_leaves_the_nodes_own_mounts_alone() {
    where_mounts_are_shared(|| async {
        let dir = Scratch::new();
        let (disk, photos) = (dir.0.join("disk"), dir.0.join("disk/a/photos"));
        tmpfs(&disk);
        tmpfs(&photos);
        let pods = Scratch(dir.0.join("pods"));
        let (volumes, fake) = volumes(&pods);
        for propagation in ["None", "HostToContainer", "Bidirectional"] {
            *fake.pv.lock().unwrap() = serde_json::json!({"local": {"path": disk}});
            let mount = serde_json::json!({"name": "v", "mountPath": "/v", "mountPropagation": propagation});
            let pod = pod(serde_json::json!({"containers": [{"name": "c", "volumeMounts": [mount]}],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}));
            let place = volumes.prepare(&pod).await.unwrap()["v"].clone();
            assert!(place.join("a/photos/file").exists());
            let later = disk.join(propagation);
            tmpfs(&later);
            assert!(place.join(propagation).join("file").exists(), "what is mounted later is seen");
            let part = pods.0.join("u-1/volume-subpaths/run/0");
            let follow = crate::mount_tree::Follow::Source;
            sub_path(&disk, "a", &part, true, follow).unwrap();
            assert!(part.join("photos/file").exists());
            release_sub_paths(part.parent().unwrap()).unwrap();
            assert!(photos.join("file").exists(), "the end of a container unmounted a disk of the node");
            assert_eq!(volumes.teardown("u-1").await, Vec::<String>::new());
            assert!(photos.join("file").exists() && later.join("file").exists(), "the end of a pod did, {propagation}");
            assert!(!pods.0.join("u-1").exists());
        }
        // as an older version bound them
        let place = pods.0.join("u-1/volumes/kubernetes.io~local-volume/pv");
        fs::create_dir_all(&place).unwrap();
        let flags = nix::mount::MsFlags::MS_BIND | nix::mount::MsFlags::MS_REC;
        nix::mount::mount(Some(&disk), &place, None::<&str>, flags, None::<&str>).unwrap();
        assert_eq!(volumes.teardown("u-1").await, Vec::<String>::new());
        assert!(photos.join("file").exists());
    });
}

/// A program that stands in for `pikelet mount-nfs`.
fn mounting(dir: &Scratch, script: &str) -> nfs::Mounter {
    let program = dir.0.join("mounts");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    nfs::Mounter::of(program)
}

#[test]
fn a_mount_that_takes_too_long_is_ended_before_anything_is_removed() {
    where_mounts_are_shared(|| async {
        let dir = Scratch::new();
        let pods = Scratch(dir.0.join("pods"));
        let (mut volumes, _) = volumes(&pods);
        let script = format!("echo $$ >> {}/started; exec sleep 600", dir.0.display());
        volumes.nfs = Arc::new(mounting(&dir, &script));
        volumes.patience = Duration::from_millis(300);
        let pod = with_volume(serde_json::json!({"name": "v", "nfs": {"server": "192.0.2.1", "path": "/data"}}));
        for _ in 0..3 {
            let error = volumes.prepare(&pod).await.unwrap_err();
            assert!(error.message.contains("no answer"), "{error}");
        }
        let started = fs::read_to_string(dir.0.join("started")).unwrap();
        assert_eq!(started.lines().count(), 1, "one at a time for a volume");
        assert_eq!(volumes.teardown("u-1").await, Vec::<String>::new());
        assert!(!Path::new("/proc").join(started.trim()).exists() && !pods.0.join("u-1").exists());
    });
}

#[test]
fn nothing_is_removed_beside_a_mount_that_is_under_way() {
    where_mounts_are_shared(|| async {
        let dir = Scratch::new();
        let pods = Scratch(dir.0.join("pods"));
        let (volumes, _) = volumes(&pods);
        let path = volumes.prepare(&with_volume(serde_json::json!({"name": "v", "emptyDir": {}}))).await.unwrap();
        fs::write(path["v"].join("file"), "").unwrap();
        let pass = volumes.under_way.gate("u-1").enter().unwrap();
        let errors = volumes.teardown("u-1").await;
        assert!(errors.len() == 1 && errors[0].contains("still being mounted"), "{errors:?}");
        assert!(path["v"].join("file").exists());
        let late = volumes.prepare(&with_volume(serde_json::json!({"name": "w", "emptyDir": {}}))).await.unwrap_err();
        assert!(late.message.contains("taken down"), "{late}");
        drop(pass);
        assert_eq!(volumes.teardown("u-1").await, Vec::<String>::new());
        assert!(!pods.0.join("u-1").exists());
    });
}

#[tokio::test]
async fn a_part_of_a_volume_that_never_answers_is_waited_for_with_a_limit() {
    let dir = Scratch::new();
    let (disk, place) = (dir.0.join("disk"), dir.0.join("u-1/volume-subpaths/run/0"));
    fs::create_dir_all(&disk).unwrap();
    // a server of this file system that reads nothing and answers nothing
    let Ok(server) = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") else { return };
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", std::os::fd::AsRawFd::as_raw_fd(&server));
    let flags = nix::mount::MsFlags::empty();
    if nix::mount::mount(Some("dead"), &disk, Some("fuse"), flags, Some(options.as_str())).is_err() {
        return eprintln!("not root: passed by");
    }
    let (mut volumes, _) = volumes(&dir);
    volumes.patience = Duration::from_millis(200);
    let pod = pod(serde_json::json!({"containers": [{"name": "c"}]}));
    let part = Part { volume: disk.clone(), sub: "a".into(), place, create: true, follow: Follow::Source };
    for _ in 0..3 {
        let error = volumes.bind_part(&pod, "v", part.clone()).await.unwrap_err();
        assert!(error.contains("no answer"), "{error}");
        let error = volumes.is_block_device(&pod, "v", &disk).await.unwrap_err();
        assert!(error.contains("no answer"), "{error}");
    }
    // the server ends, and with it what waits
    drop(server);
    let errors = loop {
        let errors = volumes.teardown("u-1").await;
        if !errors.iter().any(|e| e.contains("still being mounted")) {
            break errors;
        }
    };
    assert_eq!(errors, Vec::<String>::new());
    nix::mount::umount2(&disk, nix::mount::MntFlags::MNT_DETACH).unwrap();
}
