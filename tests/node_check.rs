//! `pikelet check` on this machine: as root, as nobody, and where something a node needs is hidden in a mount namespace.
//! Needs root; says so and passes without doing anything where it is missing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let dir = std::env::temp_dir().join(format!("pikelet-check-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Some(Self(dir))
    }

    /// Runs `prepare` in a mount namespace of its own and then `pikelet check`; its exit code and answer.
    fn check(&self, prepare: &str, wrapper: &[&str], healthz: u16) -> (i32, Value) {
        let program = env!("CARGO_BIN_EXE_pikelet");
        let root_dir = self.0.join("lib");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec"]);
        command.arg(format!("{prepare}\nexec \"$@\"")).arg("sh").args(wrapper).arg(program);
        command.args(["check", "-o", "json", "--root-dir"]).arg(&root_dir).arg("--state-dir").arg(&self.0);
        let output = command.args(["--port", &free_port(), "--healthz-port", &healthz.to_string()]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        let answer = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no answer: {error}"));
        (output.status.code().unwrap(), answer)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Whatever else runs on this machine.
fn free_port() -> String {
    TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port().to_string()
}

/// State, and what was found with what mends it.
fn of<'a>(answer: &'a Value, check: &str) -> (&'a str, String) {
    let found = answer["checks"].as_array().unwrap().iter().find(|c| c["check"] == check);
    let found = found.unwrap_or_else(|| panic!("no check {check} in {answer:#}"));
    (found["state"].as_str().unwrap(), format!("{} {}", found["found"], found["mend"]))
}

fn is_missing(answer: &(i32, Value), check: &str, says: &str) {
    let (state, text) = of(&answer.1, check);
    assert!(state == "missing" && text.contains(says), "{check}: {state} {text}");
    assert_eq!((answer.0, &answer.1["fit"]), (1, &Value::Bool(false)));
}

#[test]
fn this_machine_can_be_a_node() {
    let Some(place) = Place::new("root") else { return };
    let (code, answer) = place.check(":", &[], 0);
    assert_eq!((code, &answer["fit"]), (0, &Value::Bool(true)), "{answer:#}");
    for check in ["overlayfs", "bridge", "veth", "nftables", "hostPort", "bandwidth"] {
        let (state, text) = of(&answer, check);
        assert!(state == "ok" && text.contains("works"), "{check}: {state} {text}");
    }
    assert!(fs::read_dir(&place.0).unwrap().next().is_none(), "something was left in {}", place.0.display());
}

#[test]
fn others_than_root_hear_what_they_cannot_know() {
    let Some(place) = Place::new("nobody") else { return };
    let program = place.0.join("pikelet");
    fs::copy(env!("CARGO_BIN_EXE_pikelet"), &program).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(program);
    let output = command.args(["check", "-o", "json", "--port", &free_port(), "--healthz-port", "0"]).output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success(), "{answer:#}");
    assert_eq!(of(&answer, "user").0, "unknown");
    let (state, text) = of(&answer, "overlayfs");
    assert!(state == "unknown" && text.contains("sudo"), "{state} {text}");
}

#[test]
fn hidden_cgroups_are_missing() {
    let Some(place) = Place::new("cgroups") else { return };
    is_missing(&place.check("umount -R -l /sys/fs/cgroup", &[], 0), "cgroups", "no cgroup file system");
    let hide = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        let other = place.0.join("controllers");
        fs::write(&other, "cpuset cpu pids\n").unwrap();
        format!("mount --bind {} /sys/fs/cgroup/cgroup.controllers", other.display())
    } else {
        "umount -l /sys/fs/cgroup/memory".to_owned()
    };
    let answer = place.check(&hide, &[], 0);
    is_missing(&answer, "cgroup memory", "mount");
    assert_eq!(of(&answer.1, "cgroup pids").0, "ok");
}

#[test]
fn hidden_parts_of_the_kernel_are_missing() {
    let Some(place) = Place::new("kernel") else { return };
    let answer = place.check("mount --bind /dev/null /proc/filesystems", &[], 0);
    is_missing(&answer, "message queues", "CONFIG_POSIX_MQUEUE");
    // what was tried and works is believed more than what the kernel tells
    assert_eq!(of(&answer.1, "overlayfs").0, "ok");
    is_missing(&place.check("mount --bind /dev/null /etc/resolv.conf", &[], 0), "resolv.conf", "no name server");
    let bare = ["setpriv", "--bounding-set=-net_admin"];
    let answer = place.check(":", &bare, 0);
    is_missing(&answer, "user", "CAP_NET_ADMIN");
    is_missing(&answer, "bridge", "not permitted");
}

#[test]
fn file_systems_images_cannot_lie_on_are_missing() {
    let Some(place) = Place::new("disk") else { return };
    let dir = place.0.display();
    let layers =
        format!("cd {dir}; mkdir -p a b c lib; mount -t overlay none -o lowerdir=a,upperdir=b,workdir=c lib; cd /");
    let answer = place.check(&layers, &[], 0);
    is_missing(&answer, "file system", "ext4");
    is_missing(&answer, "overlayfs", "--root-dir");
    let read_only = format!("mkdir -p {dir}/lib; mount --bind {dir}/lib {dir}/lib; mount -o remount,bind,ro {dir}/lib");
    is_missing(&place.check(&read_only, &[], 0), "overlayfs", "read-only");
    let small = format!("mkdir -p {dir}/lib; mount -t tmpfs -o size=64M,nr_inodes=20 none {dir}/lib");
    let answer = place.check(&small, &[], 0);
    is_missing(&answer, "disk space", "64 MiB");
    assert_eq!(of(&answer.1, "file system").0, "warning");
}

#[test]
fn a_port_that_is_taken_is_missing() {
    let Some(place) = Place::new("port") else { return };
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    let answer = place.check(":", &[], port);
    is_missing(&answer, &format!("port {port}"), &format!("(pid {})", std::process::id()));
}
