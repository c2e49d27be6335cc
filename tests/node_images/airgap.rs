//! Boards without a network: a folder of archives at the start of the agent, and archives by hand.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use pikelet::image::{ImageStore, StoreConfig};
use serde_json::{Value, json};
use tar::{Builder, Header};

use crate::archives::{docker_save, empty_store};
use crate::scene::*;

fn folder(scene: &Scene) -> PathBuf {
    let dir = scene.dir.join("archives");
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// Imports the folder as an agent does at its start; returns what it reported.
async fn start(config: &StoreConfig) -> (ImageStore, Vec<String>) {
    let store = ImageStore::open(config.clone()).await.unwrap();
    assert!(store.is_importing());
    let reports = std::sync::Mutex::new(Vec::new());
    store.import_folder(|reason, message| reports.lock().unwrap().push(format!("{reason}: {message}"))).await;
    assert!(!store.is_importing());
    (store, reports.into_inner().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_archives_is_imported_once_for_each_content() {
    let Some(scene) = scene("folder") else { return };
    let dir = folder(&scene);
    let good = docker_save(&[("r.example/a:1", go_arch())], &base());
    fs::write(dir.join("a.tar"), &good).unwrap();
    fs::write(dir.join("b.tar.gz"), gzip(&docker_save(&[("r.example/b:1", go_arch())], &upper()))).unwrap();
    fs::write(dir.join("bad.tar"), &good[..1000]).unwrap();
    fs::write(dir.join("readme.txt"), "text").unwrap();
    let config = StoreConfig { import_dir: Some(dir.clone()), ..empty_store(&scene, "store", false) };
    let (store, reports) = start(&config).await;
    let names = async |store: &ImageStore| {
        let images = store.list().await.unwrap();
        let mut names: Vec<_> = images.into_iter().flat_map(|i| i.repo_tags).collect();
        names.sort();
        names
    };
    assert_eq!(names(&store).await, ["r.example/a:1", "r.example/b:1"]);
    assert!(reports.len() == 1 && reports[0].starts_with("ImageImportFailed: "), "{reports:?}");
    assert!(reports[0].contains("bad.tar"), "{reports:?}");
    // never garbage
    let policy = pikelet::image::GcPolicy {
        max_age: std::time::Duration::from_nanos(1),
        high_percent: 100,
        ..Default::default()
    };
    assert_eq!(store.collect_garbage(&policy).await.unwrap(), 0);
    fs::remove_file(dir.join("bad.tar")).unwrap();

    // spoiled behind its back, same size and time: it is not read again, and nothing is written
    let time = fs::metadata(dir.join("a.tar")).unwrap().modified().unwrap();
    let spoil = |time| {
        let mut file = fs::File::create(dir.join("a.tar")).unwrap();
        file.write_all(&vec![b'x'; good.len()]).unwrap();
        file.set_modified(time).unwrap();
    };
    spoil(time);
    let state = || (fs::metadata(config.dir.join("imported.json")).unwrap().modified().unwrap(), tree(&config.dir));
    let before = state();
    let (store, reports) = start(&config).await;
    assert!(reports.is_empty() && state() == before, "{reports:?}");
    // an image that was removed comes back, so the archive is read
    store.remove("r.example/a:1").await.unwrap();
    let (_, reports) = start(&config).await;
    assert!(reports.len() == 1 && reports[0].contains("a.tar"), "{reports:?}");
    // new content under an old name
    fs::write(dir.join("a.tar"), docker_save(&[("r.example/c:1", go_arch())], &base())).unwrap();
    let (store, reports) = start(&config).await;
    assert_eq!((names(&store).await, reports.len()), (vec!["r.example/b:1".to_owned(), "r.example/c:1".to_owned()], 0));
}

/// The layer of an image that has a busybox.
fn busybox() -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    let program = fs::read("/bin/busybox").unwrap();
    header.set_mode(0o755);
    header.set_size(program.len() as u64);
    tar.append_data(&mut header, "bin/busybox", program.as_slice()).unwrap();
    tar.into_inner().unwrap()
}

#[test]
fn pods_start_from_the_folder_with_no_registry_and_archives_go_in_and_out_by_hand() {
    let Some(scene) = scene("by-hand") else { return };
    let dir = scene.dir.join("root/images-import");
    fs::create_dir_all(&dir).unwrap();
    let archive = docker_save(&[("r.invalid/box:1", go_arch())], &busybox());
    fs::write(dir.join("box.tar.zst"), zstd(&archive)).unwrap();
    let manifests = scene.dir.join("manifests");
    fs::create_dir_all(&manifests).unwrap();
    for policy in ["Never", "IfNotPresent"] {
        let name = policy.to_lowercase();
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"hostNetwork": true, "terminationGracePeriodSeconds": 0, "containers": [{"name": "c",
                "image": "r.invalid/box:1", "imagePullPolicy": policy,
                "command": ["/bin/busybox", "sleep", "1000"]}]}});
        fs::write(manifests.join(format!("{name}.json")), pod.to_string()).unwrap();
    }
    let agent = crate::commands::Agent::new(&scene, "r.invalid", &["--pod-manifest-path", manifests.to_str().unwrap()]);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let shown = agent.says("ps", &[]);
        if shown.lines().filter(|l| l.contains("Running")).count() == 2 {
            break;
        }
        assert!(std::time::Instant::now() < end, "{shown}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    // one that runs is not removed; what is listed says that it is not garbage
    let list: Value = serde_json::from_str(&agent.says("images", &["-o", "json"])).unwrap();
    assert_eq!(list["images"][0]["pinned"], json!(true));

    let out = scene.dir.join("out.tar");
    let path = out.to_str().unwrap();
    agent.says("image export", &[path, "r.invalid/box:1"]);
    let printed = agent.says("image import", &[path, "--name", "r.invalid/copy:1"]);
    assert!(printed.starts_with("r.invalid/copy:1 sha256:"), "{printed}");
    let piped = format!(
        "{0} image export --state-dir {1} - r.invalid/box:1 | {0} image import --state-dir {1} --name r.invalid/piped -",
        env!("CARGO_BIN_EXE_pikelet"),
        agent.state_dir.display()
    );
    let piped = Command::new("sh").args(["-c", &piped]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&piped.stdout).split(' ').next(), Some("r.invalid/piped:latest"), "{piped:?}");
    assert!(agent.says("image list", &[]).contains("r.invalid/piped"));
    agent.says("image rm", &["r.invalid/piped:latest"]);
    fs::write(&out, &archive[..archive.len() / 2]).unwrap();
    assert!(agent.refuses("image import", &[path]).contains("archive"));
    assert!(agent.refuses("image export", &[path, "r.invalid/none:1"]).contains("not in the store"));
    let _ = Command::new(env!("CARGO_BIN_EXE_pikelet"))
        .arg("drain-local")
        .arg("--state-dir")
        .arg(&agent.state_dir)
        .status();
}
