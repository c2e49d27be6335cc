//! What a container says of itself is no reason to use the node's memory.

use std::fs;

use super::scene::{IDS, Scene};

fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test]
async fn a_huge_environment_is_not_read() {
    let Some(scene) = Scene::new("environ") else { return };
    scene.give_to_pod();
    scene.sandbox("s1", |s| s.user_namespace = Some(IDS)).await;
    let mut spec = scene.node.container("c1", &["/enemy", "environ", "1024"]);
    spec.cwd = "/".into();
    scene.start("s1", spec).await.unwrap();
    let first = loop {
        if let Some(line) = scene.lines("c1").first() {
            break line.clone();
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    if first != "ready" {
        eprintln!("skipped: {first}");
        return;
    }
    let shim = scene.runtime.shim("s1").unwrap();
    let before = resident(shim);
    for _ in 0..3 {
        assert_eq!(scene.exec("s1", "c1", &["true"]).await, Ok((0, String::new())));
    }
    let after = resident(shim);
    assert!(after < before + 32, "the shim grew from {before} to {after} MiB");
    scene.remove("s1").await;
}

/// Asks the kernel for keys (keyctl(2), add_key(2)) of the calling thread: a session keyring of its own, and a key in it.
#[allow(unsafe_code)]
fn keep_key(text: &str) -> bool {
    use nix::libc::{SYS_add_key, SYS_keyctl, c_char, syscall};
    let (join, session) = (1, -3);
    // SAFETY: no name is read, and the texts live through the calls.
    unsafe {
        syscall(SYS_keyctl, join, std::ptr::null::<c_char>()) >= 0
            && syscall(SYS_add_key, c"user".as_ptr(), c"kept".as_ptr(), text.as_ptr(), text.len(), session) >= 0
    }
}

#[tokio::test]
async fn keys_stay_with_those_who_keep_them() {
    let Some(mut scene) = Scene::new("keys") else { return };
    if !keep_key("the agent's") {
        eprintln!("skipped: no keys here");
        return;
    }
    scene.sandbox("s1", |_| {}).await;
    let spec = |scene: &Scene, id: &str, args: &[&str]| {
        let mut spec = scene.node.container(id, args);
        spec.cwd = "/".into();
        spec
    };
    let (keeper, looks): (&[&str], &[&str]) = (&["/enemy", "keep", "another's"], &["/enemy", "keys"]);
    for (id, args) in [("before", looks), ("keeper", keeper), ("after", looks)] {
        let spec = spec(&scene, id, args);
        scene.run("s1", spec).await.unwrap();
        let lines = scene.lines(id);
        assert!(lines.last().is_some_and(|l| l == "done") && lines.len() < 3, "{id}: {lines:?}");
        assert!(!lines[0].starts_with("found"), "{id}: {lines:?}");
    }
    let exec = spec(&scene, "exec", &["/enemy", "pause"]);
    scene.start("s1", exec).await.unwrap();
    let (_, said) = scene.exec("s1", "exec", &["/enemy", "keys"]).await.unwrap();
    assert!(said.starts_with("none"), "{said}");
    scene.remove("s1").await;
}
