//! Limits, device access and statistics, on the cgroup version of the machine the test runs on. `tests/guest.sh` runs it
//! on version 2. Needs what `node_runtime.rs` needs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "harness/node.rs"]
mod node;

use std::fs;
use std::path::{Path, PathBuf};

use node::{Node, alive, exit_of, run};
use pikelet::runtime::{ContainerSpec, DeviceGrant, Mount, Propagation, Resources, Runtime, SandboxSpec, Wanted};
use tokio::io::AsyncWriteExt;

/// The machine's cgroups are version 2.
fn unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

async fn wait_for(condition: impl Fn() -> bool) {
    for _ in 0..600 {
        if condition() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("not within 30 s");
}

/// What a file of the cgroup `path` below the node's root says; `None` when there is no such file.
fn value(node: &Node, path: &str, file: &str) -> Option<String> {
    let controllers = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|e| e.path());
    let mounts = std::iter::once(PathBuf::from("/sys/fs/cgroup")).chain(controllers);
    let mut files = mounts.map(|m| m.join(&node.config.cgroup_root).join(path).join(file));
    files.find_map(|f| fs::read_to_string(f).ok()).map(|text| text.trim().to_owned())
}

#[tokio::test]
async fn limits_are_in_the_kernels_files() {
    let Some(node) = Node::new("limits") else { return };
    let (runtime, _events) = Runtime::open(node.config.clone()).unwrap();
    let mut sandbox = node.sandbox("s1");
    sandbox.resources.hugepage_limits = Some([(2 << 20, 8 << 20)].into());
    runtime.create_sandbox(sandbox).await.unwrap();
    let mut spec = node.container("c1", &["sleep", "1000"]);
    spec.resources = Resources {
        cpu_shares: Some(512),
        cpu_quota: Some(25_000),
        cpu_period: Some(100_000),
        memory_limit: Some(32 << 20),
        pids_limit: Some(50),
        swap_limit: Some(0),
        oom_group: true,
        hugepage_limits: Some([(2 << 20, 4 << 20)].into()),
    };
    runtime.create_container("s1", spec).await.unwrap();
    runtime.create_container("s1", node.container("c2", &["sleep", "1000"])).await.unwrap();
    let (pod, container, free) = ("burstable/pods1", "burstable/pods1/c1", "burstable/pods1/c2");
    let is = |path: &str, file: &str, expected: &str| {
        assert_eq!(value(&node, path, file).as_deref(), Some(expected), "{path} {file}");
    };
    // those whose file takes a kernel option or some hardware
    let is_if_there = |path: &str, file: &str, expected: &str| {
        if let Some(found) = value(&node, path, file) {
            assert_eq!(found, expected, "{path} {file}");
        }
    };
    if unified() {
        is(container, "cpu.weight", "59");
        is(container, "cpu.max", "25000 100000");
        is(container, "memory.max", "33554432");
        is(container, "memory.swap.max", "0");
        is(container, "memory.oom.group", "1");
        is(container, "pids.max", "50");
        is(pod, "memory.max", "67108864");
        is(pod, "memory.oom.group", "0");
        is(pod, "pids.max", "100");
        is(free, "cpu.weight", "100");
        is(free, "memory.max", "max");
        is_if_there(container, "hugetlb.2MB.max", "4194304");
        is_if_there(container, "hugetlb.2MB.rsvd.max", "4194304");
        is_if_there(container, "hugetlb.1GB.max", "0");
        is_if_there(pod, "hugetlb.2MB.max", "8388608");
        for parent in ["", "burstable", pod] {
            let on = value(&node, parent, "cgroup.subtree_control").unwrap();
            for controller in ["cpu", "memory", "pids", "cpuset", "io"] {
                assert!(on.split(' ').any(|c| c == controller), "{parent}: {on}");
            }
        }
        is(container, "cgroup.subtree_control", "");
    } else {
        is(container, "cpu.shares", "512");
        is(container, "cpu.cfs_quota_us", "25000");
        is(container, "memory.limit_in_bytes", "33554432");
        is_if_there(container, "memory.memsw.limit_in_bytes", "33554432");
        is(container, "pids.max", "50");
        is(pod, "memory.limit_in_bytes", "67108864");
        is(pod, "pids.max", "100");
        is(free, "cpu.shares", "1024");
        is_if_there(container, "hugetlb.2MB.limit_in_bytes", "4194304");
        is_if_there(pod, "hugetlb.2MB.limit_in_bytes", "8388608");
    }
    runtime.remove_sandbox("s1").await.unwrap();
}

#[tokio::test]
async fn limits_change_in_place() {
    let Some(node) = Node::new("resize") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s1")).await.unwrap();
    let limits = |memory: i64, quota: i64| Resources {
        cpu_shares: Some(quota as u64 / 100),
        cpu_quota: Some(quota),
        cpu_period: Some(100_000),
        memory_limit: Some(memory << 20),
        swap_limit: Some(0),
        ..Default::default()
    };
    // it takes 12 MB whenever it is told to
    let script = "while read line; do head -c 12000000 /dev/zero >/dev/shm/file; echo $?; done";
    let mut spec = ContainerSpec { stdin: true, ..node.shell("c1", script) };
    spec.resources = limits(8, 20_000);
    let pid = runtime.create_container("s1", spec).await.unwrap();
    runtime.start_container("s1", "c1").await.unwrap();
    let (pod, container) = ("burstable/pods1", "burstable/pods1/c1");
    let (memory, quota) =
        if unified() { ("memory.max", "cpu.max") } else { ("memory.limit_in_bytes", "cpu.cfs_quota_us") };
    // up, further up, and down: memory and swap bound each other on version 1
    for (megabytes, micros) in [(8, 20_000), (32, 50_000), (48, 10_000), (32, 20_000)] {
        if megabytes > 8 {
            runtime.limit(container, &limits(megabytes, micros)).unwrap();
        }
        assert_eq!(value(&node, container, memory), Some((megabytes << 20).to_string()));
        let expected = if unified() { format!("{micros} 100000") } else { micros.to_string() };
        assert_eq!(value(&node, container, quota), Some(expected));
    }
    let mut streams = runtime.attach("s1", "c1", Wanted { stdin: true, ..Wanted::default() }).await.unwrap();
    streams.stdin.as_mut().unwrap().write_all(b"go\n").await.unwrap();
    wait_for(|| node.output("c1") == ["stdout F 0"]).await;
    assert!(alive(pid), "the same process as before");
    runtime.limit(pod, &Resources { memory_limit: Some(40 << 20), ..Default::default() }).unwrap();
    assert_eq!(value(&node, pod, memory), Some((40 << 20).to_string()));
    runtime.kill_container("s1", "c1", 9, true).await.unwrap();
    exit_of(&mut events, "c1").await;
    runtime.remove_sandbox("s1").await.unwrap();
}

#[tokio::test]
async fn a_root_below_processes_is_refused() {
    let Some(mut node) = Node::new("busy") else { return };
    if !unified() {
        eprintln!("skipped: a rule of cgroup version 2");
        return;
    }
    let busy = Path::new("/sys/fs/cgroup").join(&node.config.cgroup_root);
    fs::create_dir(&busy).unwrap();
    let mut process = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    fs::write(busy.join("cgroup.procs"), process.id().to_string()).unwrap();
    node.config.cgroup_root.push_str("/below");
    let refused = Runtime::open(node.config.clone()).err().unwrap().to_string();
    process.kill().unwrap();
    process.wait().unwrap();
    let opened = Runtime::open(node.config.clone()).is_ok();
    for dir in node.cgroups().iter().chain([&busy]) {
        fs::remove_dir(dir).unwrap();
    }
    assert!(refused.contains(busy.to_str().unwrap()) && refused.contains("there are processes in it"), "{refused}");
    assert!(opened);
}

#[tokio::test]
async fn limits_are_felt() {
    let Some(node) = Node::new("felt") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s2")).await.unwrap();

    // a child that takes too much memory: on version 2 the whole container ends, as with the kubelet
    let mut group = node.shell("c1", "sh -c 'x=0123456789abcdef; while true; do x=$x$x; done'; exit 5");
    group.resources = Resources { memory_limit: Some(16 << 20), oom_group: true, ..Default::default() };
    let exit = run(&runtime, &mut events, "s2", group).await;
    assert_eq!((exit.code, exit.oom_killed), if unified() { (137, true) } else { (5, false) });
    let kills = |container: &str| runtime.usage(&format!("burstable/pods2/{container}")).unwrap().oom_kills;
    assert!(kills("c1") > 0);

    // the pod's own limit (64 MiB) ends the container that is over it
    let exit =
        run(&runtime, &mut events, "s2", node.shell("c2", "x=0123456789abcdef; while true; do x=$x$x; done")).await;
    assert_eq!((exit.code, exit.oom_killed), (137, true));

    // SIGKILL by itself is not a lack of memory
    let exit = run(&runtime, &mut events, "s2", node.shell("c3", "kill -9 $$; sleep 1")).await;
    assert_eq!(
        (exit.code, exit.oom_killed),
        (0, false),
        "the first process of a PID namespace has no signals of its own"
    );

    let mut many = node.shell("c4", "i=0; while [ $i -lt 30 ]; do sleep 1000 & i=$((i+1)); done");
    many.resources.pids_limit = Some(10);
    assert_ne!(run(&runtime, &mut events, "s2", many).await.code, 0);
    assert!(node.output("c4").iter().any(|l| l.contains("can't fork")), "{:?}", node.output("c4"));
    runtime.remove_sandbox("s2").await.unwrap();
}

#[tokio::test]
async fn what_forks_all_the_time_is_killed_too() {
    let Some(node) = Node::new("forks") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    // no PID namespace whose end would be everybody's
    let sandbox = SandboxSpec { host_pid: true, ..node.sandbox("s3") };
    runtime.create_sandbox(sandbox).await.unwrap();
    let script = "fork() { while true; do sleep 0.01 & wait $!; done; }; fork & fork & fork & fork";
    let pid = runtime.create_container("s3", node.shell("c1", script)).await.unwrap();
    runtime.start_container("s3", "c1").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    runtime.kill_container("s3", "c1", 9, true).await.unwrap();
    assert_eq!(exit_of(&mut events, "c1").await.code, 137);
    assert!(!alive(pid));
    runtime.remove_sandbox("s3").await.unwrap();
    assert!(!node.cgroups().iter().any(|d| d.ends_with("pods3")), "{:?}", node.cgroups());
}

#[tokio::test]
async fn devices_of_the_host_are_out_of_reach() {
    let Some(node) = Node::new("devices") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s4")).await.unwrap();
    // to write to kmsg, or open a loop device that has no file, no other rule of the kernel asks for more than root
    let mut tries = vec![("kmsg", "c 1 11", "true >")];
    if Path::new("/dev/loop0").exists() {
        tries.push(("loop", "b 7 0", "head -c 1 "));
    }
    let script: Vec<String> = tries
        .iter()
        .map(|(name, numbers, open)| {
            format!("mknod /tmp/{name} {numbers} && echo {name} made; {{ {open}/tmp/{name}; }} && echo {name} open")
        })
        .collect();
    let script = script.join("; ");
    let allowed = "mknod /tmp/nil c 1 3 && echo x >/tmp/nil && head -c 4 /dev/urandom >/dev/null && echo fine; \
                   head -c 1 /dev/zero >/dev/full; true";
    let exit = run(&runtime, &mut events, "s4", node.shell("c1", &format!("{script}; {allowed}"))).await;
    assert_eq!(exit.code, 0);
    let output = node.output("c1").join("\n");
    for (name, ..) in &tries {
        assert!(output.contains(&format!("{name} made")), "{output}");
        assert!(!output.contains(&format!("{name} open")), "{output}");
        assert!(output.contains(&format!("/tmp/{name}: Operation not permitted")), "{output}");
    }
    assert!(output.contains("stdout F fine"), "{output}");
    assert!(output.contains("No space left"), "{output}");

    // nor by another process started in the container
    runtime.create_container("s4", node.container("c2", &["sleep", "1000"])).await.unwrap();
    runtime.start_container("s4", "c2").await.unwrap();
    let args = ["sh", "-c", "true >/tmp/kmsg"].map(str::to_owned).to_vec();
    let mut streams = runtime.exec("s4", "c2", args, false, Wanted::default()).await.unwrap();
    assert_ne!(streams.ending.wait().await.unwrap(), 0);

    let mut strong = node.shell("c3", "for file in /dev/kmsg /tmp/*; do true <>$file || exit 1; done");
    strong.privileged = true;
    let exit = run(&runtime, &mut events, "s4", strong).await;
    assert_eq!(exit.code, 0, "{:?}", node.output("c3"));
    runtime.remove_sandbox("s4").await.unwrap();
}

#[tokio::test]
async fn a_mounted_device_takes_a_grant() {
    let Some(node) = Node::new("grants") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s6")).await.unwrap();
    // what a hostPath volume of type CharDevice or BlockDevice mounts
    let devices = ["/dev/kmsg", "/dev/net/tun", "/dev/fuse", "/dev/loop0"].map(PathBuf::from);
    let there: Vec<PathBuf> = devices.into_iter().filter(|d| d.exists()).collect();
    let mounts = there.iter().map(|device| Mount {
        source: device.clone(),
        destination: device.to_str().unwrap().into(),
        read_only: false,
        recursive_read_only: false,
        no_exec: false,
        propagation: Propagation::None,
        mapped: false,
    });
    let mounts: Vec<Mount> = mounts.collect();
    let script = "for file in /dev/kmsg /dev/net/tun /dev/fuse /dev/loop0; do \
                  if test -c $file || test -b $file; then true <>$file && echo $file open; fi; done; true";
    let plain = ContainerSpec { mounts: mounts.clone(), ..node.shell("c1", script) };
    assert_eq!(run(&runtime, &mut events, "s6", plain).await.code, 0);
    let output = node.output("c1").join("\n");
    assert!(!output.contains(" open"), "{output}");
    assert_eq!(output.matches("Operation not permitted").count(), there.len(), "{output}");

    // the mount is not needed by a privileged one, and not in its way
    for (id, mounts) in [("c2", mounts), ("c3", Vec::new())] {
        let strong = ContainerSpec { mounts, privileged: true, ..node.shell(id, script) };
        assert_eq!(run(&runtime, &mut events, "s6", strong).await.code, 0);
        let output = node.output(id).join("\n");
        for device in &there {
            assert!(output.contains(&format!("{} open", device.display())), "{output}");
        }
    }
    runtime.remove_sandbox("s6").await.unwrap();
}

#[tokio::test]
async fn a_granted_device_may_be_used_as_far_as_it_was_granted() {
    let Some(node) = Node::new("granted") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s9")).await.unwrap();
    let grant = |path: &str, permissions: &str| DeviceGrant { path: path.into(), permissions: permissions.into() };
    let script = "ls -n /dev/loop-control | cut -d ' ' -f 1; true </dev/loop-control && echo read; \
                  true >/dev/loop-control || echo not written; true >/dev/kmsg && echo log written; true";
    let devices = vec![grant("/dev/loop-control", "r"), grant("/dev/kmsg", "w")];
    let spec = ContainerSpec { devices, ..node.shell("c1", script) };
    assert_eq!(run(&runtime, &mut events, "s9", spec).await.code, 0);
    let output = node.output("c1").join("\n");
    for line in ["crw", "read", "not written", "log written"] {
        assert!(output.contains(line), "{line}: {output}");
    }
    // an ordinary user owns it; another container of the pod cannot use it even if it makes the node
    let mut spec = node.shell("c2", "true </dev/loop-control && echo read; true");
    (spec.user.uid, spec.devices) = (1000, vec![grant("/dev/loop-control", "r")]);
    assert_eq!(run(&runtime, &mut events, "s9", spec).await.code, 0);
    assert!(node.output("c2").join("\n").contains("read"), "{:?}", node.output("c2"));
    let script = "test -e /dev/loop-control && echo there; mknod /tmp/l c 10 237 && true </tmp/l && echo read; true";
    assert_eq!(run(&runtime, &mut events, "s9", node.shell("c3", script)).await.code, 0);
    let output = node.output("c3").join("\n");
    assert!(output.contains("Operation not permitted") && !output.contains("read"), "{output}");
    assert!(!output.contains("there"), "{output}");
    // which version 1 has a rule of its own for
    if std::fs::File::open("/dev/net/tun").is_ok() {
        let vpn = node.shell("c5", "true <>/dev/net/tun && echo tun open; true");
        let vpn = ContainerSpec { devices: vec![grant("/dev/net/tun", "rw")], ..vpn };
        assert_eq!(run(&runtime, &mut events, "s9", vpn).await.code, 0);
        assert!(node.output("c5").join("\n").contains("tun open"), "{:?}", node.output("c5"));
    }
    let gone = ContainerSpec { devices: vec![grant("/dev/no-such", "r")], ..node.shell("c4", "true") };
    let error = runtime.create_container("s9", gone).await.unwrap_err().to_string();
    assert!(error.contains("device /dev/no-such"), "{error}");
    runtime.remove_sandbox("s9").await.unwrap();
}

/// For this thread and what it starts, the kernel is one without `bpf(2)`.
#[allow(unsafe_code)]
fn lose_bpf() {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_LD, BPF_RET, sock_filter};
    let step = |code, k, jf| sock_filter { code: code as u16, jt: 0, jf, k };
    let mut steps = [
        // the number of the system call
        step(BPF_LD | BPF_ABS, 0, 0),
        step(BPF_JMP | BPF_JEQ, libc::SYS_bpf as u32, 1),
        step(BPF_RET, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32, 0),
        step(BPF_RET, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which is alive until the call returns.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

#[tokio::test]
async fn a_kernel_without_device_programs_runs_only_what_may_use_all() {
    let Some(node) = Node::new("nobpf") else { return };
    if !unified() {
        eprintln!("skipped: version 1 has files for device rules");
        return;
    }
    lose_bpf();
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s7")).await.unwrap();
    let refused = runtime.create_container("s7", node.shell("c1", "exit 3")).await.unwrap_err().to_string();
    assert!(refused.contains("CONFIG_CGROUP_BPF"), "{refused}");
    assert!(!node.cgroups().iter().any(|d| d.ends_with("c1")), "{:?}", node.cgroups());
    let mut strong = node.shell("c1", "exit 3");
    strong.privileged = true;
    assert_eq!(run(&runtime, &mut events, "s7", strong).await.code, 3);
    runtime.remove_sandbox("s7").await.unwrap();
}

#[tokio::test]
async fn figures_come_from_the_cgroups() {
    let Some(node) = Node::new("figures") else { return };
    let (runtime, _events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s5")).await.unwrap();
    let mut spec = node.shell("c1", "head -c 8000000 /dev/zero >/dev/shm/file; echo done; sleep 1000 & wait");
    spec.resources.memory_limit = Some(32 << 20);
    runtime.create_container("s5", spec).await.unwrap();
    runtime.start_container("s5", "c1").await.unwrap();
    while node.output("c1").is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let usage = |cgroup| runtime.usage(cgroup).unwrap();
    // both of one moment: `sleep` may still be starting
    let (container, pod) = loop {
        let (container, pod) = (usage("burstable/pods5/c1"), usage("burstable/pods5"));
        if usage("burstable/pods5/c1") == container {
            break (container, pod);
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert!(container.cpu > 0 && container.rss > 0 && container.page_faults > 0, "{container:?}");
    assert!(container.memory > 8_000_000 && container.cache >= 8_000_000, "{container:?}");
    assert!(container.working_set > 0 && container.working_set <= container.memory, "{container:?}");
    assert_eq!((container.memory_limit, container.oom_kills, container.swap), (Some(32 << 20), 0, 0));
    assert_eq!(container.processes, 2, "{container:?}");
    assert!(pod.memory >= container.memory && pod.cpu >= container.cpu, "{pod:?} {container:?}");
    assert_eq!((pod.memory_limit, pod.processes), (Some(64 << 20), 2));
    assert!(runtime.usage("burstable/pods6").is_none());
    runtime.remove_sandbox("s5").await.unwrap();
}
