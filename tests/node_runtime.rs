//! The runtime on a real machine: shims, containers, their ends and their removal. Needs root and `/bin/busybox`
//! (a static one); says so and passes without doing anything where either is missing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "harness/node.rs"]
mod node;

use std::fs;
use std::time::Duration;

use node::{Node, alive, exit_of, run};
use pikelet::runtime::{ContainerSpec, Runtime, RuntimeError, RuntimeEvent, SandboxSpec, Seccomp, User, Wanted};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

#[tokio::test]
async fn containers_live_and_die() {
    let Some(node) = Node::new("life") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s1")).await.unwrap();
    let exit = run(&runtime, &mut events, "s1", node.shell("c1", "echo hi; hostname; echo bad >&2; exit 3")).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (3, None, false));
    let mut output = node.output("c1");
    output.sort();
    assert_eq!(output, ["stderr F bad", "stdout F hi", "stdout F web-0"]);

    let refused = runtime.create_container("s1", node.container("c2", &["foo"])).await.unwrap_err();
    assert!(matches!(refused, RuntimeError::Shim(_)), "{refused:?}");
    assert_eq!(refused.to_string(), "exec: \"foo\": executable file not found in $PATH");
    // Nothing of the failed attempt is in the way of the next one.
    let exit = run(&runtime, &mut events, "s1", node.shell("c2", "test $(pwd) = /work/here")).await;
    assert_eq!(exit.code, 0);

    // An agent that goes away and comes back.
    let pid = runtime.create_container("s1", node.container("c3", &["sleep", "1000"])).await.unwrap();
    let started = runtime.start_container("s1", "c3").await.unwrap();
    drop((runtime, events));
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    let found = runtime.recover().await.unwrap();
    assert_eq!(found.len(), 1);
    assert!(found[0].alive);
    let ids: Vec<_> = found[0].containers.iter().map(|c| c.spec.id.as_str()).collect();
    assert_eq!(ids, ["c1", "c2", "c3"]);
    assert_eq!(found[0].containers[0].exit.as_ref().map(|e| e.code), Some(3));
    let long = &found[0].containers[2];
    assert_eq!((long.pid, long.started_at, long.exit.is_none()), (pid, Some(started), true));
    assert!(alive(pid));
    assert!(runtime.netns_path("s1").unwrap().exists());
    runtime.kill_container("s1", "c3", 9, false).await.unwrap();
    let exit = exit_of(&mut events, "c3").await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), false));

    runtime.remove_container("s1", "c3").await.unwrap();
    let pid = runtime.create_container("s1", node.container("c4", &["sleep", "1000"])).await.unwrap();
    runtime.start_container("s1", "c4").await.unwrap();
    runtime.remove_sandbox("s1").await.unwrap();
    runtime.remove_sandbox("s1").await.unwrap();
    assert!(!alive(pid));
    assert!(!node.config.state_dir.join("sandboxes/s1").exists());
    assert!(!node.cgroups().iter().any(|d| d.ends_with("pods1")), "{:?}", node.cgroups());
    assert!(runtime.recover().await.unwrap().is_empty());
}

#[tokio::test]
async fn system_calls_are_filtered() {
    let Some(node) = Node::new("calls") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s3")).await.unwrap();
    let run = async |events: &mut _, spec| run(&runtime, events, "s3", spec).await;
    // a program that forks, makes namespaces and mounts
    let script =
        "grep -w Seccomp: /proc/self/status; unshare -U true 2>/dev/null; echo $?; mount -t tmpfs t /tmp; echo $?";

    let mut free = node.shell("c1", script);
    free.capabilities_add = vec!["SYS_ADMIN".into()];
    assert_eq!(run(&mut events, free).await.code, 0);
    assert_eq!(node.output("c1"), ["stdout F Seccomp:\t0", "stdout F 0", "stdout F 0"]);

    let mut default = node.shell("c2", script);
    default.seccomp = Seccomp::RuntimeDefault;
    assert_eq!(run(&mut events, default.clone()).await.code, 0);
    let output = node.output("c2");
    assert_eq!([&output[0][..], &output[1]], ["stdout F Seccomp:\t2", "stdout F 1"]);
    assert_ne!(output.last().unwrap(), "stdout F 0");

    // the same with no_new_privs, where the filter is loaded at another moment
    default = ContainerSpec { no_new_privileges: true, ..default };
    default = ContainerSpec { id: "c3".into(), log_path: node.shell("c3", "").log_path, ..default };
    assert_eq!(run(&mut events, default).await.code, 0);
    assert_eq!(node.output("c3")[..2], output[..2]);

    // what a capability brings
    let mut admin = node.shell("c4", script);
    admin.seccomp = Seccomp::RuntimeDefault;
    admin.capabilities_add = vec!["SYS_ADMIN".into()];
    assert_eq!(run(&mut events, admin).await.code, 0);
    assert_eq!(node.output("c4"), ["stdout F Seccomp:\t2", "stdout F 0", "stdout F 0"]);

    let mut strong = node.shell("c5", script);
    strong.seccomp = Seccomp::RuntimeDefault;
    strong.privileged = true;
    assert_eq!(run(&mut events, strong).await.code, 0);
    assert_eq!(node.output("c5")[0], "stdout F Seccomp:\t0");

    // a file, with a comparison under a mask: clone and unshare may not make a user namespace, but others
    let file = node.config.state_dir.join("profile.json");
    let masked = r#"{"index": 0, "value": 2114060288, "valueTwo": 268435456, "op": "SCMP_CMP_MASKED_EQ"}"#;
    let call = format!(r#"{{"names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [{masked}]}}"#);
    fs::write(&file, format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{call}]}}"#)).unwrap();
    let mut own = node.shell("c6", "unshare -U true 2>/dev/null; echo $?; unshare -u true; echo $?");
    own.seccomp = Seccomp::Localhost(file.clone());
    own.capabilities_add = vec!["SYS_ADMIN".into()];
    assert_eq!(run(&mut events, own).await.code, 0);
    assert_eq!(node.output("c6"), ["stdout F 1", "stdout F 0"]);

    let mut missing = node.shell("c7", "true");
    missing.seccomp = Seccomp::Localhost("/nowhere/profile.json".into());
    let text = runtime.create_container("s3", missing).await.unwrap_err().to_string();
    assert!(text.contains("cannot load seccomp profile /nowhere/profile.json"), "{text}");
    runtime.remove_sandbox("s3").await.unwrap();
}

#[tokio::test]
async fn what_a_container_sees() {
    let Some(node) = Node::new("sees") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s2")).await.unwrap();
    let run = async |events: &mut _, spec| run(&runtime, events, "s2", spec).await;

    // A pipe's end is told by signal, and no signal is blocked.
    let exit =
        run(&mut events, node.shell("c1", "yes | head -n 1; grep -E 'Sig(Blk|Ign)|CapEff' /proc/self/status")).await;
    assert_eq!(exit.code, 0);
    let output = node.output("c1");
    assert_eq!(output[0], "stdout F y");
    assert!(output.iter().any(|l| l.ends_with("SigBlk:\t0000000000000000")), "{output:?}");
    assert!(output.iter().any(|l| l.ends_with("CapEff:\t00000000a80425fb")), "{output:?}");

    let exit = run(&mut events, node.container("c1b", &["grep", "SigIgn", "/proc/self/status"])).await;
    assert_eq!(exit.code, 0);
    let output = node.output("c1b");
    // Without the two signals the C library keeps for itself.
    let ignored = output[0].strip_prefix("stdout F SigIgn:\t").unwrap();
    assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & 0x7fff_ffff, 0, "{ignored}");

    let mut user = node.shell("c2", "id -u; grep CapEff /proc/self/status; echo $$");
    user.user.uid = 1000;
    assert_eq!(run(&mut events, user).await.code, 0);
    assert_eq!(node.output("c2"), ["stdout F 1000", "stdout F CapEff:\t0000000000000000", "stdout F 1"]);

    // Host devices cannot be opened although MKNOD is allowed.
    let script = "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem";
    assert_ne!(run(&mut events, node.shell("c3", script)).await.code, 0);
    assert!(node.output("c3")[0].contains("Operation not permitted"), "{:?}", node.output("c3"));

    // Memory beyond the limit ends the container and says why.
    let mut hungry = node.shell("c4", "x=0123456789abcdef; while true; do x=$x$x; done");
    hungry.resources.memory_limit = Some(16 << 20);
    let exit = run(&mut events, hungry).await;
    assert_eq!((exit.code, exit.oom_killed), (137, true));

    // also when it was not the first process that had to go
    let mut hungry = node.shell("c4b", "sh -c 'x=0123456789abcdef; while true; do x=$x$x; done'; exit $?");
    hungry.resources.memory_limit = Some(16 << 20);
    hungry.resources.oom_group = false;
    let exit = run(&mut events, hungry).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, None, true));

    let mut tty = node.shell("c5", "tty; echo done");
    tty.tty = true;
    assert_eq!(run(&mut events, tty).await.code, 0);
    assert_eq!(node.output("c5"), ["stdout F /dev/pts/0", "stdout F done"]);

    let mut strong = node.shell("c6", "head -c 1 /dev/kmsg >/dev/null; echo $?");
    strong.privileged = true;
    strong.oom_score_adj = -997;
    assert_eq!(run(&mut events, strong).await.code, 0);

    let mut bad = node.container("c7", &["/bin/sh"]);
    bad.args[0] = "/nowhere/sh".into();
    let text = runtime.create_container("s2", bad).await.unwrap_err().to_string();
    assert!(text.contains("no such file"), "{text}");
    runtime.remove_sandbox("s2").await.unwrap();
}

#[tokio::test]
async fn a_dead_shim_takes_its_containers_along() {
    let Some(node) = Node::new("dead") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(SandboxSpec { share_process_namespace: true, ..node.sandbox("s3") }).await.unwrap();
    let exit = run(&runtime, &mut events, "s3", node.shell("c0", "sleep 1000 & ps | grep -c pause")).await;
    assert_eq!(exit.code, 0);
    let running = runtime.create_container("s3", node.container("c1", &["sleep", "1000"])).await.unwrap();
    runtime.start_container("s3", "c1").await.unwrap();
    let created = runtime.create_container("s3", node.container("c2", &["sleep", "1000"])).await.unwrap();
    let shim = fs::read_to_string(node.config.state_dir.join("sandboxes/s3/shim.pid")).unwrap();
    let shim = shim.split_once(' ').unwrap().0;
    assert!(std::process::Command::new("kill").args(["-9", shim]).status().unwrap().success());
    let event = timeout(Duration::from_secs(10), events.recv()).await.expect("no event");
    assert!(matches!(event, Some(RuntimeEvent::SandboxLost { sandbox, .. }) if sandbox == "s3"));
    let (runtime, _events) = Runtime::open(node.config.clone()).unwrap();
    let found = runtime.recover().await.unwrap();
    assert_eq!((found.len(), found[0].alive, found[0].containers.len()), (1, false, 3));
    runtime.remove_sandbox("s3").await.unwrap();
    assert!(!alive(running) && !alive(created));
    assert!(!node.config.state_dir.join("sandboxes/s3").exists());
    assert!(!node.cgroups().iter().any(|d| d.ends_with("pods3")));
}

#[tokio::test]
async fn the_host_can_be_shared() {
    let Some(node) = Node::new("host") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    let spec = SandboxSpec { host_network: true, host_ipc: true, host_pid: true, ..node.sandbox("s4") };
    runtime.create_sandbox(spec).await.unwrap();
    let own = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    assert_eq!(fs::read_link(runtime.netns_path("s4").unwrap()).unwrap(), own("net"));
    let pid = runtime.create_container("s4", node.shell("c1", "sleep 1000 & exit 7")).await.unwrap();
    for kind in ["net", "ipc", "uts", "pid"] {
        assert_eq!(fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap(), own(kind), "{kind}");
    }
    runtime.start_container("s4", "c1").await.unwrap();
    assert_eq!(exit_of(&mut events, "c1").await.code, 7);
    runtime.remove_sandbox("s4").await.unwrap();
    assert!(!node.cgroups().iter().any(|d| d.ends_with("pods4")));
}

const ALL: Wanted = Wanted { stdin: true, stdout: true, stderr: true };

async fn everything(mut reader: Option<pikelet::runtime::Reader>) -> String {
    let mut text = Vec::new();
    while let Some(reader) = &mut reader
        && reader.read(&mut text).await.unwrap() > 0
    {}
    String::from_utf8(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn more_processes_run_in_a_container() {
    let Some(node) = Node::new("exec") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s1")).await.unwrap();
    let spec =
        ContainerSpec { user: User { uid: 7, gid: 8, additional_gids: vec![9] }, ..node.shell("c1", "sleep 1000") };
    runtime.create_container("s1", spec).await.unwrap();
    let early = runtime.exec("s1", "c1", vec!["true".into()], false, ALL).await.unwrap_err().to_string();
    assert!(early.contains("not running"), "{early}");
    runtime.start_container("s1", "c1").await.unwrap();
    let exec = |script: &str, tty| {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        runtime.exec("s1", "c1", args, tty, ALL)
    };

    let mut streams = exec("read line; echo got $line; echo err >&2; pwd; id -u; exit 3", false).await.unwrap();
    streams.stdin.take().unwrap().write_all(b"hello\n").await.unwrap();
    let (out, err) = tokio::join!(everything(streams.stdout), everything(streams.stderr));
    assert_eq!((out.as_str(), err.as_str()), ("got hello\n/work/here\n7\n", "err\n"));
    assert_eq!(streams.ending.wait().await.unwrap(), 3);

    let mut streams = exec("cat; exit 0", false).await.unwrap();
    drop(streams.stdin.take());
    assert_eq!(streams.ending.wait().await.unwrap(), 0, "the end of standard input is seen");
    let mut streams = exec("kill -9 $$", false).await.unwrap();
    assert_eq!(streams.ending.wait().await.unwrap(), 137);

    let mut streams = exec("read x; stty size; tty; exit 4", true).await.unwrap();
    streams.terminal.as_ref().unwrap().resize(90, 30).unwrap();
    streams.stdin.as_mut().unwrap().write_all(b"go\n").await.unwrap();
    let out = everything(streams.stdout).await;
    assert!(out.contains("30 90") && out.contains("/dev/pts/"), "{out}");
    assert_eq!(streams.ending.wait().await.unwrap(), 4);

    let error = runtime.exec("s1", "c1", vec!["no-such".into()], false, ALL).await.unwrap_err().to_string();
    assert_eq!(error, "exec: \"no-such\": executable file not found in $PATH");
    assert!(runtime.exec("s1", "nope", vec!["true".into()], false, ALL).await.is_err());

    let runs = (0..20).map(|i| {
        let runtime = &runtime;
        async move {
            let args = ["sh", "-c", &format!("echo {i}; exit {i}")].map(str::to_owned).to_vec();
            let mut streams =
                runtime.exec("s1", "c1", args, false, Wanted { stdout: true, ..Wanted::default() }).await.unwrap();
            assert_eq!(everything(streams.stdout.take()).await, format!("{i}\n"));
            assert_eq!(streams.ending.wait().await.unwrap(), i);
        }
    });
    futures::future::join_all(runs).await;

    let running = exec("sleep 1000", false).await.unwrap();
    runtime.kill_container("s1", "c1", 9, true).await.unwrap();
    assert_eq!(exit_of(&mut events, "c1").await.code, 137);
    let mut ending = running.ending;
    assert_eq!(ending.wait().await.unwrap(), 137, "it ends with its container");
    runtime.remove_sandbox("s1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn attached_streams_are_the_containers_own() {
    let Some(node) = Node::new("attach") else { return };
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s1")).await.unwrap();
    let script = "while read line; do echo got $line; done; echo end >&2; exit 5";
    let spec = ContainerSpec { stdin: true, stdin_once: true, ..node.shell("c1", script) };
    runtime.create_container("s1", spec).await.unwrap();
    runtime.start_container("s1", "c1").await.unwrap();
    let mut streams = runtime.attach("s1", "c1", ALL).await.unwrap();
    let mut other = runtime.attach("s1", "c1", Wanted { stdout: true, ..Wanted::default() }).await.unwrap();
    let mut stdin = streams.stdin.take().unwrap();
    stdin.write_all(b"one\ntwo\n").await.unwrap();
    drop(stdin);
    streams.ending.stdin_closed().await.unwrap();
    let (out, err) = tokio::join!(everything(streams.stdout), everything(streams.stderr));
    assert_eq!((out.as_str(), err.as_str()), ("got one\ngot two\n", "end\n"));
    assert_eq!(everything(other.stdout.take()).await, "got one\ngot two\n");
    assert_eq!(streams.ending.wait().await.unwrap(), 5);
    assert_eq!(exit_of(&mut events, "c1").await.code, 5);
    assert_eq!(node.output("c1"), ["stdout F got one", "stdout F got two", "stderr F end"], "the log is whole as well");
    assert!(runtime.attach("s1", "c1", ALL).await.unwrap_err().to_string().contains("has ended"));

    // one that does not read holds up nobody
    runtime
        .create_container(
            "s1",
            node.shell("c2", "i=0; while [ $i -lt 40000 ]; do echo line $i of a long text; i=$((i+1)); done"),
        )
        .await
        .unwrap();
    let slow = runtime.attach("s1", "c2", ALL).await.unwrap();
    runtime.start_container("s1", "c2").await.unwrap();
    assert_eq!(exit_of(&mut events, "c2").await.code, 0);
    assert_eq!(node.output("c2").len(), 40000);
    drop(slow);

    let spec = ContainerSpec { tty: true, stdin: true, ..node.shell("c3", "read x; stty size; echo typed $x") };
    runtime.create_container("s1", spec).await.unwrap();
    runtime.start_container("s1", "c3").await.unwrap();
    let mut streams = runtime.attach("s1", "c3", Wanted { stdin: true, stdout: true, stderr: false }).await.unwrap();
    streams.terminal.as_ref().unwrap().resize(70, 20).unwrap();
    streams.stdin.as_mut().unwrap().write_all(b"this\n").await.unwrap();
    let out = everything(streams.stdout).await;
    assert!(out.contains("20 70") && out.contains("typed this"), "{out}");
    runtime.remove_sandbox("s1").await.unwrap();
}
