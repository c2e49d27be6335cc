//! What a container may not ask the kernel for, nor write to: with the settings a pod has by default and `RuntimeDefault`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use pikelet::runtime::{ContainerSpec, Seccomp, Wanted};

use super::node::LIMIT;
use super::scene::Scene;

/// What may be opened for writing below `/proc` (processes apart) and `/sys`: triggers of pressure files change nothing.
const WRITABLE: [&str; 1] = ["/proc/pressure/"];

#[tokio::test]
async fn system_calls_and_devices_are_refused() {
    let Some(mut scene) = Scene::new("calls") else { return };
    scene.sandbox("s1", |_| {}).await;
    // with no filter: by capabilities and device rules alone
    let spec = ContainerSpec { cwd: "/".into(), ..scene.node.container("c1", &["/enemy", "calls"]) };
    let filtered = ContainerSpec {
        id: "c2".into(),
        log_path: scene.node.log("c2"),
        seccomp: Seccomp::RuntimeDefault,
        ..spec.clone()
    };
    for (spec, harmless) in [
        // of the kernel's own rules for everybody
        (spec, &["unshare user", "keyctl", "add_key", "userfaultfd", "perf_event_open", "io_uring_setup", "bpf"][..]),
        (filtered, &[][..]),
    ] {
        let id = spec.id.clone();
        assert_eq!(scene.run("s1", spec).await.unwrap().code, 0);
        let lines = scene.lines(&id);
        assert_eq!(lines.last().map(String::as_str), Some("done"), "{lines:?}");
        let allowed: Vec<&String> = lines
            .iter()
            .filter(|l| l.strip_suffix(": ALLOWED").is_some_and(|what| !harmless.contains(&what)))
            .collect();
        assert!(allowed.is_empty(), "{id}: {allowed:?}");
        // so that a C library newer than the profile falls back
        assert!(lines.iter().any(|l| l == "a call nobody knows: Function not implemented"), "{id}: {lines:?}");
    }
    scene.remove("s1").await;
}

#[tokio::test]
async fn the_kernels_files_are_read_only_or_hidden() {
    let Some(mut scene) = Scene::new("kernel") else { return };
    scene.sandbox("s1", |_| {}).await;
    let script = "cd /
        busybox find /proc /sys -type f -perm +222 2>/dev/null | grep -v -E '^/proc/([0-9]+|self|thread-self)/' >/found
        busybox find /sys/fs/cgroup -name release_agent -o -name cgroup.procs 2>/dev/null >>/found
        while read -r f; do test -w \"$f\" && (: >>\"$f\") 2>/dev/null && echo writable $f; done </found
        for f in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug /proc/interrupts; do
          test -e $f && test -n \"$(head -c 1 $f | busybox od -An -tx1)\" && echo readable $f
        done
        for f in /sys/firmware /proc/acpi /proc/scsi; do
          test -e $f && test -n \"$(busybox ls $f)\" && echo readable $f
        done
        echo done";
    assert_eq!(scene.run("s1", scene.node.shell("c1", script)).await.unwrap().code, 0);
    let lines = scene.lines("c1");
    let allowed = |l: &&String| !WRITABLE.iter().any(|w| l.contains(w)) && *l != "done";
    let open: BTreeSet<&String> = lines.iter().filter(allowed).collect();
    assert!(lines.iter().any(|l| l == "done"), "{lines:?}");
    assert!(open.is_empty(), "{open:?}");
    scene.remove("s1").await;
}

#[tokio::test]
async fn descriptors_of_a_container_are_no_files_of_the_host() {
    let Some(mut scene) = Scene::new("null") else { return };
    let host = fs::metadata("/dev/null").unwrap();
    scene.sandbox("s1", |_| {}).await;
    // each descriptor it was given, with the device of the file system that holds it, beside its own /dev
    let script = "for n in 0 1 2; do echo $n $(busybox stat -L -c %d:%i /proc/self/fd/$n); done
                  echo own $(busybox stat -c %d:%i /dev/null)";
    let theirs = format!("{}:{}", host.dev(), host.ino());
    assert_eq!(scene.run("s1", scene.node.shell("c1", script)).await.unwrap().code, 0);
    scene.start("s1", scene.node.container("c2", &["sleep", "1000"])).await.unwrap();
    let (_, of_exec) = scene.exec("s1", "c2", &["sh", "-c", script]).await.unwrap();
    for (what, lines) in [("container", scene.lines("c1").join("\n")), ("exec", of_exec)] {
        let given: Vec<&str> = lines.lines().filter(|l| l.ends_with(&theirs)).collect();
        assert!(given.is_empty(), "{what}: descriptors of the host's /dev/null: {given:?} of {lines}");
    }
    // an exec of whose output nobody wants anything, which changes the modes of what it has
    let mode = host.permissions().mode();
    for n in ["0", "1", "2"] {
        let args = ["/enemy", "chmod", n].map(str::to_owned).to_vec();
        let opened = tokio::time::timeout(LIMIT, scene.runtime.exec("s1", "c2", args, false, Wanted::default()));
        let mut streams = opened.await.unwrap().unwrap();
        streams.ending.wait().await.unwrap();
        let now = fs::metadata("/dev/null").unwrap().permissions();
        if now.mode() != mode {
            fs::set_permissions("/dev/null", host.permissions()).unwrap();
            panic!("a container changed the mode of the host's /dev/null to {:o}", now.mode());
        }
    }
    scene.remove("s1").await;
}
