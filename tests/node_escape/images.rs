//! Images made to harm: links where the runtime writes, and files that never end where it reads.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use pikelet::runtime::{Propagation, resolve_user};

use super::node::LIMIT;
use super::scene::{IDS, Scene, mount, own, snapshot};

/// A folder of the host with names the runtime would write to or remove.
fn victim(scene: &Scene) -> std::path::PathBuf {
    let victim = scene.node.dir.join("victim");
    for dir in ["pts", "shm", "mqueue", "here", "etc", "self/attr"] {
        fs::create_dir_all(victim.join(dir)).unwrap();
    }
    for file in ["ptmx", "console", "null", "core_pattern", "hosts", "self/attr/exec", "termination-log"] {
        fs::write(victim.join(file), "of the host\n").unwrap();
    }
    victim
}

/// Every folder the runtime mounts on as a link to that of the host, by each way to write it.
async fn links(name: &str, users: bool) {
    let Some(mut scene) = Scene::new(name) else { return };
    let victim = victim(&scene);
    if users {
        own(&victim);
    }
    let before = snapshot(&victim);
    // what resolves the link in the container finds such a folder there
    for inner in [scene.rootfs().join(victim.strip_prefix("/").unwrap()), scene.rootfs().join("victim")] {
        fs::create_dir_all(inner).unwrap();
    }
    for (n, place) in ["dev", "dev/pts", "dev/shm", "proc", "sys", "etc", "work", "data", "data/in"].iter().enumerate()
    {
        for (way, target) in [victim.clone(), "../victim".into(), "../../../../../../".into()].into_iter().enumerate() {
            let target = if way == 2 { target.join(victim.strip_prefix("/").unwrap()) } else { target };
            let link = scene.rootfs().join(place);
            let kept = link.with_extension("kept");
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            let had = fs::rename(&link, &kept).is_ok();
            symlink(&target, &link).unwrap();
            let (sandbox, id) = (format!("s{n}-{way}"), format!("c{n}-{way}"));
            if users {
                scene.give_to_pod();
            }
            scene.sandbox(&sandbox, |s| s.user_namespace = users.then_some(IDS)).await;
            let mut spec = scene.node.shell(&id, "echo x >/etc/written 2>/dev/null; echo ran");
            let own = scene.node.dir.join("own");
            fs::write(&own, "").unwrap();
            if !users {
                spec.mounts = ["/etc/hosts", "/dev/termination-log", "/data/in/volume"]
                    .map(|destination| mount(own.clone(), destination, Propagation::None))
                    .into();
            }
            let ran = scene.run(&sandbox, spec).await;
            let after = snapshot(&victim);
            assert!(
                before == after,
                "{place} -> {}: the host was written to: {before:#?} {after:#?}",
                target.display()
            );
            match ran {
                Ok(exit) => assert_eq!(exit.code, 0, "{place} -> {}: {:?}", target.display(), scene.lines(&id)),
                Err(e) => assert!(!e.is_empty() && !e.contains("victim/"), "{place}: {e}"),
            }
            scene.remove(&sandbox).await;
            let _ = fs::remove_file(&link);
            let _ = fs::remove_dir_all(&link);
            if had {
                fs::rename(&kept, &link).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn links_of_an_image_lead_nowhere_else() {
    links("links", false).await;
}

#[tokio::test]
async fn nor_do_they_in_pods_with_users_of_their_own() {
    links("links-users", true).await;
}

const HOSTILE: [&str; 8] = ["fifo", "zero", "random", "huge", "folder", "dangling", "loop", "socket"];

/// Makes `file` what its kind says.
fn make(kind: &str, file: &Path) {
    let _ = fs::remove_file(file).or_else(|_| fs::remove_dir(file));
    let run = |args: &[&str]| assert!(Command::new(args[0]).args(&args[1..]).status().unwrap().success(), "{args:?}");
    let path = file.to_str().unwrap();
    match kind {
        "fifo" => run(&["mkfifo", path]),
        "zero" => run(&["mknod", path, "c", "1", "5"]),
        "random" => run(&["mknod", path, "c", "1", "8"]),
        "huge" => run(&["truncate", "-s", "200G", path]),
        "folder" => fs::create_dir(file).unwrap(),
        "dangling" => symlink("/no/such/file", file).unwrap(),
        "loop" => symlink("passwd", file).unwrap(),
        _ => drop(UnixListener::bind(file).unwrap()),
    }
}

#[tokio::test]
async fn hostile_users_files_hang_nobody() {
    let Some(scene) = Scene::new("passwd") else { return };
    scene.sandbox("s1", |_| {}).await;
    scene.bystander("s1").await;
    let etc = scene.rootfs().join("etc");
    for kind in HOSTILE {
        for name in ["passwd", "group"] {
            make(kind, &etc.join(name));
        }
        // by the agent, when a pod or an image names a user
        let started = Instant::now();
        let found = resolve_user(&scene.rootfs(), "web:web");
        assert!(found.is_err() && started.elapsed() < LIMIT, "{kind}: {found:?} after {:?}", started.elapsed());
        // by the shim: at create, and for a program that comes later
        let id = format!("c-{kind}");
        scene.start("s1", scene.node.container(&id, &["sleep", "1000"])).await.unwrap();
        assert_eq!(scene.exec("s1", &id, &["true"]).await, Ok((0, String::new())), "{kind}");
        scene.goes_on("s1").await;
        scene.runtime.remove_container("s1", &id).await.unwrap();
        for name in ["passwd", "group"] {
            let file = etc.join(name);
            fs::remove_file(&file).or_else(|_| fs::remove_dir(&file)).unwrap();
        }
    }
    // it becomes one while the container runs
    let script = "busybox mkfifo /etc/passwd /etc/group; echo made; exec sleep 1000";
    scene.start("s1", scene.node.shell("c2", script)).await.unwrap();
    scene.says("c2", "made").await;
    assert_eq!(scene.exec("s1", "c2", &["true"]).await, Ok((0, String::new())));
    scene.goes_on("s1").await;
    scene.remove("s1").await;
}

/// CVE-2024-21626: a working directory that is a descriptor of the runtime's.
#[tokio::test]
async fn a_descriptor_is_no_working_directory() {
    let Some(mut scene) = Scene::new("cwd") else { return };
    scene.sandbox("s1", |_| {}).await;
    let up = "../../../../../../../../../../..";
    let script = format!("test -e ./{up}{0} || test -e .{0}; echo $?", scene.marker());
    for n in 3..=30 {
        let mut spec = scene.node.shell(&format!("c{n}"), &script);
        spec.cwd = format!("/proc/self/fd/{n}");
        if scene.run("s1", spec).await.is_ok() {
            assert_eq!(scene.lines(&format!("c{n}")), ["1"], "fd {n} leads to the host");
        }
    }
    // and for programs that come later: the folder becomes such a link
    let mut spec = scene.node.container("c", &["sleep", "1000"]);
    spec.cwd = "/work".into();
    scene.start("s1", spec).await.unwrap();
    for n in 3..=30 {
        let _ = fs::remove_dir(scene.rootfs().join("work")).or_else(|_| fs::remove_file(scene.rootfs().join("work")));
        symlink(format!("/proc/self/fd/{n}"), scene.rootfs().join("work")).unwrap();
        if let Ok((_, said)) = scene.exec("s1", "c", &["sh", "-c", &script]).await {
            assert_eq!(said, "1\n", "fd {n} leads to the host");
        }
    }
    scene.remove("s1").await;
}
