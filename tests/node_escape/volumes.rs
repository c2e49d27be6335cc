//! Volumes whose contents are made to lead the runtime astray.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use pikelet::runtime::{ContainerSpec, Propagation};
use pikelet::volume::{Follow, sub_path};

use super::scene::{IDS, Scene, mount, snapshot, tries};

fn folder(scene: &Scene, name: &str) -> PathBuf {
    let dir = scene.node.dir.join(name);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// What a container mounts in a volume of `None` stays in the container, whatever its other volumes are.
#[tokio::test]
async fn mounts_in_private_volumes_are_not_the_hosts() {
    // for this thread, and what it starts: a mount namespace whose mounts are shared
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>).unwrap();
    let Some(mut scene) = Scene::new("propagation") else { return };
    let volumes = folder(&scene, "volumes");
    nix::mount::mount(Some("none"), &volumes, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    nix::mount::mount(None::<&str>, &volumes, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
    for name in ["both", "none", "from"] {
        fs::create_dir_all(volumes.join(name).join("x")).unwrap();
    }
    scene.sandbox("s1", |_| {}).await;
    let script = "for v in both none from; do busybox mount -t tmpfs t-$v /$v/x || echo failed; done";
    let mut spec = scene.node.shell("c1", script);
    spec.privileged = true;
    spec.mounts = vec![
        mount(volumes.join("both"), "/both", Propagation::Bidirectional),
        mount(volumes.join("none"), "/none", Propagation::None),
        mount(volumes.join("from"), "/from", Propagation::HostToContainer),
    ];
    scene.run("s1", spec).await.unwrap();
    assert_eq!(scene.lines("c1"), [""; 0]);
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    for (name, wanted) in [("both", true), ("none", false), ("from", false)] {
        assert_eq!(mounts.contains(&format!(" t-{name} ")), wanted, "{name}: {mounts}");
    }
    scene.remove("s1").await;
    let _ = umount2(&volumes, MntFlags::MNT_DETACH);
}

/// CVE-2025-31133: what takes the place of masked files is `/dev/null`, and not what a volume has of that name.
/// CVE-2025-52565: nor is `/dev/console` a link of a volume's.
#[tokio::test]
async fn a_dev_of_a_volume_hides_and_shows_nothing() {
    let Some(mut scene) = Scene::new("dev-volume") else { return };
    let victim = scene.node.dir.join("victim");
    fs::write(&victim, "of the host\n").unwrap();
    scene.sandbox("s1", |_| {}).await;
    for (n, (target, tty)) in
        [("/etc/planted", false), ("/proc/self/status", false), ("/etc/planted", true)].into_iter().enumerate()
    {
        for link in [target.to_owned(), victim.display().to_string()] {
            let dev = folder(&scene, &format!("dev{n}-{}", link.len()));
            fs::write(scene.rootfs().join("etc/planted"), "planted\n").unwrap();
            for name in ["null", "console", "ptmx", "pts", "fd", "stdin", "stdout", "stderr"] {
                symlink(&link, dev.join(name)).unwrap();
            }
            let id = format!("c{n}-{}", link.len());
            let mut spec = scene.node.shell(&id, "cat /proc/keys /proc/kcore /proc/timer_list | head -c 4096");
            spec.mounts = vec![mount(dev, "/dev", Propagation::None)];
            spec.tty = tty;
            let ran = scene.run("s1", spec).await;
            let said = scene.lines(&id).join("\n");
            assert!(!said.contains("planted") && !said.contains("Name:"), "{link}: {said}");
            assert_eq!(fs::read_to_string(&victim).unwrap(), "of the host\n", "{link}");
            assert_eq!(fs::read_to_string(scene.rootfs().join("etc/planted")).unwrap(), "planted\n", "{link}");
            eprintln!("{link}, terminal {tty}: {ran:?}");
        }
    }
    scene.remove("s1").await;
}

/// However its path is spelled, and wherever links lead it: nothing is made in a volume or by its links, and a volume in the
/// place of the whole root is refused.
#[tokio::test]
async fn nothing_is_made_in_volumes_however_they_are_called() {
    let Some(mut scene) = Scene::new("astray") else { return };
    let victim = folder(&scene, "victim");
    fs::write(victim.join("ptmx"), "of the host\n").unwrap();
    fs::write(victim.join("null"), "of the host\n").unwrap();
    let volume = folder(&scene, "volume");
    for place in ["proc", "sys", "etc", "tmp"] {
        fs::create_dir_all(volume.join(place)).unwrap();
    }
    symlink(&victim, volume.join("dev")).unwrap();
    symlink("/dev", volume.join("x")).unwrap();
    symlink("/", volume.join("y")).unwrap();
    symlink("/dev", scene.rootfs().join("to-dev")).unwrap();
    symlink("/none/../dev", scene.rootfs().join("to-dev-too")).unwrap();
    symlink("/", scene.rootfs().join("to-root")).unwrap();
    scene.sandbox("s1", |_| {}).await;
    let before = [snapshot(&victim), snapshot(&volume)];
    let places = [
        ["/", "/a"],
        ["/bin/..", "/a"],
        ["/to-root", "/a"],
        ["/to-root/bin/..", "/a"],
        ["/dev/../dev", "/a"],
        ["/to-dev", "/a"],
        ["/to-dev-too/.", "/a"],
        ["//dev//", "/a"],
        ["/a", "/a/x"],
        ["/a", "/a/y"],
        ["/a", "/a/x/shm"],
        ["/a", "/a/y/dev"],
    ];
    for (n, places) in places.into_iter().enumerate() {
        let mut spec = scene.node.container(&format!("c{n}"), &["/enemy", "calls"]);
        spec.mounts = places.iter().map(|place| mount(volume.clone(), place, Propagation::None)).collect();
        let ran = scene.run("s1", spec).await;
        if n < 4 {
            assert!(ran.as_ref().unwrap_err().contains("the container's root"), "{places:?}: {ran:?}");
        }
        assert_eq!([snapshot(&victim), snapshot(&volume)], before, "{places:?}: {ran:?}");
    }
    scene.remove("s1").await;
}

/// What is to lie in another volume does, with what it lacks made there.
#[tokio::test]
async fn volumes_lie_in_volumes() {
    let Some(mut scene) = Scene::new("nested-volumes") else { return };
    let [outer, inner, deeper] = ["outer", "inner", "deeper"].map(|name| folder(&scene, name));
    fs::write(inner.join("is"), "inner\n").unwrap();
    fs::write(deeper.join("is"), "deeper\n").unwrap();
    scene.sandbox("s1", |_| {}).await;
    let script = "cat /a/new/in/is /a/new/in/and/is /a/new/file; echo x >/a/new/in/w; echo x 2>/dev/null >/a/new/in/and/w || echo refused";
    let mut spec = scene.node.shell("c1", script);
    spec.mounts = vec![
        mount(deeper.clone(), "/a/new/in/and", Propagation::None),
        mount(inner.clone(), "/a/new/in/", Propagation::HostToContainer),
        mount(outer.clone(), "/a", Propagation::None),
        mount(inner.join("is"), "/a/new/file", Propagation::None),
    ];
    spec.mounts[0].read_only = true;
    scene.run("s1", spec).await.unwrap();
    assert_eq!(scene.lines("c1"), ["inner", "deeper", "inner", "refused"]);
    assert!(inner.join("w").exists() && inner.join("and").is_dir() && outer.join("new/file").is_file());
    scene.remove("s1").await;
}

/// So may the program, and its working directory.
#[tokio::test]
async fn programs_run_in_volumes_in_volumes() {
    let Some(mut scene) = Scene::new("nested-program") else { return };
    let [outer, inner] = ["outer", "inner"].map(|name| folder(&scene, name));
    fs::write(inner.join("is"), "inner\n").unwrap();
    fs::copy(scene.rootfs().join("bin/busybox"), inner.join("busybox")).unwrap();
    scene.sandbox("s1", |_| {}).await;
    // the second time the place is there, and what it covers would be seen
    for (n, place) in ["/a/in", "/a/in", "/a/deep/er"].into_iter().enumerate() {
        let id = format!("c{n}");
        let mut spec = scene.node.container(&id, &[&format!("{place}/busybox"), "cat", "is"]);
        spec.cwd = place.into();
        spec.mounts =
            vec![mount(outer.clone(), "/a", Propagation::None), mount(inner.clone(), place, Propagation::None)];
        let ran = scene.run("s1", spec).await.map(|exit| exit.code);
        assert_eq!((ran, scene.lines(&id)), (Ok(0), vec!["inner".to_owned()]), "{place}");
    }
    scene.remove("s1").await;
}

/// CVE-2025-52881: what is written to `/proc` on behalf of a container goes to the kernel, not where a volume says.
#[tokio::test]
async fn proc_is_the_kernels() {
    let Some(mut scene) = Scene::new("proc-volume") else { return };
    scene.sandbox("s1", |_| {}).await;
    for (n, destination) in
        ["/proc", "/proc/self/attr", "/proc/sys/kernel", "/proc/thread-self", "/proc/1"].into_iter().enumerate()
    {
        let volume = folder(&scene, &format!("proc{n}"));
        for dir in ["self/attr", "sys/kernel", "self/fd"] {
            fs::create_dir_all(volume.join(dir)).unwrap();
        }
        for file in ["self/oom_score_adj", "self/attr/exec", "sys/kernel/shmmax", "exec", "self/setgroups"] {
            fs::write(volume.join(file), "").unwrap();
        }
        let mut spec = scene.node.container(&format!("c{n}"), &["true"]);
        spec.mounts = vec![mount(volume.clone(), destination, Propagation::None)];
        spec.oom_score_adj = 777;
        let ran = scene.run("s1", spec).await;
        eprintln!("{destination}: {ran:?}");
        for file in ["self/oom_score_adj", "self/attr/exec", "exec", "self/setgroups"] {
            assert_eq!(fs::read_to_string(volume.join(file)).unwrap(), "", "{destination}: {file}");
        }
    }
    scene.remove("s1").await;
}

/// Whoever can write to a volume renames while a `subPath` of it is looked up.
#[test]
fn a_sub_path_never_leads_out_of_its_volume() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let Some(scene) = Scene::new("sub-path") else { return };
    let (volume, victim) = (folder(&scene, "volume"), folder(&scene, "victim"));
    fs::create_dir_all(victim.join("b")).unwrap();
    fs::write(victim.join("b/host"), "").unwrap();
    fs::create_dir_all(volume.join("kept/b")).unwrap();
    symlink(&victim, volume.join("link")).unwrap();
    fs::create_dir_all(volume.join("a/b")).unwrap();
    let over = AtomicBool::new(false);
    let found = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let _ = fs::rename(volume.join("a"), volume.join("kept"));
                let _ = fs::rename(volume.join("link"), volume.join("a"));
                let _ = fs::rename(volume.join("a"), volume.join("link"));
                let _ = fs::rename(volume.join("kept"), volume.join("a"));
            }
        });
        let mut found = 0;
        for n in 0..tries(500) {
            let place = scene.node.dir.join("places").join(n.to_string());
            for (sub, create) in [("a/b", false), ("a/new", true)] {
                if sub_path(&volume, sub, &place, create, Follow::Source).is_ok() {
                    found += i32::from(place.join("host").exists());
                    let _ = umount2(&place, MntFlags::MNT_DETACH);
                }
                let _ = fs::remove_dir(&place);
            }
        }
        over.store(true, Ordering::Relaxed);
        found
    });
    assert_eq!((found, victim.join("new").exists()), (0, false));
}

/// A volume whose folder becomes a link while a container that has it is made.
#[tokio::test]
async fn destinations_are_in_the_container() {
    let Some(mut scene) = Scene::new("destinations") else { return };
    let (shared, victim, inner) = (folder(&scene, "shared"), folder(&scene, "victim"), folder(&scene, "inner"));
    fs::write(inner.join("of-the-volume"), "").unwrap();
    scene.sandbox("s1", |_| {}).await;
    // one container of the pod renames, while another is made that mounts below what is renamed
    let script = format!(
        "ln=busybox; $ln mkdir -p /s/kept; $ln ln -s {0} /s/link; $ln ln -s ../../../../../..{0} /s/link2; echo on
         while :; do for l in link link2; do $ln mv -T /s/$l /s/a; $ln mv -T /s/a /s/$l; $ln mv -T /s/kept /s/a; $ln mv -T /s/a /s/kept; done; done 2>/dev/null",
        victim.display()
    );
    let volume = mount(shared.clone(), "/s", Propagation::None);
    scene
        .start("s1", ContainerSpec { mounts: vec![volume.clone()], ..scene.node.shell("racer", &script) })
        .await
        .unwrap();
    scene.says("racer", "on").await;
    for n in 0..tries(40) {
        let mut spec = scene.node.container(&format!("c{n}"), &["true"]);
        spec.mounts = vec![volume.clone(), mount(inner.clone(), "/s/a/new", Propagation::None)];
        if scene.run("s1", spec).await.is_ok() {
            let _ = scene.runtime.remove_container("s1", &format!("c{n}")).await;
        }
        let outside: Vec<_> = fs::read_dir(&victim).unwrap().flatten().map(|e| e.path()).collect();
        assert!(outside.is_empty(), "{outside:?}");
    }
    scene.remove("s1").await;
}

/// Whoever is root of users of its own changes what was mounted there, and not what came there as it is.
#[tokio::test]
async fn what_is_read_only_stays_so_for_the_root_of_a_pod() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>).unwrap();
    let Some(mut scene) = Scene::new("remount") else { return };
    let volume = folder(&scene, "volume");
    // ID-mapped mounts need a file system that has them
    nix::mount::mount(Some("none"), &volume, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::create_dir(volume.join("below")).unwrap();
    let options = Some("mode=0755");
    nix::mount::mount(Some("none"), &volume.join("below"), Some("tmpfs"), MsFlags::empty(), options).unwrap();
    let before = snapshot(&volume);
    scene.give_to_pod();
    scene.sandbox("s1", |s| s.user_namespace = Some(IDS)).await;
    let script = "for d in /h /h/below /r /r/below /x; do
                    busybox mount -o remount,bind,rw,exec,suid,dev $d 2>/dev/null && echo remounted $d
                    { echo x >$d/planted; } 2>/dev/null && echo wrote $d
                  done; busybox mount -t tmpfs none /tmp || echo no root; echo done";
    let mut spec = scene.node.shell("c1", script);
    spec.capabilities_add = vec!["SYS_ADMIN".into()];
    let [mut recursive, mut plain, mut data] =
        ["/r", "/h", "/x"].map(|place| mount(volume.clone(), place, Propagation::None));
    (plain.read_only, recursive.read_only, recursive.recursive_read_only) = (true, true, true);
    (data.read_only, data.no_exec) = (true, true);
    spec.mounts = vec![recursive, plain, data];
    scene.run("s1", spec).await.unwrap();
    let lines = scene.lines("c1");
    scene.remove("s1").await;
    // what is mounted below is not read-only where nothing says so, and is nobody's of the pod
    assert_eq!(lines, ["remounted /h/below", "done"]);
    assert_eq!(snapshot(&volume), before);
    let _ = umount2(&volume, MntFlags::MNT_DETACH);
}
