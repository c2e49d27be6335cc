//! Real sandboxes and containers on this host's kernel (root; Debian's busybox-static).
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pikelet::runtime::{ContainerSpec, ExitRecord, Runtime, RuntimeConfig, RuntimeError, RuntimeEvent, SandboxSpec};
use tokio::sync::mpsc::Receiver;

struct Bench {
    dir: PathBuf,
    cgroup: String,
}

impl Bench {
    fn new(name: &str) -> Self {
        let dir = PathBuf::from(format!("/tmp/pkt-{name}-{}", std::process::id()));
        let bin = dir.join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for applet in ["sh", "sleep", "cat", "id", "hostname"] {
            symlink("busybox", bin.join(applet)).unwrap();
        }
        for mount in ["proc", "dev", "sys", "tmp"] {
            fs::create_dir_all(dir.join("rootfs").join(mount)).unwrap();
        }
        Self { dir, cgroup: format!("pkt-{name}-{}", std::process::id()) }
    }

    fn open(&self) -> (Runtime, Receiver<RuntimeEvent>) {
        let config = RuntimeConfig {
            state_dir: self.dir.join("run"),
            cgroup_root: self.cgroup.clone(),
            shim_exe: env!("CARGO_BIN_EXE_pikelet").into(),
        };
        Runtime::open(config).unwrap()
    }

    fn sandbox(&self, id: char) -> SandboxSpec {
        SandboxSpec {
            id: id.to_string().repeat(64),
            pod_uid: format!("uid-{id}"),
            pod_name: "pod".into(),
            hostname: Some("pod".into()),
            cgroup: format!("besteffort/pod{id}"),
            ..SandboxSpec::default()
        }
    }

    fn container(&self, id: char, script: &str) -> ContainerSpec {
        ContainerSpec {
            id: id.to_string().repeat(64),
            name: "c".into(),
            rootfs: self.dir.join("rootfs"),
            args: vec!["sh".into(), "-c".into(), script.into()],
            env: vec![("PATH".into(), "/bin".into())],
            cwd: "/".into(),
            log_path: self.dir.join(format!("logs/{id}.log")),
            oom_score_adj: 1000,
            ..ContainerSpec::default()
        }
    }

    fn log(&self, id: char) -> String {
        fs::read_to_string(self.dir.join(format!("logs/{id}.log"))).unwrap()
    }

    fn leftovers(&self) -> Vec<PathBuf> {
        let groups =
            fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|e| e.path().join(&self.cgroup).join("besteffort"));
        let pods = groups.flat_map(|g| fs::read_dir(g).into_iter().flatten().flatten()).map(|e| e.path());
        let sandboxes = fs::read_dir(self.dir.join("run/sandboxes")).unwrap().flatten().map(|e| e.path());
        pods.filter(|p| p.is_dir()).chain(sandboxes).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for entry in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            for below in ["besteffort", ""] {
                let _ = fs::remove_dir(entry.path().join(&self.cgroup).join(below));
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

async fn exit(events: &mut Receiver<RuntimeEvent>) -> ExitRecord {
    let next = tokio::time::timeout(Duration::from_secs(20), events.recv());
    match next.await.expect("an event").unwrap() {
        RuntimeEvent::ContainerExited { exit, .. } => exit,
        RuntimeEvent::SandboxLost { .. } => panic!("sandbox lost"),
    }
}

async fn run(runtime: &Runtime, sandbox: &str, spec: ContainerSpec) {
    let id = spec.id.clone();
    runtime.create_container(sandbox, spec).await.unwrap();
    runtime.start_container(sandbox, &id).await.unwrap();
}

#[tokio::test]
async fn a_container_runs_logs_and_ends_and_nothing_is_left() {
    let bench = Bench::new("run");
    let (runtime, mut events) = bench.open();
    let sandbox = bench.sandbox('a');
    let id = sandbox.id.clone();
    runtime.create_sandbox(sandbox).await.unwrap();
    assert!(Path::new(&runtime.netns_path(&id).unwrap()).exists());
    run(&runtime, &id, bench.container('1', "echo hi; hostname; id -u >&2; exit 3")).await;
    let ended = exit(&mut events).await;
    assert_eq!((ended.code, ended.signal), (3, None));
    let log = bench.log('1');
    assert!(
        log.contains(" stdout F hi\n") && log.contains(" stdout F pod\n") && log.contains(" stderr F 0\n"),
        "{log}"
    );
    runtime.remove_container(&id, &"1".repeat(64)).await.unwrap();
    runtime.remove_sandbox(&id).await.unwrap();
    runtime.remove_sandbox(&id).await.unwrap();
    assert_eq!(bench.leftovers(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_named_and_can_be_retried() {
    let bench = Bench::new("bad");
    let (runtime, mut events) = bench.open();
    let sandbox = bench.sandbox('b');
    let id = sandbox.id.clone();
    runtime.create_sandbox(sandbox).await.unwrap();
    let mut spec = bench.container('2', "");
    spec.args = vec!["no-such-program".into()];
    let error = runtime.create_container(&id, spec).await.unwrap_err();
    assert!(error.to_string().contains("no-such-program"), "{error}");
    assert!(matches!(error, RuntimeError::Shim(_)));
    run(&runtime, &id, bench.container('2', "exit 0")).await;
    assert_eq!(exit(&mut events).await.code, 0);
    runtime.remove_sandbox(&id).await.unwrap();
    assert_eq!(bench.leftovers(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn an_agent_that_comes_back_finds_its_containers() {
    let bench = Bench::new("back");
    let (runtime, events) = bench.open();
    let sandbox = bench.sandbox('c');
    let id = sandbox.id.clone();
    runtime.create_sandbox(sandbox).await.unwrap();
    run(&runtime, &id, bench.container('3', "exec sleep 1000")).await;
    run(&runtime, &id, bench.container('4', "exit 7")).await;
    drop((runtime, events));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (runtime, mut events) = bench.open();
    let found = runtime.recover().await.unwrap();
    assert_eq!(found.len(), 1);
    assert!(found[0].alive);
    let states: Vec<_> = found[0].containers.iter().map(|c| c.exit.as_ref().map(|e| e.code)).collect();
    assert_eq!(states, [None, Some(7)]);
    runtime.kill_container(&id, &"3".repeat(64), 9, true).await.unwrap();
    let ended = exit(&mut events).await;
    assert_eq!((ended.code, ended.signal), (137, Some(9)));
    runtime.remove_sandbox(&id).await.unwrap();
    assert_eq!(bench.leftovers(), Vec::<PathBuf>::new());
}
