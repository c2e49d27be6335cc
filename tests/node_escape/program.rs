//! CVE-2019-5736: a container that gets hold of the agent's own program must not be able to write to it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::scene::{Scene, tries};

fn checksum(file: &Path) -> String {
    let out = Command::new("sha256sum").arg(file).output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

/// The program's own loader, which a container brings: it starts `/enemy rewrite` with the agent's program still open.
const LOADER: &str = r#"
static long call(long n, long a, long b, long c) {
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return r;
}
void _start(void) {
    char *volatile args[3], *volatile none[1];
    args[0] = "/enemy", args[1] = "rewrite", args[2] = 0, none[0] = 0;
    long program = call(2, (long)"/proc/self/exe", 0, 0);
    call(33, program, 100, 0);
    call(59, (long)args[0], (long)args, (long)none);
    call(60, 9, 0, 0);
}
"#;

#[tokio::test]
async fn the_program_of_the_node_cannot_be_written_to() {
    let Some(mut scene) = Scene::new("program") else { return };
    let program = scene.node.config.shim_exe.clone();
    let before = checksum(&program);
    symlink("/proc/self/exe", scene.rootfs().join("bin/x")).unwrap();
    scene.sandbox("s1", |_| {}).await;
    let mut spec = scene.node.container("hunter", &["/enemy", "grab", "/stop"]);
    spec.capabilities_add = vec!["SYS_PTRACE".into()];
    spec.cwd = "/".into();
    scene.start("s1", spec).await.unwrap();
    scene.says("hunter", "ready").await;
    for _ in 0..tries(20) {
        let _ = scene.exec("s1", "hunter", &["/bin/x", "version"]).await;
        let _ = scene.exec("s1", "hunter", &["true"]).await;
    }
    fs::write(scene.rootfs().join("stop"), "").unwrap();
    scene.says("hunter", "done").await;
    let found: Vec<String> = scene.lines("hunter").into_iter().filter(|l| l.starts_with("found")).collect();
    assert!(found.is_empty(), "{found:?}");
    let _ = scene.run("s1", scene.node.container("c1", &["/bin/x", "version"])).await;
    assert_eq!(checksum(&program), before);
    scene.remove("s1").await;
}

#[tokio::test]
async fn nor_by_its_loader() {
    let Some(mut scene) = Scene::new("loader") else { return };
    let program = scene.node.config.shim_exe.clone();
    let loader = "/lib64/ld-linux-x86-64.so.2";
    let head = fs::read(&program).unwrap();
    if !head[..4096].windows(loader.len()).any(|w| w == loader.as_bytes()) {
        eprintln!("skipped: the program has no loader, or another");
        return;
    }
    let before = checksum(&program);
    symlink("/proc/self/exe", scene.rootfs().join("bin/x")).unwrap();
    fs::create_dir(scene.rootfs().join("lib64")).unwrap();
    let source = scene.node.dir.join("loader.c");
    fs::write(&source, LOADER).unwrap();
    let place = scene.rootfs().join(&loader[1..]);
    let mut gcc = Command::new("gcc");
    gcc.args(["-static-pie", "-nostdlib", "-fno-stack-protector", "-O1", "-o"]).arg(&place).arg(&source);
    assert!(gcc.status().unwrap().success());
    scene.sandbox("s1", |_| {}).await;
    let mut ways = vec![];
    if scene.run("s1", scene.node.container("c1", &["/bin/x"])).await.is_ok() {
        ways.push(scene.lines("c1").join("\n"));
    }
    scene.start("s1", scene.node.container("c2", &["sleep", "1000"])).await.unwrap();
    if let Ok((_, said)) = scene.exec("s1", "c2", &["/bin/x"]).await {
        ways.push(said);
    }
    eprintln!("the program by its loader: {ways:?}");
    assert_eq!(checksum(&program), before);
    for said in ways {
        // that it is busy is told before anything else, and only as long as it runs: the mount decides, and its mode shows
        assert!(said.contains("mode:") && !said.contains("ALLOWED") && !said.contains("WRITTEN"), "{said}");
    }
    scene.remove("s1").await;
}
