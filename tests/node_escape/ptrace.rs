//! `CAP_SYS_PTRACE` opens the doors `/proc` has into every process of a PID namespace: none may lead out of the container.

use pikelet::runtime::{ContainerSpec, SandboxSpec, Seccomp};

use super::runc::Runc;
use super::scene::{IDS, SECRET, Scene, tries};

/// A container that may look into every process it sees, in the root's PID namespace or the pod's.
fn tracer(scene: &Scene, id: &str, args: &[&str]) -> ContainerSpec {
    let mut spec = scene.node.container(id, args);
    spec.capabilities_add = vec!["SYS_PTRACE".into()];
    spec.cwd = "/".into();
    spec
}

async fn first_process(name: &str, change: impl FnOnce(&mut SandboxSpec)) {
    let Some(mut scene) = Scene::new(name) else { return };
    scene.give_to_pod();
    let marker = scene.marker();
    let shared = |s: &mut SandboxSpec| {
        s.share_process_namespace = true;
        change(s);
    };
    scene.sandbox("s1", shared).await;
    let spec = tracer(&scene, "c1", &["/enemy", "look", "1", &marker, SECRET]);
    scene.run("s1", spec).await.unwrap();
    assert_eq!(scene.lines("c1"), ["done"], "the pod's first process is a way to the host");
    scene.remove("s1").await;
}

#[tokio::test]
async fn the_first_process_of_a_shared_namespace_has_nothing_of_the_host() {
    first_process("pause", |_| {}).await;
}

#[tokio::test]
async fn nor_has_that_of_a_pod_with_users_of_its_own() {
    first_process("pause-users", |s| s.user_namespace = Some(IDS)).await;
}

/// What the hunter found while `work` went on: kinds of findings.
async fn hunted(scene: &mut Scene, sandbox: &str, work: impl AsyncFnOnce(&Scene)) -> Vec<String> {
    hunted_by(scene, sandbox, |_| {}, work).await
}

async fn hunted_by(
    scene: &mut Scene,
    sandbox: &str,
    change: impl FnOnce(&mut ContainerSpec),
    work: impl AsyncFnOnce(&Scene),
) -> Vec<String> {
    let marker = scene.marker();
    let _ = std::fs::remove_file(scene.rootfs().join("stop"));
    let _ = std::fs::remove_file(scene.node.log("hunter"));
    let mut spec = tracer(scene, "hunter", &["/enemy", "hunt", &marker, SECRET, "/stop"]);
    change(&mut spec);
    scene.start(sandbox, spec).await.unwrap();
    scene.says("hunter", "ready").await;
    work(scene).await;
    std::fs::write(scene.rootfs().join("stop"), "").unwrap();
    scene.says("hunter", "done").await;
    let lines = scene.lines("hunter");
    let seen = lines.iter().find_map(|l| l.strip_prefix("seen ")).and_then(|n| n.parse::<usize>().ok());
    eprintln!("{}: {lines:?}", std::thread::current().name().unwrap_or_default());
    assert!(seen.is_some_and(|n| n > 0), "no race was run: {lines:?}");
    lines.into_iter().filter(|l| l.starts_with("found ")).collect()
}

/// Makes containers beside the hunter, one after the other.
async fn neighbours(scene: &Scene, change: impl Fn(ContainerSpec) -> ContainerSpec) {
    for i in 0..tries(30) {
        let id = format!("c{i}");
        scene.start("s1", change(scene.node.container(&id, &["true"]))).await.unwrap();
        scene.runtime.remove_container("s1", &id).await.unwrap();
    }
}

/// Root, working directory, descriptors, program and environment of the host are never seen, whatever others show.
fn nothing_of_the_host(found: &[String]) {
    let strict: Vec<&String> = found.iter().filter(|l| !l.starts_with("found capability")).collect();
    assert!(strict.is_empty(), "{strict:?}");
}

/// Nothing that leads to the host; and beside that nothing runc does not show as well.
fn judge(found: &[String], runcs: Option<Vec<String>>) {
    let kind = |line: &String| line.split(" of ").next().unwrap_or_default().to_owned();
    let worse = |line: &&String| runcs.as_ref().is_none_or(|r| !r.iter().any(|r| kind(r) == kind(line)));
    let worse: Vec<&String> = found.iter().filter(worse).collect();
    eprintln!("runc: {runcs:?}");
    assert!(worse.is_empty(), "a container sees: {worse:?}; runc: {runcs:?}");
}

#[tokio::test]
async fn execs_are_of_the_container_when_they_are_seen() {
    let Some(mut scene) = Scene::new("race") else { return };
    scene.sandbox("s1", |_| {}).await;
    let found = hunted(&mut scene, "s1", async |scene| {
        for _ in 0..tries(100) {
            scene.exec("s1", "hunter", &["true"]).await.unwrap();
        }
    });
    let found = found.await;
    scene.remove("s1").await;
    nothing_of_the_host(&found);
    let runcs = Runc::hunted(&scene, tries(40), Runc::exec);
    judge(&found, runcs);
}

#[tokio::test]
async fn execs_of_a_pod_with_users_of_its_own_as_well() {
    let Some(mut scene) = Scene::new("race-users") else { return };
    scene.give_to_pod();
    scene.sandbox("s1", |s| s.user_namespace = Some(IDS)).await;
    let found = hunted(&mut scene, "s1", async |scene| {
        for _ in 0..tries(100) {
            scene.exec("s1", "hunter", &["true"]).await.unwrap();
        }
    });
    let found = found.await;
    scene.remove("s1").await;
    // what it may do among users of its own harms nobody else
    let strict: Vec<&String> = found.iter().filter(|l| !l.starts_with("found capability of")).collect();
    assert!(strict.is_empty(), "{strict:?}");
}

#[tokio::test]
async fn containers_of_a_shared_namespace_are_no_way_out_while_they_are_made() {
    let Some(mut scene) = Scene::new("race-create") else { return };
    scene.sandbox("s1", |s| s.share_process_namespace = true).await;
    let found = hunted(&mut scene, "s1", async |scene| {
        neighbours(scene, |spec| spec).await;
    });
    let found = found.await;
    scene.remove("s1").await;
    nothing_of_the_host(&found);
    let runcs = Runc::hunted(&scene, tries(30), Runc::neighbour);
    judge(&found, runcs);
}

#[tokio::test]
async fn nor_when_a_neighbour_moves_the_tracer_to_another_cgroup() {
    let Some(mut scene) = Scene::new("race-moved") else { return };
    scene.sandbox("s1", |s| s.share_process_namespace = true).await;
    let puller = ContainerSpec { cwd: "/".into(), ..scene.node.container("puller", &["/enemy", "pull", "/stop"]) };
    scene.start("s1", puller).await.unwrap();
    scene.says("puller", "ready").await;
    let found = hunted(&mut scene, "s1", async |scene| {
        // not possible with version 2
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        eprintln!("puller: {:?}", scene.lines("puller"));
        neighbours(scene, |spec| spec).await;
    });
    let found = found.await;
    scene.remove("s1").await;
    nothing_of_the_host(&found);
}

#[tokio::test]
async fn nor_are_ephemeral_containers_that_join_one() {
    let Some(mut scene) = Scene::new("race-target") else { return };
    scene.sandbox("s1", |_| {}).await;
    let found = hunted(&mut scene, "s1", async |scene| {
        neighbours(scene, |spec| ContainerSpec { target: Some("hunter".into()), ..spec }).await;
    });
    let found = found.await;
    scene.remove("s1").await;
    nothing_of_the_host(&found);
    let runcs = Runc::hunted(&scene, tries(30), Runc::neighbour);
    judge(&found, runcs);
}

/// A profile that refuses one call.
fn refusing(scene: &Scene, call: &str) -> Seccomp {
    let file = scene.node.dir.join(format!("{call}.json"));
    let refused = format!(r#"{{"names": ["{call}"], "action": "SCMP_ACT_ERRNO"}}"#);
    std::fs::write(&file, format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{refused}]}}"#)).unwrap();
    Seccomp::Localhost(file)
}

/// Without `no_new_privs`, loading a filter takes `CAP_SYS_ADMIN`: no filter may have a process keep that until it is seen.
#[tokio::test]
async fn no_filter_leaves_an_exec_more_than_its_container_has() {
    let Some(mut scene) = Scene::new("race-filter") else { return };
    scene.sandbox("s1", |_| {}).await;
    let profile = refusing(&scene, "setsid");
    let found = hunted_by(
        &mut scene,
        "s1",
        |s| s.seccomp = profile,
        async |scene| {
            for _ in 0..tries(50) {
                assert_eq!(scene.exec("s1", "hunter", &["true"]).await.unwrap().0, 0);
            }
        },
    );
    let found = found.await;
    scene.remove("s1").await;
    assert!(found.is_empty(), "{found:?}");
}

/// The same where the one who looks is a neighbour without that filter.
#[tokio::test]
async fn nor_one_that_a_neighbour_sees() {
    let Some(mut scene) = Scene::new("race-filter-target") else { return };
    for (call, works) in [("madvise", true), ("prctl", true), ("clone", false)] {
        scene.sandbox(call, |_| {}).await;
        let id = format!("victim-{call}");
        let mut spec = scene.node.shell(&id, "echo up; exec /enemy pause");
        spec.seccomp = refusing(&scene, call);
        scene.start(call, spec).await.unwrap();
        scene.says(&id, "up").await;
        let found = hunted_by(
            &mut scene,
            call,
            |s| s.target = Some(id.clone()),
            async |scene| {
                for _ in 0..tries(50) {
                    match scene.exec(call, &id, &["true"]).await {
                        Ok((code, said)) => assert!(works && code == 0, "{call}: {said}"),
                        Err(e) => assert!(!works && e.contains(call), "{call}: {e}"),
                    }
                }
                // for the hunter to see some
                for _ in 0..tries(50) {
                    scene.exec(call, "hunter", &["true"]).await.unwrap();
                }
            },
        );
        let found = found.await;
        scene.remove(call).await;
        assert!(found.is_empty(), "{call}: {found:?}");
    }
}

/// A first process that waits for its start has nothing more either.
#[tokio::test]
async fn nor_a_container_that_others_may_trace() {
    let Some(mut scene) = Scene::new("create-filter") else { return };
    scene.sandbox("s1", |s| s.share_process_namespace = true).await;
    let profiles = ["madvise", "setsid"].map(|call| refusing(&scene, call));
    let [refused, taken] = profiles.clone();
    let found = hunted(&mut scene, "s1", async |scene| {
        for i in 0..tries(10) {
            let mut spec = scene.node.container(&format!("c{i}"), &["true"]);
            spec.seccomp = refused.clone();
            let error = scene.runtime.create_container("s1", spec.clone()).await.unwrap_err().to_string();
            assert!(error.contains("refuses madvise"), "{error}");
            spec.seccomp = taken.clone();
            scene.start("s1", spec).await.unwrap();
            scene.runtime.remove_container("s1", &format!("c{i}")).await.unwrap();
        }
    });
    let found = found.await;
    assert!(found.is_empty(), "{found:?}");
    scene.remove("s1").await;
    // it may trace itself; without new privileges nothing is kept for the filter
    scene.sandbox("s2", |_| {}).await;
    let [refused, _] = profiles;
    let mut own = ContainerSpec { seccomp: refused, ..tracer(&scene, "own", &["true"]) };
    let error = scene.runtime.create_container("s2", own.clone()).await.unwrap_err().to_string();
    assert!(error.contains("refuses madvise"), "{error}");
    own.no_new_privileges = true;
    scene.run("s2", own).await.unwrap();
    scene.remove("s2").await;
}

/// Ends the search of the container `hunter`, and its pod.
async fn has_searched_in_vain(scene: &Scene) {
    std::fs::write(scene.rootfs().join("stop"), "").unwrap();
    scene.says("hunter", "done").await;
    let lines = scene.lines("hunter");
    scene.remove("s1").await;
    assert!(lines.iter().any(|l| l.starts_with("searched ")), "no race was won: {lines:?}");
    assert!(!lines.iter().any(|l| l.starts_with("found ")), "{lines:?}");
}

/// The process is a copy of one that knows all of the pod, and has nothing of that in its memory.
#[tokio::test]
async fn an_exec_knows_nothing_of_the_pods_other_containers() {
    let Some(scene) = Scene::new("search") else { return };
    scene.sandbox("s1", |_| {}).await;
    let mut other = scene.node.container("other", &["sleep", "1000"]);
    other.env.push(("PASSWORD".into(), SECRET.into()));
    scene.start("s1", other).await.unwrap();
    let spec = tracer(&scene, "hunter", &["/enemy", "search", SECRET, "/stop"]);
    scene.start("s1", spec).await.unwrap();
    scene.says("hunter", "ready").await;
    for _ in 0..tries(50) {
        scene.exec("s1", "hunter", &["true"]).await.unwrap();
    }
    has_searched_in_vain(&scene).await;
}

/// Nor does the first process of a container that waits for its start.
#[tokio::test]
async fn nor_does_a_container_that_waits() {
    let Some(scene) = Scene::new("search-create") else { return };
    scene.sandbox("s1", |s| s.share_process_namespace = true).await;
    let mut other = scene.node.container("other", &["sleep", "1000"]);
    other.env.push(("PASSWORD".into(), SECRET.into()));
    scene.start("s1", other).await.unwrap();
    let searched = |scene: &Scene| scene.lines("hunter").iter().any(|l| l.starts_with("searched "));
    let spec = tracer(&scene, "hunter", &["/enemy", "search", SECRET, "/stop"]);
    scene.start("s1", spec).await.unwrap();
    scene.says("hunter", "ready").await;
    for i in 0..tries(10) {
        let id = format!("c{i}");
        scene.runtime.create_container("s1", scene.node.container(&id, &["true"])).await.unwrap();
        // it waits until it was looked at
        for _ in 0..50 {
            if i > 0 || searched(&scene) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        scene.runtime.start_container("s1", &id).await.unwrap();
    }
    has_searched_in_vain(&scene).await;
}

/// The maker of an exec is in the host's PID namespace: whoever writes to the process it has made must not reach it.
#[tokio::test]
async fn whoever_changes_an_exec_changes_nothing_outside() {
    let Some(scene) = Scene::new("spoil") else { return };
    scene.sandbox("s1", |_| {}).await;
    let spec = tracer(&scene, "hunter", &["/enemy", "spoil", "/stop"]);
    scene.start("s1", spec).await.unwrap();
    scene.says("hunter", "ready").await;
    let spoilt = |scene: &Scene| scene.lines("hunter").iter().filter(|l| l.starts_with("spoilt ")).count();
    let mut failed = Vec::new();
    for _ in 0..tries(100) {
        failed.extend(scene.exec("s1", "hunter", &["true"]).await.err());
        if spoilt(&scene) >= 5 {
            break;
        }
    }
    std::fs::write(scene.rootfs().join("stop"), "").unwrap();
    scene.says("hunter", "done").await;
    let count = spoilt(&scene);
    scene.remove("s1").await;
    assert!(count > 0, "no race was won");
    // its maker goes on, and tells of it: no other code than its own was run there
    assert_eq!(failed, Vec::<String>::new(), "{count} were changed");
}
