//! The same tries against runc, where it is on the machine: what Kubernetes nodes have is what to be no worse than.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::node::LIMIT;
use super::scene::{SECRET, Scene};

/// A container of runc's that hunts; ended when dropped.
pub struct Runc {
    state: PathBuf,
    bundles: PathBuf,
    rootfs: PathBuf,
    cgroup: String,
}

impl Runc {
    /// What a hunter found in a container of runc's while `work` was done so often; `None` where there is no runc.
    pub fn hunted(scene: &Scene, times: usize, work: fn(&Self, usize)) -> Option<Vec<String>> {
        if Command::new("runc").arg("--version").stdout(Stdio::null()).status().is_err() {
            eprintln!("no runc here: nothing to compare with");
            return None;
        }
        let _ = fs::remove_file(scene.rootfs().join("stop"));
        let (state, bundles) = (scene.node.dir.join("runc"), scene.node.dir.join("bundles"));
        let runc = Self { state, bundles, rootfs: scene.rootfs(), cgroup: scene.node.config.cgroup_root.clone() };
        let args = ["/enemy", "hunt", &scene.marker(), SECRET, "/stop"];
        runc.run("hunter", &args, None);
        runc.wait_for("ready");
        (0..times).for_each(|i| work(&runc, i));
        fs::write(scene.rootfs().join("stop"), "").unwrap();
        runc.wait_for("done");
        Some(runc.lines().into_iter().filter(|l| l.starts_with("found ")).collect())
    }

    fn command(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(&self.state).stdin(Stdio::null()).env("PIKELET_ESCAPE", SECRET);
        command
    }

    /// A container of these words, in the PID namespace of that process if one is named.
    fn run(&self, id: &str, args: &[&str], pid: Option<i32>) {
        let bundle = self.bundles.join(id);
        fs::create_dir_all(&bundle).unwrap();
        assert!(self.command().args(["spec", "--bundle"]).arg(&bundle).status().unwrap().success());
        let file = bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config["root"] = json!({ "path": self.rootfs, "readonly": false });
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(args);
        config["linux"]["cgroupsPath"] = json!(format!("/{}/{id}", self.cgroup));
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_PTRACE"));
        }
        if let Some(pid) = pid {
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            for namespace in namespaces.iter_mut().filter(|n| n["type"] == "pid") {
                namespace["path"] = json!(format!("/proc/{pid}/ns/pid"));
            }
        }
        fs::write(&file, config.to_string()).unwrap();
        let out = File::create(self.out(id)).unwrap();
        let ran = self.command().args(["run", "--detach", "--bundle"]).arg(&bundle).arg(id).stdout(out).status();
        assert!(ran.unwrap().success(), "runc run: {}", fs::read_to_string(self.out(id)).unwrap());
    }

    fn out(&self, id: &str) -> PathBuf {
        self.bundles.join(format!("{id}.out"))
    }

    fn lines(&self) -> Vec<String> {
        fs::read_to_string(self.out("hunter")).unwrap().lines().map(str::to_owned).collect()
    }

    fn wait_for(&self, line: &str) {
        let end = Instant::now() + LIMIT;
        while !self.lines().iter().any(|l| l == line) {
            assert!(Instant::now() < end, "runc's container never said {line:?}: {:?}", self.lines());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Another process in the hunter's container.
    pub fn exec(&self, _: usize) {
        assert!(self.command().args(["exec", "hunter", "/bin/true"]).status().unwrap().success());
    }

    /// Another container in the hunter's PID namespace.
    pub fn neighbour(&self, i: usize) {
        let state = self.command().args(["state", "hunter"]).output().unwrap().stdout;
        let state: Value = serde_json::from_slice(&state).unwrap();
        let id = format!("neighbour{i}");
        self.run(&id, &["/bin/true"], state["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()));
        self.delete(&id);
    }

    fn delete(&self, id: &str) {
        let _ = self.command().args(["delete", "--force", id]).status();
    }
}

impl Drop for Runc {
    fn drop(&mut self) {
        self.delete("hunter");
        for entry in fs::read_dir(&self.state).into_iter().flatten().flatten() {
            self.delete(&Path::new(&entry.file_name()).display().to_string());
        }
    }
}
