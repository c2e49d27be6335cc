//! The last accepted spec of each pod on disk (`pods/<uid>/pod.json`), so that pods come back without an API server.

use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use tracing::warn;

use crate::durable::write_whole;

fn path(pods_dir: &Path, uid: &str) -> PathBuf {
    pods_dir.join(uid).join("pod.json")
}

/// Writes the pod if its spec or metadata differ from what is there (temporary name, fsync, rename).
pub fn save(pods_dir: &Path, uid: &str, pod: &Pod) -> std::io::Result<()> {
    let text = serde_json::to_vec(pod).map_err(std::io::Error::other)?;
    fs::create_dir_all(pods_dir.join(uid))?;
    write_whole(&path(pods_dir, uid), &text).map(drop)
}

/// True when the folder of a pod holds its checkpoint.
pub fn exists(pod_dir: &Path) -> bool {
    pod_dir.join("pod.json").exists()
}

/// Every pod that was accepted and not yet torn down. A file that does not parse is said and passed over.
pub fn load_all(pods_dir: &Path) -> Vec<Pod> {
    let Ok(entries) = fs::read_dir(pods_dir) else { return Vec::new() };
    let mut pods = Vec::new();
    for entry in entries.flatten() {
        let file = entry.path().join("pod.json");
        let Ok(text) = fs::read(&file) else { continue };
        match serde_json::from_slice(&text) {
            Ok(pod) => pods.push(pod),
            Err(error) => warn!(file = %file.display(), %error, "checkpoint unreadable: passed over"),
        }
    }
    pods
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_pods_are_loaded_and_broken_ones_passed_over() {
        let dir = std::env::temp_dir().join(format!("pikelet-checkpoint-{}", std::process::id()));
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"uid": "a", "name": "x"}})).unwrap();
        save(&dir, "a", &pod).unwrap();
        fs::create_dir_all(dir.join("b")).unwrap();
        fs::write(dir.join("b/pod.json"), "{").unwrap();
        assert_eq!(load_all(&dir), vec![pod]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
