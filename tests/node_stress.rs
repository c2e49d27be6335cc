//! Containers that ask for much: output as fast as it goes, many processes at once, a full disk. Needs root,
//! `/bin/busybox` and, for the disk, a loop device; says so and passes without doing anything where one is missing.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "harness/node.rs"]
#[allow(dead_code)]
mod node;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use futures::future::join_all;
use node::{Node, exit_of};
use pikelet::runtime::{ContainerSpec, Mount, Propagation, Runtime, Wanted};
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
            assert_ne!(timeout(Duration::from_secs(30), stdout.read(seen)).await.expect("it hangs").unwrap(), 0);
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
