//! A node with the hostile program in its root file system, and what a test does with it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Once, OnceLock};
use std::time::{Duration, Instant};

use pikelet::runtime::{
    ContainerSpec, ExitRecord, IdRange, Mount, Propagation, Runtime, RuntimeEvent, SandboxSpec, Wanted,
};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use super::node::{LIMIT, Node, exit_of};

/// What no container may find: it is in the environment of this process, from which shims are started.
pub const SECRET: &str = "pikelet-escape-secret-5e1f0a";
/// Ids of pods with users of their own.
pub const IDS: IdRange = IdRange { first: 3 << 16, count: 1 << 16 };
/// How often races are run.
pub fn tries(default: usize) -> usize {
    std::env::var("PIKELET_ESCAPE_TRIES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// The hostile program, built once; `None` where there is no compiler.
fn enemy() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node_escape/enemy.c");
        let program = std::env::temp_dir().join(format!("pikelet-enemy-{}", std::process::id()));
        let made = Command::new("gcc").args(["-static", "-O1", "-o"]).arg(&program).arg(&source).status();
        match made {
            Ok(status) => assert!(status.success(), "gcc: {status}"),
            Err(e) => {
                eprintln!("skipped: gcc: {e}");
                return None;
            }
        }
        Some(program)
    };
    BUILT.get_or_init(build).as_deref()
}

/// A runtime whose containers have the hostile program as `/enemy`.
pub struct Scene {
    pub runtime: Runtime,
    pub events: UnboundedReceiver<RuntimeEvent>,
    pub node: Node,
}

impl Scene {
    pub fn new(name: &str) -> Option<Self> {
        static PLANTED: Once = Once::new();
        // SAFETY: what reads the environment in this process goes through the same lock of the standard library.
        #[allow(unsafe_code)]
        PLANTED.call_once(|| unsafe { std::env::set_var("PIKELET_ESCAPE", SECRET) });
        let node = Node::new(&format!("escape-{name}"))?;
        let program = enemy()?;
        fs::copy(program, node.dir.join("rootfs/enemy")).unwrap();
        fs::write(node.dir.join("marker"), "of the host\n").unwrap();
        let (runtime, events) = Runtime::open(node.config.clone()).unwrap();
        Some(Self { runtime, events, node })
    }

    /// A file of the host that no container sees, from the root on.
    pub fn marker(&self) -> String {
        self.node.dir.join("marker").display().to_string()
    }

    pub fn rootfs(&self) -> PathBuf {
        self.node.dir.join("rootfs")
    }

    /// Lets the pod's root own the root file system.
    pub fn give_to_pod(&self) {
        own(&self.rootfs());
    }

    pub async fn sandbox(&self, id: &str, change: impl FnOnce(&mut SandboxSpec)) {
        let mut spec = self.node.sandbox(id);
        change(&mut spec);
        timeout(LIMIT, self.runtime.create_sandbox(spec)).await.expect("no sandbox in time").unwrap();
    }

    /// Creates and starts a container; the error of either.
    pub async fn start(&self, sandbox: &str, spec: ContainerSpec) -> Result<i32, String> {
        let id = spec.id.clone();
        let work = async {
            let pid = self.runtime.create_container(sandbox, spec).await.map_err(|e| e.to_string())?;
            self.runtime.start_container(sandbox, &id).await.map_err(|e| e.to_string())?;
            Ok(pid)
        };
        timeout(LIMIT, work).await.unwrap_or_else(|_| panic!("container {id} neither started nor failed in {LIMIT:?}"))
    }

    /// Runs a container to its end.
    pub async fn run(&mut self, sandbox: &str, spec: ContainerSpec) -> Result<ExitRecord, String> {
        let id = spec.id.clone();
        self.start(sandbox, spec).await?;
        Ok(exit_of(&mut self.events, &id).await)
    }

    /// Exit code and output of another process in a container; the error with which it did not start.
    pub async fn exec(&self, sandbox: &str, container: &str, args: &[&str]) -> Result<(i32, String), String> {
        let wanted = Wanted { stdout: true, stderr: true, ..Wanted::default() };
        let args: Vec<String> = args.iter().map(|&a| a.to_owned()).collect();
        let work = async {
            let mut streams =
                self.runtime.exec(sandbox, container, args.clone(), false, wanted).await.map_err(|e| e.to_string())?;
            let mut said = Vec::new();
            for reader in [&mut streams.stdout, &mut streams.stderr].into_iter().flatten() {
                while reader.read(&mut said).await.map_err(|e| e.to_string())? > 0 {}
            }
            let code = streams.ending.wait().await.map_err(|e| e.to_string())?;
            Ok((code, String::from_utf8_lossy(&said).into_owned()))
        };
        timeout(LIMIT, work).await.unwrap_or_else(|_| panic!("exec of {args:?} in {container} not over in {LIMIT:?}"))
    }

    /// Waits until a line of the container's output is `text`.
    pub async fn says(&self, id: &str, text: &str) {
        let end = Instant::now() + LIMIT;
        while !self.lines(id).iter().any(|l| l == text) {
            assert!(Instant::now() < end, "{id} never said {text:?}: {:?}", self.lines(id));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What the container has written so far, without stream and tag.
    pub fn lines(&self, id: &str) -> Vec<String> {
        let text = fs::read_to_string(self.node.log(id)).unwrap_or_default();
        text.lines().filter_map(|l| l.splitn(4, ' ').nth(3)).map(str::to_owned).collect()
    }

    /// A container that shows whether its pod goes on: it says `tick` every tenth of a second.
    pub async fn bystander(&self, sandbox: &str) {
        let spec = self.node.shell("bystander", "while :; do echo tick; sleep 0.1; done");
        self.start(sandbox, spec).await.unwrap();
        self.says("bystander", "tick").await;
    }

    /// The pod goes on: a program starts in the bystander, and what that writes arrives.
    pub async fn goes_on(&self, sandbox: &str) {
        assert_eq!(self.exec(sandbox, "bystander", &["true"]).await, Ok((0, String::new())));
        let before = self.lines("bystander").len();
        let end = Instant::now() + LIMIT;
        while self.lines("bystander").len() <= before {
            assert!(Instant::now() < end, "the other container's output does not arrive");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// No cgroup of the pod is there any more.
    pub fn nothing_left(&self, sandbox: &str) {
        let own = format!("/pod{sandbox}");
        let left: Vec<_> = self.node.cgroups().into_iter().filter(|d| d.to_string_lossy().contains(&own)).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    pub async fn remove(&self, sandbox: &str) {
        timeout(LIMIT, self.runtime.remove_sandbox(sandbox)).await.expect("not removed in time").unwrap();
    }
}

/// A volume.
pub fn mount(source: PathBuf, destination: &str, propagation: Propagation) -> Mount {
    let destination = destination.to_owned();
    let (read_only, recursive_read_only, no_exec, mapped) = (false, false, false, false);
    Mount { source, destination, read_only, recursive_read_only, no_exec, propagation, mapped }
}

/// Gives a folder and all in it to the root of [`IDS`].
pub fn own(path: &Path) {
    std::os::unix::fs::lchown(path, Some(IDS.first), Some(IDS.first)).unwrap();
    if path.symlink_metadata().unwrap().is_dir() {
        fs::read_dir(path).unwrap().flatten().for_each(|e| own(&e.path()));
    }
}

/// All there is below a folder: kind, mode, owner, and what it holds.
pub fn snapshot(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let (path, meta) = (entry.path(), entry.metadata().unwrap());
        let holds = match () {
            () if meta.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
            () if meta.is_file() => format!("{:?}", fs::read(&path).unwrap()),
            () => String::new(),
        };
        if meta.is_dir() {
            found.extend(snapshot(&path));
        }
        found.insert(path, format!("{:o} {}:{} {} {holds}", meta.mode(), meta.uid(), meta.gid(), meta.ino()));
    }
    found
}
