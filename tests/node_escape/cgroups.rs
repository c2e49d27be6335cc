//! Containers that mount the machine's cgroups, as root of a user namespace of their own: no capability is needed for that.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::node::LIMIT;
use super::scene::Scene;

/// A mount point of cgroups, with what has to be mounted to see the same: type and options.
struct Hierarchy {
    point: PathBuf,
    mount: String,
}

fn hierarchies() -> Vec<Hierarchy> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let point = PathBuf::from(left.split(' ').nth(4)?);
        let mut right = right.split(' ');
        let (kind, options) = (right.next()?, right.nth(1)?);
        let mount = match kind {
            "cgroup2" => "-t cgroup2".to_owned(),
            "cgroup" => {
                let own: Vec<&str> =
                    options.split(',').filter(|o| !matches!(*o, "rw" | "xattr" | "nsdelegate")).collect();
                let none = if options.contains("name=") { "none," } else { "" };
                format!("-t cgroup -o {none}{}", own.join(","))
            }
            _ => return None,
        };
        Some(Hierarchy { point, mount })
    };
    text.lines().filter_map(of).collect()
}

/// Mounts each hierarchy at `/c0`, `/c1`, ..., and then runs `script` as root of its own namespaces.
fn with_cgroups(script: &str) -> String {
    let mounts = hierarchies()
        .into_iter()
        .enumerate()
        .map(|(n, h)| format!("mkdir -p /c{n}; busybox mount {} c /c{n};", h.mount));
    format!("cd /; /enemy users sh -c '{} {script}'", mounts.collect::<String>())
}

fn number_of(file: &str) -> Option<usize> {
    let has = |h: &Hierarchy| h.point.join(file).exists() || below_has(&h.point, file);
    hierarchies().iter().position(has)
}

fn below_has(point: &Path, file: &str) -> bool {
    fs::read_dir(point).unwrap().flatten().any(|e| e.path().join(file).exists())
}

/// Nothing of the host is below a container in any hierarchy, and so nothing there can be killed, frozen or made.
#[tokio::test]
async fn other_cgroups_are_not_below_a_container() {
    let Some(mut scene) = Scene::new("below") else { return };
    let name = format!("pikelet-below-{}", std::process::id());
    let made: Vec<PathBuf> = hierarchies().iter().map(|h| h.point.join(&name)).collect();
    made.iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
    scene.sandbox("s1", |_| {}).await;
    let script = format!(
        "for c in /c*; do test -e $c/cgroup.procs && echo mounted; test -e $c/{name} && echo sees $c; done; echo done"
    );
    let ended = scene.run("s1", scene.node.shell("c1", &with_cgroups(&script))).await;
    scene.start("s1", scene.node.container("c2", &["sleep", "1000"])).await.unwrap();
    let executed = scene.exec("s1", "c2", &["sh", "-c", &with_cgroups(&script)]).await;
    made.iter().for_each(|dir| fs::remove_dir(dir).unwrap());
    ended.unwrap();
    let (lines, executed) = (scene.lines("c1"), executed.unwrap().1);
    assert!(lines.iter().any(|l| l == "done") && executed.contains("done"), "{lines:?} {executed}");
    let seen: Vec<&str> =
        lines.iter().map(String::as_str).chain(executed.lines()).filter(|l| l.starts_with("sees")).collect();
    assert!(seen.is_empty(), "{seen:?} of {:?}", hierarchies().iter().map(|h| &h.point).collect::<Vec<_>>());
    scene.remove("s1").await;
}

/// What a container froze ends all the same, and so does what is to run in it.
#[tokio::test]
async fn a_frozen_container_ends_as_any_other() {
    let Some(scene) = Scene::new("frozen") else { return };
    let (file, on) =
        if number_of("freezer.state").is_some() { ("freezer.state", "FROZEN") } else { ("cgroup.freeze", "1") };
    let number = number_of(file).unwrap();
    scene.sandbox("s1", |_| {}).await;
    let child = format!(
        "mkdir /c{number}/x; sleep 1000 & echo $! >/c{number}/x/cgroup.procs; echo {on} >/c{number}/x/{file}; echo frozen; exec sleep 1000"
    );
    scene.start("s1", scene.node.shell("c1", &with_cgroups(&child))).await.unwrap();
    scene.says("c1", "frozen").await;
    let itself = format!("echo freezing; echo {on} >/c{number}/{file}; exec sleep 1000");
    scene.start("s1", scene.node.shell("c2", &with_cgroups(&itself))).await.unwrap();
    scene.says("c2", "freezing").await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    scene.bystander("s1").await;
    // one that starts late, or never
    let _ = scene.exec("s1", "c2", &["true"]).await;
    let began = Instant::now();
    while scene.node.cgroups().iter().any(|dir| holds_shim(&dir.join("cgroup.procs"))) {
        assert!(began.elapsed() < LIMIT, "a process of the shim's stays in a frozen container");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    scene.goes_on("s1").await;
    scene.remove("s1").await;
    scene.nothing_left("s1");
}

fn holds_shim(procs: &Path) -> bool {
    let text = fs::read_to_string(procs).unwrap_or_default();
    text.lines()
        .any(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "pikelet-shim"))
}

/// Cgroups in each other, deeper than a path can tell, and many beside each other, go with their pod.
#[tokio::test]
async fn cgroups_of_a_container_go_with_it() {
    let Some(mut scene) = Scene::new("nested") else { return };
    let number = number_of("pids.max").unwrap();
    scene.sandbox("s1", |_| {}).await;
    let script = format!(
        "cd /c{number}; /enemy nest 2500; cd /c{number}; for i in $(busybox seq 1000); do mkdir w$i || break; done; echo done"
    );
    scene.run("s1", scene.node.shell("c1", &with_cgroups(&script))).await.unwrap();
    let lines = scene.lines("c1");
    assert!(lines.iter().any(|l| l == "done") && lines.iter().any(|l| l.starts_with("made")), "{lines:?}");
    scene.bystander("s1").await;
    scene.goes_on("s1").await;
    scene.remove("s1").await;
    scene.nothing_left("s1");
}
