//! Containers that stop, flood or starve what the rest of their pod, and the node, depends on.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use pikelet::runtime::{ContainerSpec, RuntimeEvent};

use super::node::{LIMIT, exit_of};
use super::scene::{Scene, tries};

/// A program that is stopped while it is made ready stops nothing else: it takes no more than the default capabilities.
#[tokio::test]
async fn a_program_that_is_stopped_on_its_way_stops_nobody() {
    let Some(scene) = Scene::new("stop") else { return };
    scene.sandbox("s1", |_| {}).await;
    scene.bystander("s1").await;
    let spec = scene.node.container("c1", &["/enemy", "stop", "/stop"]);
    scene.start("s1", spec).await.unwrap();
    scene.says("c1", "ready").await;
    let args = || vec!["true".to_owned()];
    for _ in 0..tries(3).min(50) {
        // what becomes of it is its container's business, but for the time
        let one = async {
            if let Ok(streams) = scene.runtime.exec_bound("s1", "c1", args(), Default::default()).await {
                let mut streams = streams;
                let _ = tokio::time::timeout(Duration::from_millis(300), streams.ending.wait()).await;
            }
        };
        tokio::time::timeout(LIMIT, one).await.expect("an exec that is stopped holds up its shim");
    }
    scene.goes_on("s1").await;
    fs::write(scene.rootfs().join("stop"), "").unwrap();
    scene.remove("s1").await;
}

/// In a shared PID namespace: everything it may signal, the pod's first process too.
#[tokio::test]
async fn nor_does_a_container_that_stops_all_it_sees() {
    let Some(scene) = Scene::new("stop-all") else { return };
    scene.sandbox("s1", |s| s.share_process_namespace = true).await;
    let script = "kill -STOP 1; kill -KILL 1; for i in $(busybox seq 2 200); do test $i = $$ || kill -STOP $i; done 2>/dev/null; echo done; exec sleep 1000";
    scene.start("s1", scene.node.container("c0", &["sleep", "1000"])).await.unwrap();
    scene.start("s1", scene.node.shell("c1", script)).await.unwrap();
    scene.says("c1", "done").await;
    scene.bystander("s1").await;
    scene.goes_on("s1").await;
    scene.remove("s1").await;
}

/// Nor one that sends all signals there are: the pod's first process hears of none.
#[tokio::test]
async fn nor_one_that_sends_every_signal() {
    let Some(scene) = Scene::new("signals") else { return };
    scene.sandbox("s1", |s| s.share_process_namespace = true).await;
    scene.bystander("s1").await;
    let script = "for s in $(busybox seq 1 64); do kill -$s 1; done 2>/dev/null; echo done; exec sleep 1000";
    scene.start("s1", scene.node.shell("c1", script)).await.unwrap();
    scene.says("c1", "done").await;
    scene.goes_on("s1").await;
    scene.remove("s1").await;
}

/// Without its first process a pod's PID namespace is of no use: the sandbox counts as lost, and another one is made.
#[tokio::test]
async fn a_pod_whose_first_process_ends_is_lost() {
    let Some(mut scene) = Scene::new("paused") else { return };
    scene.sandbox("s1", |s| s.share_process_namespace = true).await;
    scene.bystander("s1").await;
    let shim = fs::read_to_string(scene.node.config.state_dir.join("sandboxes/s1/shim.pid")).unwrap();
    let shim = shim.split_whitespace().next().unwrap();
    let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
    let is_pause = |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|n| n == "pikelet-pause\n");
    let pause = children.split_whitespace().find(is_pause).unwrap();
    assert!(Command::new("kill").args(["-9", pause]).status().unwrap().success());
    let lost = async {
        while let Some(event) = scene.events.recv().await {
            if let RuntimeEvent::SandboxLost { sandbox, .. } = event {
                return sandbox;
            }
        }
        String::new()
    };
    assert_eq!(tokio::time::timeout(LIMIT, lost).await.expect("nobody noticed"), "s1");
    scene.remove("s1").await;
}

/// Terminals are few on a machine: a container has some of them.
#[tokio::test]
async fn nobody_takes_all_terminals() {
    let Some(scene) = Scene::new("terminals") else { return };
    scene.sandbox("s1", |_| {}).await;
    scene.start("s1", scene.node.container("c1", &["/enemy", "ptys"])).await.unwrap();
    scene.says("c1", "done").await;
    assert_eq!(scene.lines("c1")[0], "terminals: 256");
    scene.remove("s1").await;
}

#[tokio::test]
async fn a_fork_bomb_stays_in_its_limit() {
    let Some(scene) = Scene::new("bomb") else { return };
    scene.sandbox("s1", |s| s.resources.pids_limit = Some(60)).await;
    scene.bystander("s1").await;
    let mut spec = scene.node.shell("c1", "echo on; bomb() { bomb | bomb & sleep 1; bomb; }; bomb 2>/dev/null");
    spec.resources.pids_limit = Some(30);
    scene.start("s1", spec).await.unwrap();
    scene.says("c1", "on").await;
    for _ in 0..5 {
        let _ = scene.exec("s1", "c1", &["true"]).await;
    }
    scene.goes_on("s1").await;
    let started = Instant::now();
    scene.runtime.remove_container("s1", "c1").await.unwrap();
    assert!(started.elapsed() < LIMIT);
    scene.goes_on("s1").await;
    scene.remove("s1").await;
}

/// A neighbour writes to the output of a container that has ended for as long as it likes.
#[tokio::test]
async fn output_that_never_ends_holds_up_nobody() {
    let Some(mut scene) = Scene::new("flood") else { return };
    scene.sandbox("s1", |s| s.share_process_namespace = true).await;
    let spec = scene.node.shell("c1", "echo $$ >/pid; while ! test -e /go; do sleep 0.1; done; exit 7");
    scene.start("s1", spec).await.unwrap();
    let flood = "while ! test -s /pid; do sleep 0.1; done; p=$(cat /pid); exec 3>/proc/$p/fd/1; echo x >/go; \
                 for i in 1 2 3 4; do busybox dd if=/dev/zero bs=64k >&3 2>/dev/null & done; wait";
    scene.start("s1", scene.node.shell("c2", flood)).await.unwrap();
    assert_eq!(exit_of(&mut scene.events, "c1").await.code, 7);
    scene.bystander("s1").await;
    scene.goes_on("s1").await;
    scene.remove("s1").await;
}

/// A program of another container's that is in nobody's cgroup but its own ends with it, and so does its output.
#[tokio::test]
async fn what_outlives_its_container_is_ended() {
    let Some(mut scene) = Scene::new("outlive") else { return };
    scene.sandbox("s1", |s| s.share_process_namespace = true).await;
    let script = "for i in 1 2 3 4 5; do (busybox setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 0.1; done' &) ; done; exit 3";
    let exit = scene.run("s1", scene.node.shell("c1", script)).await.unwrap();
    assert_eq!(exit.code, 3);
    scene.bystander("s1").await;
    let (_, left) = scene.exec("s1", "bystander", &["ps", "-o", "args"]).await.unwrap();
    assert!(!left.contains("trap"), "{left}");
    scene.remove("s1").await;
}

/// `/dev/shm` and `/dev` are not the node's memory without end.
#[tokio::test]
async fn memory_file_systems_have_limits() {
    let Some(mut scene) = Scene::new("shm") else { return };
    scene.sandbox("s1", |_| {}).await;
    let script = "for d in /dev/shm /dev /dev/mqueue /sys/fs/cgroup; do
                    busybox dd if=/dev/zero of=$d/f bs=1M count=200 2>/dev/null && echo no limit $d; rm -f $d/f; done; echo done";
    let mut spec = scene.node.shell("c1", script);
    spec.resources.memory_limit = Some(300 << 20);
    let spec = ContainerSpec { cwd: "/".into(), ..spec };
    scene.run("s1", spec).await.unwrap();
    assert_eq!(scene.lines("c1").into_iter().filter(|l| !l.contains("rm:")).collect::<Vec<_>>(), ["done"]);
    scene.remove("s1").await;
}
