//! Containers confined by `AppArmor`. Needs root, a kernel that enforces it, securityfs, `apparmor_parser` and
//! `/bin/busybox`: `tests/guest.sh` has them all. Says so and passes without doing anything where one is missing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "harness/node.rs"]
#[allow(dead_code)]
mod node;

use std::io::Write;
use std::process::{Command, Stdio};

use node::{Node, run};
use pikelet::machine::apparmor::{self, AppArmor, DEFAULT_PROFILE};
use pikelet::runtime::{ContainerSpec, Runtime, Wanted};

const STRICT: &str = "profile pikelet-test-strict flags=(attach_disconnected) { file, deny /tmp/secret w, }";

fn parse(action: &str) {
    let mut parser =
        Command::new("apparmor_parser").args([action, "--skip-cache"]).stdin(Stdio::piped()).spawn().unwrap();
    parser.stdin.take().unwrap().write_all(STRICT.as_bytes()).unwrap();
    assert!(parser.wait().unwrap().success());
}

#[tokio::test]
async fn profiles_deny_what_they_say() {
    let ready = match apparmor::prepare() {
        AppArmor::Ready => true,
        other => {
            eprintln!("skipped: {other:?}");
            false
        }
    };
    let Some(node) = Node::new("apparmor").filter(|_| ready) else { return };
    parse("--replace");
    let (runtime, mut events) = Runtime::open(node.config.clone()).unwrap();
    runtime.create_sandbox(node.sandbox("s1")).await.unwrap();
    let script = "cat /proc/self/attr/current; echo x >/tmp/secret; echo $?; echo x >/tmp/other; echo $?; \
                  mount -t tmpfs t /tmp; echo $?";
    // it may mount, but for the profile
    let confined = |id: &str, profile: Option<&str>| ContainerSpec {
        apparmor: profile.map(str::to_owned),
        capabilities_add: vec!["SYS_ADMIN".into()],
        ..node.shell(id, script)
    };
    let stdout = |id: &str| -> Vec<String> {
        let lines = node.output(id);
        lines.iter().filter_map(|l| l.strip_prefix("stdout F ")).map(str::to_owned).collect()
    };
    for (id, profile, expected) in [
        ("c1", None, ["unconfined", "0", "0", "0"]),
        ("c2", Some(DEFAULT_PROFILE), ["pikelet-default (enforce)", "0", "0", "1"]),
        ("c3", Some("pikelet-test-strict"), ["pikelet-test-strict (enforce)", "1", "0", "1"]),
    ] {
        assert_eq!(run(&runtime, &mut events, "s1", confined(id, profile)).await.code, 0, "{:?}", node.output(id));
        let found = stdout(id);
        assert_eq!(found[..3], expected[..3], "{id}: {found:?}");
        assert_eq!(found[3] == "0", expected[3] == "0", "{id}: {found:?}");
    }

    // nor may another process in it
    let long =
        ContainerSpec { apparmor: Some("pikelet-test-strict".into()), ..node.container("c4", &["sleep", "1000"]) };
    runtime.create_container("s1", long).await.unwrap();
    runtime.start_container("s1", "c4").await.unwrap();
    let args = ["sh", "-c", "echo x >/tmp/secret"].map(str::to_owned).to_vec();
    let mut streams = runtime.exec("s1", "c4", args, false, Wanted::default()).await.unwrap();
    assert_ne!(streams.ending.wait().await.unwrap(), 0);

    // a privileged one is not confined
    let strong = ContainerSpec { privileged: true, ..confined("c5", Some("pikelet-test-strict")) };
    assert_eq!(run(&runtime, &mut events, "s1", strong).await.code, 0);
    assert_eq!(stdout("c5")[..2], ["unconfined", "0"]);

    let unknown = runtime.create_container("s1", confined("c6", Some("pikelet-test-none"))).await;
    let text = unknown.unwrap_err().to_string();
    assert!(text.contains("pikelet-test-none") || text.contains("apparmor"), "{text}");
    runtime.remove_sandbox("s1").await.unwrap();
    parse("--remove");
}
