//! CVE-2021-41091 and its like: another user of the machine walks the trees a node keeps.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use pikelet::runtime::Propagation;

use super::scene::{SECRET, Scene, mount};

/// As nobody: what can be read or started below `dir`.
fn open_to_others(dir: &Path) -> Vec<String> {
    let find =
        "find \"$1\" -type f \\( -readable -o -executable \\) 2>/dev/null; find \"$1\" -type s -writable 2>/dev/null";
    let out = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c", find, "sh"])
        .arg(dir)
        .output()
        .unwrap();
    String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn other_users_of_the_machine_read_and_start_nothing() {
    let Some(scene) = Scene::new("trees") else { return };
    fs::set_permissions(&scene.node.dir, fs::Permissions::from_mode(0o755)).unwrap();
    scene.sandbox("s1", |_| {}).await;
    fs::create_dir(scene.node.dir.join("volume")).unwrap();
    let mut spec = scene.node.shell("c1", "echo $TOKEN; exec sleep 1000");
    spec.env.push(("TOKEN".into(), SECRET.into()));
    spec.mounts = vec![mount(scene.node.dir.join("volume"), "/v", Propagation::None)];
    scene.start("s1", spec).await.unwrap();
    scene.says("c1", SECRET).await;
    scene.exec("s1", "c1", &["true"]).await.unwrap();
    let _ = scene.exec("s1", "c1", &["nothing-of-that-name"]).await;
    for dir in [scene.node.config.state_dir.clone(), scene.node.dir.join("logs")] {
        assert!(dir.is_dir());
        let open = open_to_others(&dir);
        assert!(open.is_empty(), "{}: {open:?}", dir.display());
    }
    scene.remove("s1").await;
}
