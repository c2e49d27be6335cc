//! `pikelet images`, `pull` and `rmi` against an agent of their own.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::scene::*;

/// An agent without a control plane.
pub struct Agent {
    process: Child,
    pub state_dir: std::path::PathBuf,
}

fn cgroup_root() -> String {
    format!("pikelet-images-{}", std::process::id())
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // what an agent keeps for the next one
        let own = format!("*/{}", cgroup_root());
        let below = format!("{own}/*");
        let find = ["/sys/fs/cgroup", "-depth", "-type", "d", "(", "-path", &own, "-o", "-path", &below, ")"];
        let _ = Command::new("find").args(find).args(["-exec", "rmdir", "{}", ";"]).stderr(Stdio::null()).status();
    }
}

impl Agent {
    pub fn new(scene: &Scene, registry: &str, more: &[&str]) -> Self {
        let state_dir = scene.dir.join("run");
        let dir = |name: &str| scene.dir.join(name).display().to_string();
        let process = Command::new(env!("CARGO_BIN_EXE_pikelet"))
            .args(["run", "--healthz-port", "0", "--node-name", "n", "--insecure-registry", registry])
            .args(["--root-dir", &dir("root"), "--state-dir", &dir("run"), "--pod-logs-dir", &dir("logs")])
            .args(["--bridge", &format!("pki{}", std::process::id() % 100_000)])
            .args(["--cgroup-root", &cgroup_root()])
            .args(more)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(scene.dir.join("agent.log")).unwrap())
            .spawn()
            .unwrap();
        let agent = Self { process, state_dir };
        let end = Instant::now() + Duration::from_secs(20);
        while !agent.state_dir.join("agent.sock").exists() {
            assert!(Instant::now() < end, "the agent does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        agent
    }

    pub fn run(&self, command: &str, args: &[&str]) -> Output {
        let mut program = Command::new(env!("CARGO_BIN_EXE_pikelet"));
        program.args(command.split(' ')).arg("--state-dir").arg(&self.state_dir).args(args).output().unwrap()
    }

    pub fn says(&self, command: &str, args: &[&str]) -> String {
        let output = self.run(command, args);
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn refuses(&self, command: &str, args: &[&str]) -> String {
        let output = self.run(command, args);
        assert_eq!(output.status.code(), Some(1), "{command} {args:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

#[test]
fn images_are_pulled_listed_and_removed_by_hand() {
    let Some(mut scene) = scene("commands") else { return };
    let registry = scene.registry(false);
    push_image(&scene, &registry, "test/a:1", &[noise(1, 3, 1000), noise(2, 1, 1 << 20)]);
    push_image(&scene, &registry, "test/b:1", &[noise(1, 3, 1000)]);
    let agent = Agent::new(&scene, &registry, &[]);
    let (a, b) = (format!("{registry}/test/a:1"), format!("{registry}/test/b:1"));
    assert!(agent.says("pull", &[&a]).starts_with("Image is up to date for sha256:"));
    assert_eq!(agent.says("pull", &["--quiet", &b]), "");
    assert!(agent.refuses("pull", &[&format!("{registry}/test/c:1")]).contains("manifest unknown"));
    assert!(agent.refuses("pull", &["UPPER"]).contains("invalid image name"));

    let table = agent.says("images", &[]);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(table.lines().next().unwrap()), ["IMAGE", "TAG", "IMAGE", "ID", "SIZE"]);
    let row = table.lines().map(words).find(|w| w[0] == format!("{registry}/test/a")).unwrap();
    assert_eq!((row[1].as_str(), row[2].len(), row[3].as_str()), ("1", 13, "1.05MB"));
    assert_eq!(agent.says("images", &["test/b"]).lines().count(), 2, "one by its name");
    let list: Value = serde_json::from_str(&agent.says("images", &["-o", "json"])).unwrap();
    assert_eq!(list["images"].as_array().unwrap().len(), 2);
    let yaml: Value = serde_saphyr::from_str(&agent.says("images", &["-o", "yaml"])).unwrap();
    assert_eq!(yaml, list);
    let ids = agent.says("images", &["-q"]);
    assert!(ids.lines().count() == 2 && ids.lines().all(|l| l.len() == 71 && l.starts_with("sha256:")), "{ids}");

    assert_eq!(agent.says("rmi", &[&row[2]]), format!("Deleted: {}\n", row[2]), "by the beginning of its id");
    assert!(agent.refuses("rmi", &[&a, &b]).contains("not in the store"), "what is gone is said, the rest goes");
    assert_eq!(agent.says("images", &["-q"]), "");
}
