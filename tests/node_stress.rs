//! Containers that ask for much: output as fast as it goes, many processes at once, a full disk. Needs root,
//! `/bin/busybox` and, for the disk, a loop device; says so and passes without doing anything where one is missing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "harness/node.rs"]
#[allow(dead_code)]
mod node;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use node::{LIMIT, Node, exit_of};
use pikelet::runtime::{ContainerSpec, Mount, Propagation, Runtime, User, Wanted};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

/// Memory of a process in KiB that belongs to no file.
fn memory(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("Anonymous:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

async fn exec(runtime: &Runtime, container: &str, script: &str) -> i32 {
    let args = ["sh", "-c", script].map(str::to_owned).to_vec();
    let mut streams = runtime.exec("s1", container, args, false, Wanted::default()).await.unwrap();
    timeout(Duration::from_mins(1), streams.ending.wait()).await.expect("no end").unwrap()
}

#[tokio::test]
async fn many_processes_are_started_at_once() {
    let Some(node) = Node::new("execs") else { return };
    let (runtime, _events) = Runtime::open(node.config.clone()).unwrap();
    let mut sandbox = node.sandbox("s1");
    sandbox.resources.pids_limit = Some(1000);
    runtime.create_sandbox(sandbox).await.unwrap();
    let pid = runtime.create_container("s1", node.container("c1", &["sleep", "1000"])).await.unwrap();
    runtime.start_container("s1", "c1").await.unwrap();
    let scripts: Vec<String> = (0..150).map(|i| format!("sleep 0.2; exit {}", i % 100)).collect();
    let codes = join_all(scripts.iter().map(|script| exec(&runtime, "c1", script))).await;
    assert_eq!(codes, (0..150).map(|i| i % 100).collect::<Vec<i32>>());
    let shim = runtime.shim("s1").unwrap();
    let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
    assert_eq!(children.trim(), pid.to_string(), "none is left");
    let descriptors = fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count();
    assert!(descriptors < 30, "{descriptors} descriptors are open");
    runtime.remove_sandbox("s1").await.unwrap();
}

#[tokio::test]
async fn output_as_fast_as_it_goes_holds_up_nobody() {
    let Some(node) = Node::new("flood") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s1")).await.unwrap();
    // a gigabyte of lines: more than the log keeps by far
    let flood =
        node.shell("flood", "yes 0123456789012345678901234567890123456789012345678901234567890 | head -c 1000000000");
    let quiet = node.shell("quiet", "while true; do sleep 0.1; echo tick; done");
    for spec in [flood, quiet] {
        let id = spec.id.clone();
        runtime.create_container("s1", spec).await.unwrap();
        runtime.start_container("s1", &id).await.unwrap();
    }
    let shim = runtime.shim("s1").unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (before, start) = (memory(shim), Instant::now());
    let mut worst = Duration::ZERO;
    while start.elapsed() < Duration::from_secs(4) {
        let asked = Instant::now();
        assert_eq!(exec(&runtime, "quiet", "exit 3").await, 3);
        runtime.inspect("s1").await.unwrap();
        worst = worst.max(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let ticks = node.output("quiet").len();
    assert!(ticks >= 20, "{ticks} lines of the other container in 4.5 s");
    assert!(worst < Duration::from_secs(2), "another process took {worst:?}");
    let grown = memory(shim).saturating_sub(before);
    assert!(grown < 2048, "the shim has grown by {grown} KiB");
    let files: Vec<PathBuf> =
        fs::read_dir(node.log("flood").parent().unwrap()).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(files.len() <= 5 && files.iter().all(|f| fs::metadata(f).unwrap().len() < 11 << 20), "{files:?}");
    runtime.kill_container("s1", "flood", 9, true).await.unwrap();
    assert_eq!(exit_of(&mut events, "flood").await.code, 137);
    runtime.remove_sandbox("s1").await.unwrap();
}

/// Log in bytes that is written at once, and in a second from then on (`src/runtime/shim/pace.rs`).
const BURST: u64 = 64 << 20;
const RATE: u64 = 4 << 20;

#[tokio::test]
async fn output_without_end_is_paced_and_nothing_of_it_is_lost() {
    let Some(node) = Node::new("pace") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s1")).await.unwrap();
    // short lines, of which the log makes six times as much
    let (first, last) = (1_000_000, 2_900_000);
    let mut flood = node.shell("flood", &format!("busybox seq {first} {last}; exit 4"));
    flood.log_rotation.max_size = u64::MAX;
    let quiet = node.shell("quiet", "while true; do sleep 0.1; echo tick; done");
    let start = Instant::now();
    for spec in [quiet, flood] {
        let id = spec.id.clone();
        runtime.create_container("s1", spec).await.unwrap();
        runtime.start_container("s1", &id).await.unwrap();
    }
    let size = || fs::metadata(node.log("flood")).unwrap().len();
    let mut rounds = 0;
    let exit = loop {
        for container in ["quiet", "flood"] {
            // the flood may have ended meanwhile
            let args = ["sh", "-c", "exit 3"].map(str::to_owned).to_vec();
            let begun = runtime.exec("s1", container, args, false, Wanted::default()).await;
            assert!(begun.is_ok() || container == "flood");
            if let Ok(mut streams) = begun {
                let code = timeout(Duration::from_mins(1), streams.ending.wait()).await.expect("no end").unwrap();
                assert!(code == 3 || container == "flood", "{code}");
            }
        }
        rounds += 1;
        // the clock is read last: a test that is held up allows for more
        let (written, time) = (size(), start.elapsed().as_millis() as u64);
        assert!(written < BURST + (2 << 20) + RATE * time / 1000, "{written} bytes of log in {time} ms");
        let exit = runtime.inspect("s1").await.unwrap().containers.into_iter().find_map(|c| c.exit);
        if exit.is_some() {
            break exit_of(&mut events, "flood").await;
        }
    };
    assert_eq!(exit.code, 4);
    assert!(rounds >= 3 && node.output("quiet").len() >= 3, "{rounds} rounds");
    let (text, mut next) = (fs::read_to_string(node.log("flood")).unwrap(), first);
    for line in text.lines() {
        assert_eq!(line.split_once(' ').unwrap().1, format!("stdout F {next}"));
        next += 1;
    }
    assert_eq!(next, last + 1, "lines are lost");
    runtime.remove_sandbox("s1").await.unwrap();
}

/// A small ext4 file system on a loop device, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(dir: &Path) -> Option<Self> {
        let (file, mount) = (dir.join("disk"), dir.join("small"));
        fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
        fs::create_dir(&mount).unwrap();
        let run = |program: &str, args: &[&str]| Command::new(program).args(args).status().is_ok_and(|s| s.success());
        let made = run("mkfs.ext4", &["-q", "-m", "0", file.to_str().unwrap()])
            && run("mount", &["-o", "loop", file.to_str().unwrap(), mount.to_str().unwrap()]);
        if !made {
            eprintln!("skipped: no loop device");
        }
        made.then_some(Self(mount))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_stops_nothing_and_is_recovered_from() {
    let Some(node) = Node::new("full") else { return };
    let Some(disk) = SmallDisk::new(&node.dir) else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s1")).await.unwrap();
    fs::create_dir(disk.0.join("data")).unwrap();
    let script = "echo begin; head -c 30000000 /dev/zero >/data/fill; echo fill $?; read x; \
                  i=0; while [ $i -lt 3000 ]; do echo line $i of a text that is lost; i=$((i+1)); done; \
                  read x; echo after; exit 4";
    let spec = ContainerSpec {
        stdin: true,
        log_path: disk.0.join("logs/c1/0.log"),
        mounts: vec![Mount {
            source: disk.0.join("data"),
            destination: "/data".into(),
            read_only: false,
            recursive_read_only: false,
            no_exec: false,
            propagation: Propagation::None,
            mapped: false,
        }],
        ..node.shell("c1", script)
    };
    let log = spec.log_path.clone();
    runtime.create_container("s1", spec).await.unwrap();
    runtime.start_container("s1", "c1").await.unwrap();
    let mut streams = runtime.attach("s1", "c1", Wanted { stdin: true, stdout: true, stderr: false }).await.unwrap();
    let mut seen = Vec::new();
    let mut until = async |seen: &mut Vec<u8>, text: &str| {
        let stdout = streams.stdout.as_mut().unwrap();
        while !String::from_utf8_lossy(seen).contains(text) {
            assert_ne!(timeout(LIMIT, stdout.read(seen)).await.expect("it hangs").unwrap(), 0);
        }
    };
    until(&mut seen, "fill 1").await;
    let stdin = streams.stdin.as_mut().unwrap();
    stdin.write_all(b"go\n").await.unwrap();
    // what is attached sees what the log has no room for
    until(&mut seen, "line 2999 of").await;
    assert_eq!(exec(&runtime, "c1", "echo x >/data/more; exit 5").await, 5);
    // a container that begins now cannot have a log, and that is said
    let spec = ContainerSpec { log_path: disk.0.join("logs/c2/0.log"), ..node.shell("c2", "exit 6") };
    if let Err(refused) = runtime.create_container("s1", spec.clone()).await {
        assert!(refused.to_string().contains("No space left"), "{refused}");
    }
    let shim_log = fs::read_to_string(node.config.state_dir.join("sandboxes/s1/shim.log")).unwrap();
    assert_eq!(shim_log.matches("lines are lost").count(), 1, "{shim_log}");
    assert!(shim_log.contains("No space left"), "{shim_log}");

    fs::remove_file(disk.0.join("data/fill")).unwrap();
    stdin.write_all(b"go\n").await.unwrap();
    let exit = exit_of(&mut events, "c1").await;
    assert_eq!(exit.code, 4);
    let text = fs::read_to_string(log).unwrap();
    assert!(text.lines().all(|l| l.split(' ').nth(2) == Some("F")), "{text}");
    assert!(text.contains(" stdout F begin\n") && text.ends_with(" stdout F after\n"), "{text}");
    assert!(!text.contains("line 2999"), "the disk was not full");
    let _ = runtime.remove_container("s1", "c2").await;
    let spec = ContainerSpec { log_path: disk.0.join("logs/c2/0.log"), ..node.shell("c2", "exit 6") };
    assert_eq!(node::run(&runtime, &mut events, "s1", spec).await.code, 6);
    runtime.remove_sandbox("s1").await.unwrap();
}

/// Stops the shim of a sandbox as a hanging disk would, and everything it does with it.
fn freeze(shim: i32) {
    assert!(Command::new("kill").args(["-STOP", &shim.to_string()]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_shim_is_not_waited_for() {
    let Some(node) = Node::new("stuck") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    let mut pids = Vec::new();
    for sandbox in ["s1", "s2", "s3"] {
        runtime.create_sandbox(node.sandbox(sandbox)).await.unwrap();
        let spec = node.shell(&format!("c-{sandbox}"), "trap 'exit 3' TERM; while true; do sleep 0.1; done");
        pids.push(runtime.create_container(sandbox, spec).await.unwrap());
        runtime.start_container(sandbox, &format!("c-{sandbox}")).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let shims: Vec<i32> = ["s1", "s2"].map(|s| runtime.shim(s).unwrap()).into();
    freeze(shims[0]);
    let began = Instant::now();
    // signals reach the program all the same
    runtime.kill_container("s1", "c-s1", 15, false).await.unwrap();
    let usual = Instant::now();
    runtime.inspect("s3").await.unwrap();
    assert!(usual.elapsed() < Duration::from_secs(2), "the others answer as before");
    let gone = async {
        while node::alive(pids[0]) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(5), gone).await.expect("the program did not hear of its end");
    runtime.abandon("s1").await;
    let event = timeout(Duration::from_secs(5), events.recv()).await.expect("no event");
    assert!(matches!(event, Some(pikelet::runtime::RuntimeEvent::SandboxLost { sandbox, .. }) if sandbox == "s1"));
    runtime.remove_sandbox("s1").await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    ended(&[shims[0]]).await;
    assert!(!node.cgroups().iter().any(|d| d.ends_with("pods1")));
    // an agent that comes adopts the others, and that one counts as lost
    freeze(shims[1]);
    let (runtime, _events) = Runtime::open(node.config.clone()).unwrap();
    let found = timeout(LIMIT, runtime.recover()).await.expect("held up").unwrap();
    let alive: Vec<_> = found.iter().map(|s| (s.spec.id.as_str(), s.alive)).collect();
    assert_eq!(alive, [("s2", false), ("s3", true)]);
    ended(&[pids[1], shims[1]]).await;
    assert!(node::alive(pids[2]));
    for sandbox in ["s2", "s3"] {
        runtime.remove_sandbox(sandbox).await.unwrap();
    }
}

/// What was killed is gone a moment later.
async fn ended(pids: &[i32]) {
    let gone = async {
        while pids.iter().any(|pid| node::alive(*pid)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, gone).await.expect("it goes on");
}

/// How many processes come and go: `PIKELET_STRESS` of them, or few.
fn count() -> usize {
    std::env::var("PIKELET_STRESS").ok().and_then(|n| n.parse().ok()).unwrap_or(60)
}

fn files(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| if e.file_type().unwrap().is_dir() { 1 + files(&e.path()) } else { 1 }).sum()
}

#[tokio::test]
async fn nothing_is_left_of_what_came_and_went() {
    let Some(node) = Node::new("left") else { return };
    let (runtime, _events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s1")).await.unwrap();
    runtime.create_container("s1", node.container("c1", &["sleep", "100000"])).await.unwrap();
    runtime.start_container("s1", "c1").await.unwrap();
    let shim = runtime.shim("s1").unwrap();
    let sandbox = node.config.state_dir.join("sandboxes/s1");
    let round = async |times: usize| {
        for _ in 0..times {
            assert_eq!(exec(&runtime, "c1", "exit 3").await, 3);
            let args = vec!["no-such-program".to_owned()];
            let error = runtime.exec("s1", "c1", args, false, Wanted::default()).await.unwrap_err().to_string();
            assert_eq!(error, "exec: \"no-such-program\": executable file not found in $PATH");
        }
        for _ in 0..times / 6 {
            let error = runtime.create_container("s1", node.container("c2", &["foo"])).await.unwrap_err().to_string();
            assert_eq!(error, "exec: \"foo\": executable file not found in $PATH");
        }
    };
    let now = || {
        let descriptors = fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count();
        let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
        (descriptors, files(&node.config.state_dir), children)
    };
    round(6).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let (before, before_memory) = (now(), memory(shim));
    round(count()).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(now(), before, "descriptors, files, children");
    let grown = memory(shim).saturating_sub(before_memory);
    assert!(grown < 256, "the shim has grown by {grown} KiB");
    let log = fs::metadata(sandbox.join("shim.log")).unwrap().len();
    assert!(log < 70 << 10, "a log of {log} bytes");
    runtime.remove_sandbox("s1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shim_stays_what_it_is_while_it_makes_others() {
    let Some(node) = Node::new("same") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s1")).await.unwrap();
    let shim = runtime.shim("s1").unwrap();
    let state = move || {
        let read = |file: &str| fs::read_to_string(format!("/proc/{shim}/{file}")).unwrap();
        let groups = read("status").lines().find_map(|l| l.strip_prefix("Groups:")).unwrap().trim().to_owned();
        (read("oom_score_adj"), groups, fs::read_link(format!("/proc/{shim}/cwd")).unwrap())
    };
    let before = state();
    assert_eq!(before.1, "", "groups");
    let ended = Arc::new(AtomicBool::new(false));
    let watched = std::thread::spawn({
        let (before, ended) = (before.clone(), ended.clone());
        move || {
            let mut seen = None;
            while !ended.load(Ordering::Relaxed) {
                seen = seen.or_else(|| Some(state()).filter(|now| *now != before));
            }
            seen
        }
    });
    let spec = ContainerSpec { oom_score_adj: 1000, ..node.container("c1", &["sleep", "1000"]) };
    let pid = runtime.create_container("s1", spec).await.unwrap();
    runtime.start_container("s1", "c1").await.unwrap();
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "1000");
    let script = "test $(cat /proc/self/oom_score_adj) = 1000 && test \"$(id -G)\" = 0 && test $HOME = /";
    for _ in 0..20 {
        assert_eq!(exec(&runtime, "c1", script).await, 0);
    }
    let groups = ContainerSpec {
        user: User { uid: 7, gid: 8, additional_gids: vec![9] },
        ..node.shell("c2", "test \"$(id -G)\" = '8 9' && test $(id -u) = 7")
    };
    assert_eq!(node::run(&runtime, &mut events, "s1", groups).await.code, 0);
    ended.store(true, Ordering::Relaxed);
    assert_eq!(watched.join().unwrap(), None, "score, groups or directory of the shim have changed");
    runtime.remove_sandbox("s1").await.unwrap();
}

#[tokio::test]
async fn an_image_whose_files_are_traps_harms_nobody() {
    let Some(node) = Node::new("traps") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s1")).await.unwrap();
    // whoever opens these to read waits for one who writes
    for file in ["rootfs/etc/passwd", "rootfs/etc/group"] {
        assert!(Command::new("mkfifo").arg(node.dir.join(file)).status().unwrap().success());
    }
    let made = timeout(Duration::from_secs(20), node::run(&runtime, &mut events, "s1", node.shell("c1", "exit 4")));
    assert_eq!(made.await.expect("it hangs").code, 4);
    runtime.create_container("s1", node.container("c2", &["sleep", "1000"])).await.unwrap();
    runtime.start_container("s1", "c2").await.unwrap();
    assert_eq!(exec(&runtime, "c2", "exit 5").await, 5);
    // what every container has is mounted and made there
    let victim = node.dir.join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("ptmx"), "kept").unwrap();
    let rootfs = node.dir.join("other");
    fs::create_dir(&rootfs).unwrap();
    std::os::unix::fs::symlink(&victim, rootfs.join("dev")).unwrap();
    let spec = ContainerSpec { rootfs, ..node.shell("c3", "true") };
    let error = runtime.create_container("s1", spec).await.unwrap_err().to_string();
    assert!(error.contains("/dev of the image is a link"), "{error}");
    let left: Vec<_> = fs::read_dir(&victim).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["ptmx"]);
    assert_eq!(fs::read_to_string(victim.join("ptmx")).unwrap(), "kept");
    assert_eq!(exec(&runtime, "c2", "exit 6").await, 6);
    runtime.remove_sandbox("s1").await.unwrap();
}
