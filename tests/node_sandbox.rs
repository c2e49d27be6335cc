//! What a container can reach of the host by way of what holds its pod: the first process of a shared PID namespace, the
//! shim, its program and its files. Needs root and `/bin/busybox`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "harness/node.rs"]
#[allow(dead_code)]
mod node;

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc::makedev;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknod};
use node::{Node, alive, exit_of, run};
use pikelet::runtime::{ContainerSpec, Mount, Propagation, Runtime, SandboxSpec, Wanted};

#[tokio::test]
async fn the_first_process_of_a_pod_has_nothing_of_the_host() {
    let Some(node) = Node::new("first") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(SandboxSpec { share_process_namespace: true, ..node.sandbox("s1") }).await.unwrap();
    // all it can write to is read: CARGO_PKG_NAME is in the environment of this test
    let script = r#"
        echo root $(busybox ls -A /proc/1/root/) $(busybox ls -A /proc/1/cwd/); echo files $(busybox ls /proc/1/fd)
        echo mounts $(busybox wc -l </proc/1/mountinfo); echo words $(busybox tr '\000' ' ' </proc/1/cmdline)
        echo environment $(busybox wc -c </proc/1/environ)
        grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/1/status | while read name value; do echo $name $value; done
        touch() { busybox touch $1 2>&1; }; touch /proc/1/root/x | grep -o 'Read-only'
        while read range access rest; do
          case $access in
            rw*) start=$((0x${range%-*} / 4096)); end=$((0x${range#*-} / 4096))
              busybox dd if=/proc/1/mem bs=4096 skip=$start count=$((end - start)) 2>/dev/null ;;
          esac
        done </proc/1/maps >/tmp/memory
        test -s /tmp/memory && echo memory $(grep -c CARGO_PKG_NAME /tmp/memory)
        "#;
    let spec = ContainerSpec { capabilities_add: vec!["SYS_PTRACE".into()], ..node.shell("c1", script) };
    run(&runtime, &mut events, "s1", spec).await;
    let expected = [
        "root",
        "files",
        "mounts 1",
        "words pikelet-pause",
        "environment 0",
        "CapInh: 0000000000000000",
        "CapPrm: 0000000000000000",
        "CapEff: 0000000000000000",
        "CapBnd: 0000000000000000",
        "CapAmb: 0000000000000000",
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "Read-only",
        "memory 0",
    ];
    assert_eq!(node.output("c1"), expected.map(|line| format!("stdout F {line}")));

    // and it is of use: an orphan is reaped
    let script = "(busybox sleep 0.1 & echo $! >/tmp/pid); sleep 1; busybox kill -0 $(cat /tmp/pid) || echo gone";
    assert_eq!(run(&runtime, &mut events, "s1", node.shell("c2", script)).await.code, 0);
    assert!(node.output("c2").contains(&"stdout F gone".to_owned()), "{:?}", node.output("c2"));
    runtime.remove_sandbox("s1").await.unwrap();
}

#[tokio::test]
async fn the_program_of_shims_cannot_be_written_and_has_no_environment() {
    let Some(mut node) = Node::new("program") else { return };
    // nobody else runs this one
    let program = node.dir.join("pikelet");
    fs::copy(&node.config.shim_exe, &program).unwrap();
    node.config.shim_exe = program;
    let (runtime, _events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s1")).await.unwrap();
    let shim = runtime.shim("s1").unwrap();
    // not started yet: the container's process is what the shim has forked
    let container = runtime.create_container("s1", node.container("c1", &["true"])).await.unwrap();
    let held = [shim, container].map(|pid| File::open(format!("/proc/{pid}/exe")).unwrap());
    assert_eq!(fs::read_to_string(format!("/proc/{shim}/environ")).unwrap(), "");
    runtime.remove_sandbox("s1").await.unwrap();
    // while it runs, that alone is in the way
    for file in held {
        let written = OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        assert_eq!(written.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    }
    // and an upgrade that puts another in its place changes nothing for the agent that runs
    fs::remove_file(&node.config.shim_exe).unwrap();
    runtime.create_sandbox(node.sandbox("s2")).await.unwrap();
    runtime.remove_sandbox("s2").await.unwrap();
}

#[tokio::test]
async fn a_long_description_ends_no_pod() {
    let Some(node) = Node::new("long") else { return };
    let (runtime, events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s1")).await.unwrap();
    let mut pids = Vec::new();
    for id in ["c1", "c2"] {
        let mut spec = node.container(id, &["true"]);
        spec.env.extend((0..30).map(|i| (format!("LONG{i}"), "x".repeat(100_000))));
        pids.push(runtime.create_container("s1", spec).await.unwrap());
    }
    drop((runtime, events));
    let (runtime, _events) = Runtime::open(node.config.clone()).unwrap();
    let found = runtime.recover().await.unwrap();
    assert!(found[0].alive && pids.iter().all(|pid| alive(*pid)));
    for info in [&found[0], &runtime.inspect("s1").await.unwrap()] {
        let lengths: Vec<_> = info.containers.iter().map(|c| (c.spec.args.len(), c.spec.env.len(), c.pid)).collect();
        assert_eq!(lengths, [(1, 31, pids[0]), (1, 31, pids[1])]);
    }
    runtime.remove_sandbox("s1").await.unwrap();
}

#[tokio::test]
async fn a_sandbox_of_another_version_does_not_run_on_unseen() {
    let Some(node) = Node::new("unread") else { return };
    let (runtime, events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s1")).await.unwrap();
    let shim = runtime.shim("s1").unwrap();
    let pid = runtime.create_container("s1", node.container("c1", &["sleep", "1000"])).await.unwrap();
    runtime.start_container("s1", "c1").await.unwrap();
    drop((runtime, events));
    let file = node.config.state_dir.join("sandboxes/s1/sandbox.json");
    let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    text["spec"]["attempt"] = "none".into();
    fs::write(&file, text.to_string()).unwrap();
    let (runtime, _events) = Runtime::open(node.config.clone()).unwrap();
    assert!(runtime.recover().await.unwrap().is_empty());
    assert!(!alive(shim) && !alive(pid), "it runs on");
    assert!(!file.exists() && !node.cgroups().iter().any(|d| d.ends_with("pods1")), "{:?}", node.cgroups());
}

fn volume(source: PathBuf, destination: &str, propagation: Propagation) -> Mount {
    let (read_only, recursive_read_only, no_exec, mapped) = (false, false, false, false);
    let destination = destination.to_owned();
    Mount { source, destination, read_only, recursive_read_only, no_exec, propagation, mapped }
}

/// What is mounted at or below a folder in the namespace of this process.
fn mounted(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = text.lines().map(|l| l.split(' ').nth(4).unwrap().to_owned());
    points.filter(|p| Path::new(p).starts_with(dir)).collect()
}

#[tokio::test]
async fn each_volume_propagates_as_it_says() {
    let Some(node) = Node::new("peers") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    // as on machines with systemd: all is shared
    let shared = node.dir.join("shared");
    let none = None::<&str>;
    fs::create_dir(&shared).unwrap();
    mount(Some(&shared), &shared, none, MsFlags::MS_BIND, none).unwrap();
    mount(none, &shared, none, MsFlags::MS_SHARED, none).unwrap();
    let names = ["none", "slave", "both"];
    names.iter().for_each(|name| fs::create_dir_all(shared.join(name).join("host")).unwrap());
    names.iter().for_each(|name| fs::create_dir_all(shared.join(name).join("inside")).unwrap());
    runtime.create_sandbox(node.sandbox("s1")).await.unwrap();
    let script = "for v in none slave both; do mount -t tmpfs t /$v/inside; done; echo ready >/tmp/ready
        while ! test -e /tmp/go; do sleep 0.05; done; cat /proc/self/mountinfo | grep -o '/[a-z]*/host ' | busybox sort";
    let spec = ContainerSpec {
        privileged: true,
        mounts: vec![
            volume(shared.join("none"), "/none", Propagation::None),
            volume(shared.join("slave"), "/slave", Propagation::HostToContainer),
            volume(shared.join("both"), "/both", Propagation::Bidirectional),
        ],
        ..node.shell("c1", script)
    };
    runtime.create_container("s1", spec).await.unwrap();
    runtime.start_container("s1", "c1").await.unwrap();
    let ready = node.dir.join("rootfs/tmp/ready");
    tokio::time::timeout(Duration::from_secs(20), async {
        while !ready.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    // what the container mounted is seen here where it is both ways
    let inside = mounted(&shared);
    names
        .iter()
        .for_each(|n| mount(Some("t"), &shared.join(n).join("host"), Some("tmpfs"), MsFlags::empty(), none).unwrap());
    fs::write(node.dir.join("rootfs/tmp/go"), "").unwrap();
    let exit = exit_of(&mut events, "c1").await;
    runtime.remove_sandbox("s1").await.unwrap();
    for point in mounted(&shared).iter().rev() {
        umount2(point.as_str(), MntFlags::MNT_DETACH).unwrap();
    }
    assert_eq!(inside, [shared.clone(), shared.join("both/inside")].map(|p| p.display().to_string()));
    assert_eq!(
        (exit.code, node.output("c1")),
        (0, vec!["stdout F /both/host ".into(), "stdout F /slave/host ".into()])
    );
}

#[tokio::test]
async fn a_volume_at_dev_is_not_changed() {
    let Some(node) = Node::new("dev") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    // a folder like a node's
    let dev = node.dir.join("dev");
    for folder in ["pts", "shm"] {
        fs::create_dir_all(dev.join(folder)).unwrap();
    }
    let device = |name: &str, major, minor| {
        let made = mknod(&dev.join(name), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor));
        made.unwrap();
    };
    device("null", 1, 3);
    device("ttyUSB0", 1, 3);
    device("ptmx", 5, 2);
    std::os::unix::fs::symlink("/proc/self/fd", dev.join("fd")).unwrap();
    let list = || {
        let mut names: Vec<_> =
            fs::read_dir(&dev).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let before = list();
    fs::write(node.dir.join("message"), "").unwrap();
    runtime.create_sandbox(node.sandbox("s1")).await.unwrap();
    let spec = |id: &str, script: &str| ContainerSpec {
        privileged: true,
        mounts: vec![
            volume(dev.clone(), "/dev", Propagation::None),
            volume(node.dir.join("message"), "/dev/termination-log", Propagation::None),
        ],
        ..node.shell(id, script)
    };
    let script = "echo x >/dev/ttyUSB0 && echo serial; echo end >/dev/termination-log
        busybox touch /dev/shm/own; test -c /dev/pts/ptmx && echo own; exec sleep 1000";
    runtime.create_container("s1", spec("c1", script)).await.unwrap();
    runtime.start_container("s1", "c1").await.unwrap();
    let args = ["sh", "-c", "while ! test -e /dev/shm/own; do sleep 0.05; done; tty"].map(str::to_owned);
    let wanted = Wanted { stdout: true, ..Wanted::default() };
    let mut streams = runtime.exec("s1", "c1", args.into(), true, wanted).await.unwrap();
    let mut said = Vec::new();
    while streams.stdout.as_mut().unwrap().read(&mut said).await.unwrap() > 0 {}
    assert!(String::from_utf8_lossy(&said).contains("/dev/pts/"), "{}", String::from_utf8_lossy(&said));
    assert_eq!(node.output("c1"), ["stdout F serial", "stdout F own"]);
    assert_eq!(fs::read_to_string(node.dir.join("message")).unwrap(), "end\n");
    // one that comes later is seen; a terminal and no volume below it do as well
    device("ttyACM0", 1, 3);
    let mut other = spec("c2", "tty; echo x >/dev/ttyACM0 && echo late");
    other.tty = true;
    other.mounts[0].read_only = true;
    other.mounts.truncate(1);
    let exit = run(&runtime, &mut events, "s1", other).await;
    let output = node.output("c2").join("\n");
    assert!(exit.code == 0 && output.contains("late") && output.contains("/dev/pts/0"), "{output}");
    runtime.remove_sandbox("s1").await.unwrap();
    let mut expected = [before, vec!["termination-log".into(), "ttyACM0".into()]].concat();
    expected.sort();
    assert_eq!((list(), fs::read_dir(dev.join("shm")).unwrap().count()), (expected, 0));
    assert!(fs::symlink_metadata(dev.join("ptmx")).unwrap().file_type().is_char_device());
}
