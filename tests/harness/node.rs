//! A runtime in a folder of its own, for the tests that run real containers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, clippy::unused_self)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pikelet::runtime::{ContainerSpec, ExitRecord, Resources, Runtime, RuntimeConfig, RuntimeEvent, SandboxSpec};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

const BUSYBOX: &str = "/bin/busybox";

/// What takes longer is held up: an emulated machine beside other tests is thirty times slower than a board.
pub const LIMIT: Duration = Duration::from_mins(2);

/// Removed with all it has made when dropped.
pub struct Node {
    pub dir: PathBuf,
    pub config: RuntimeConfig,
}

impl Node {
    pub fn new(name: &str) -> Option<Self> {
        let root = fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
        if !root || !Path::new(BUSYBOX).exists() {
            eprintln!("skipped: needs root and {BUSYBOX}");
            return None;
        }
        let unique = format!("pikelet-test-{}-{name}", std::process::id());
        let dir = std::env::temp_dir().join(&unique);
        for sub in ["rootfs/bin", "rootfs/etc", "rootfs/tmp"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
        }
        fs::copy(BUSYBOX, dir.join("rootfs/bin/busybox")).unwrap();
        for applet in
            ["sh", "sleep", "cat", "grep", "id", "hostname", "yes", "head", "mknod", "ps", "test", "true", "tty"]
        {
            symlink("busybox", dir.join("rootfs/bin").join(applet)).unwrap();
        }
        let config = RuntimeConfig {
            state_dir: dir.join("state"),
            cgroup_root: unique,
            shim_exe: env!("CARGO_BIN_EXE_pikelet").into(),
        };
        Some(Self { dir, config })
    }

    pub fn sandbox(&self, id: &str) -> SandboxSpec {
        SandboxSpec {
            id: id.into(),
            pod_uid: format!("uid-{id}"),
            pod_name: "web".into(),
            pod_namespace: "default".into(),
            hostname: Some("web-0".into()),
            cgroup: format!("burstable/pod{id}"),
            resources: Resources { memory_limit: Some(64 << 20), pids_limit: Some(100), ..Default::default() },
            ..Default::default()
        }
    }

    pub fn container(&self, id: &str, args: &[&str]) -> ContainerSpec {
        ContainerSpec {
            id: id.into(),
            name: id.into(),
            rootfs: self.dir.join("rootfs"),
            args: args.iter().map(|&a| a.to_owned()).collect(),
            env: vec![("PATH".into(), "/bin".into())],
            cwd: "/work/here".into(),
            log_path: self.log(id),
            ..Default::default()
        }
    }

    pub fn log(&self, id: &str) -> PathBuf {
        self.dir.join("logs").join(id).join("0.log")
    }

    pub fn shell(&self, id: &str, script: &str) -> ContainerSpec {
        self.container(id, &["sh", "-c", script])
    }

    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
        roots.extend(fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|e| e.path()));
        for root in roots {
            find_dirs(&root.join(&self.config.cgroup_root), &mut found);
        }
        found
    }

    /// Output lines of a container as `<stream> <tag> <text>`.
    pub fn output(&self, id: &str) -> Vec<String> {
        let text = fs::read_to_string(self.log(id)).unwrap();
        text.lines().map(|l| l.split_once(' ').unwrap().1.to_owned()).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // What a failed test left running, and what its shims said.
        let sandboxes = fs::read_dir(self.config.state_dir.join("sandboxes")).into_iter().flatten().flatten();
        for dir in sandboxes.map(|e| e.path()) {
            eprintln!("{}", fs::read_to_string(dir.join("shim.log")).unwrap_or_default());
            let pid = fs::read_to_string(dir.join("shim.pid")).unwrap_or_default();
            if let Some((pid, _)) = pid.split_once(' ') {
                let _ = std::process::Command::new("kill").args(["-9", pid]).status();
            }
        }
        for dir in self.cgroups() {
            let _ = fs::remove_dir(dir);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn find_dirs(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        find_dirs(&entry.path(), found);
    }
    if dir.is_dir() {
        found.push(dir.to_owned());
    }
}

pub async fn exit_of(events: &mut UnboundedReceiver<RuntimeEvent>, id: &str) -> ExitRecord {
    loop {
        let event = timeout(LIMIT, events.recv()).await.expect("no event").expect("channel closed");
        match event {
            RuntimeEvent::ContainerExited { container, exit, .. } if container == id => return exit,
            RuntimeEvent::SandboxLost { sandbox, .. } => panic!("sandbox {sandbox} lost"),
            RuntimeEvent::ContainerExited { .. } => {}
        }
    }
}

pub async fn run(
    runtime: &Runtime,
    events: &mut UnboundedReceiver<RuntimeEvent>,
    sandbox: &str,
    spec: ContainerSpec,
) -> ExitRecord {
    let id = spec.id.clone();
    runtime.create_container(sandbox, spec).await.unwrap();
    runtime.start_container(sandbox, &id).await.unwrap();
    exit_of(events, &id).await
}

pub fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "))
}
