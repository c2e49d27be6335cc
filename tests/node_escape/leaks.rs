//! What programs and containers, that work or not, leave behind in their shim: nothing.

use std::fs;
use std::path::Path;

use super::scene::{Scene, tries};

fn files_below(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| 1 + if e.file_type().unwrap().is_dir() { files_below(&e.path()) } else { 0 }).sum()
}

/// Descriptors of the shim, files of its sandbox, bytes of its log.
fn held(scene: &Scene) -> [usize; 3] {
    let dir = scene.node.config.state_dir.join("sandboxes/s1");
    let shim = scene.runtime.shim("s1").unwrap();
    let open = fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count();
    let log = fs::metadata(dir.join("shim.log")).map_or(0, |m| m.len());
    [open, files_below(&dir), usize::try_from(log).unwrap()]
}

#[tokio::test]
async fn nothing_is_left_of_what_has_ended() {
    let Some(scene) = Scene::new("leaks") else { return };
    scene.sandbox("s1", |_| {}).await;
    scene.start("s1", scene.node.container("c1", &["sleep", "1000"])).await.unwrap();
    let work = async |times: usize| {
        for _ in 0..times {
            assert_eq!(scene.exec("s1", "c1", &["true"]).await, Ok((0, String::new())));
            assert!(scene.exec("s1", "c1", &["no-such-program"]).await.is_err());
        }
        for _ in 0..times / 4 {
            assert!(scene.start("s1", scene.node.container("c2", &["no-such-program"])).await.is_err());
        }
    };
    work(4).await;
    let before = held(&scene);
    work(tries(40)).await;
    let after = held(&scene);
    let [descriptors, files, log] = [0, 1, 2].map(|i| after[i].saturating_sub(before[i]));
    assert!(descriptors <= 2 && files <= 2 && log <= 64 << 10, "descriptors, files, bytes: {before:?} -> {after:?}");
    scene.remove("s1").await;
}
