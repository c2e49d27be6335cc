//! Pods with user namespaces of their own (`hostUsers: false`): what a container is on the host, and what it sees of the
//! host's files. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "harness/node.rs"]
#[allow(dead_code)]
mod node;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use node::{Node, run};
use pikelet::runtime::{ContainerSpec, IdRange, Mount, Propagation, Runtime, SandboxSpec, Seccomp, User, Wanted};

const IDS: IdRange = IdRange { first: 3 << 16, count: 1 << 16 };

/// A node whose root file system belongs to the root of [`IDS`], in a folder only the host's root may enter.
fn node(name: &str) -> Option<Node> {
    let node = Node::new(name)?;
    fs::set_permissions(&node.dir, Permissions::from_mode(0o700)).unwrap();
    own(&node.dir.join("rootfs"));
    Some(node)
}

fn own(path: &Path) {
    std::os::unix::fs::lchown(path, Some(IDS.first), Some(IDS.first)).unwrap();
    if path.symlink_metadata().unwrap().is_dir() {
        fs::read_dir(path).unwrap().flatten().for_each(|e| own(&e.path()));
    }
}

fn sandbox(node: &Node, id: &str) -> SandboxSpec {
    let sysctls = [("kernel.shmmax", "123456"), ("net.ipv4.tcp_keepalive_time", "123")];
    SandboxSpec {
        user_namespace: Some(IDS),
        sysctls: sysctls.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..node.sandbox(id)
    }
}

fn mount(source: PathBuf, destination: &str, read_only: bool) -> Mount {
    let (propagation, destination) = (Propagation::None, destination.to_owned());
    let (recursive_read_only, no_exec, mapped) = (false, false, false);
    Mount { source, destination, read_only, recursive_read_only, no_exec, propagation, mapped }
}

/// False where the kernel has no ID-mapped mounts on the file system the test is on: then that is what is said.
async fn can_map(node: &Node, runtime: &Runtime) -> bool {
    let mut probe = node.shell("probe", "true");
    probe.mounts = vec![mount(node.dir.join("volume"), "/v", false)];
    match runtime.create_container("s1", probe).await {
        Ok(_) => runtime.remove_container("s1", "probe").await.is_ok(),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("has no ID-mapped mounts on this kernel"), "{text}");
            eprintln!("skipped: {text}");
            false
        }
    }
}

#[tokio::test]
async fn a_container_is_root_of_its_own_users_only() {
    let Some(node) = node("users") else { return };
    let (runtime, _events) = Runtime::open(node.config.clone()).unwrap();
    let volume = node.dir.join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("secret"), "of root\n").unwrap();
    fs::set_permissions(volume.join("secret"), Permissions::from_mode(0o600)).unwrap();
    fs::write(volume.join("seven"), "").unwrap();
    chown(volume.join("seven"), Some(7), Some(7)).unwrap();
    runtime.create_sandbox(sandbox(&node, "s1")).await.unwrap();
    if !can_map(&node, &runtime).await {
        return;
    }

    let script = "cat /proc/self/uid_map /proc/self/gid_map | while read a b c; do echo $a $b $c; done
                  id -u; cat /v/secret; echo new >/v/new; echo old >/old; busybox stat -c %u /v/seven /v/new /old /
                  hostname; cat /proc/sys/kernel/shmmax /proc/sys/net/ipv4/tcp_keepalive_time; echo x >/ro/x; \
                  busybox touch /dev/shm/x && mknod /tmp/null c 1 3; head -c 3 /dev/null; exec sleep 1000";
    let mut spec = node.shell("c1", script);
    spec.mounts = vec![mount(volume.clone(), "/v", false), mount(volume.clone(), "/ro", true)];
    let pid = runtime.create_container("s1", spec).await.unwrap();
    runtime.start_container("s1", "c1").await.unwrap();
    let args =
        ["sh", "-c", "while ! test -e /v/new; do sleep 0.1; done; sleep 0.5; id -u; cat /proc/self/uid_map; exit 3"];
    let wanted = Wanted { stdout: true, ..Wanted::default() };
    let mut streams = runtime.exec("s1", "c1", args.map(str::to_owned).into(), false, wanted).await.unwrap();
    let mut said = Vec::new();
    while streams.stdout.as_mut().unwrap().read(&mut said).await.unwrap() > 0 {}
    let said = String::from_utf8(said).unwrap();
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "196608", "65536"], "exec");
    assert_eq!(streams.ending.wait().await.unwrap(), 3);
    let output = node.output("c1");
    let expected = ["0 196608 65536", "0 196608 65536", "0", "of root", "7", "0", "0", "0", "web-0", "123456", "123"];
    let seen: Vec<&str> = output.iter().filter_map(|l| l.strip_prefix("stdout F ")).collect();
    assert_eq!(seen, expected, "{output:?}");
    let refused: Vec<&String> = output.iter().filter(|l| l.starts_with("stderr")).collect();
    assert!(refused.len() == 2 && refused[0].contains("Read-only") && refused[1].contains("mknod"), "{refused:?}");

    // on the host: nobody, but the owner of what it wrote to the volume is the host's root
    assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), IDS.first);
    assert_eq!(fs::metadata(volume.join("new")).unwrap().uid(), 0);
    assert_eq!(fs::metadata(node.dir.join("rootfs/old")).unwrap().uid(), IDS.first);
    assert_eq!(fs::metadata(node.dir.join("rootfs/work/here")).unwrap().uid(), IDS.first);
    let left = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!left.contains("/run/pikelet-mounts"), "{left}");
    runtime.remove_sandbox("s1").await.unwrap();
}

#[tokio::test]
async fn containers_of_a_pod_share_its_users() {
    let Some(node) = node("sharers") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    fs::create_dir(node.dir.join("volume")).unwrap();
    let sandbox = SandboxSpec { share_process_namespace: true, ..sandbox(&node, "s1") };
    runtime.create_sandbox(sandbox).await.unwrap();
    let mut spec = node.shell("c1", "sleep 1000");
    spec.user = User { uid: 1000, gid: 1001, additional_gids: vec![1002] };
    spec.seccomp = Seccomp::RuntimeDefault;
    let pid = runtime.create_container("s1", spec).await.unwrap();
    runtime.start_container("s1", "c1").await.unwrap();
    assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), IDS.first + 1000);
    // what comes later is what the container's own program is
    let status = "^(Groups|Cap|NoNewPrivs|Seccomp:)";
    let args = ["grep", "-E", &format!("{status}|^[UG]id"), "/proc/self/status"].map(str::to_owned);
    let wanted = Wanted { stdout: true, ..Wanted::default() };
    let mut streams = runtime.exec("s1", "c1", args.into(), false, wanted).await.unwrap();
    let mut said = Vec::new();
    while streams.stdout.as_mut().unwrap().read(&mut said).await.unwrap() > 0 {}
    let said = String::from_utf8(said).unwrap();
    let own = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let same = |name: &str| {
        let of = |text: &str| text.lines().find(|l| l.starts_with(name)).map(str::to_owned);
        assert!(of(&said).is_some() && of(&said) == of(&own), "{name}: {said} {own}");
    };
    ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp:"].into_iter().for_each(same);
    assert!(said.contains("Uid:\t1000\t1000\t1000\t1000") && said.contains("Groups:\t1001 1002"), "{said}");
    // a neighbour sees its processes, may signal them as root, and has a terminal
    let script =
        "grep -w Seccomp: /proc/self/status; ps -o pid,user,args; tty; mount -t tmpfs t /tmp && echo mounted; \
                  for p in $(busybox pidof sleep); do kill -9 $p; done
                  busybox ls /proc/1/root/ 2>&1 | grep -o denied; busybox ls /proc/1/fd 2>&1 | grep -o denied; exit 5";
    let neighbour = ContainerSpec {
        tty: true,
        seccomp: Seccomp::RuntimeDefault,
        capabilities_add: vec!["SYS_ADMIN".into(), "SYS_PTRACE".into()],
        ..node.shell("c2", script)
    };
    let exit = run(&runtime, &mut events, "s1", neighbour).await;
    let output = node.output("c2").join("\n");
    assert_eq!(exit.code, 5, "{output}");
    for part in ["Seccomp:\t2", "1000     sleep 1000", "pikelet", "/dev/pts/0", "mounted"] {
        assert!(output.contains(part), "{part}: {output}");
    }
    // the pod's first process shows nothing of the host, also to its root
    assert_eq!(output.matches("denied").count(), 2, "{output}");
    runtime.remove_sandbox("s1").await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_mapped_is_said() {
    let Some(node) = node("unmapped") else { return };
    let (runtime, _events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(sandbox(&node, "s1")).await.unwrap();
    let mut spec = node.shell("c1", "true");
    spec.mounts = vec![mount("/proc/version".into(), "/v", false)];
    let error = runtime.create_container("s1", spec).await.unwrap_err().to_string();
    assert!(error.contains("/proc/version") && error.contains("has no ID-mapped mounts on this kernel"), "{error}");
    // and the shim is where it was
    let fine = runtime.create_container("s1", node.shell("c2", "true")).await;
    assert!(fine.is_ok(), "{fine:?}");
    runtime.remove_sandbox("s1").await.unwrap();
}
