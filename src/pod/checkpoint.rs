//! The last accepted spec of each pod on disk (`pods/<uid>/pod.json`), so that pods come back without an API server.

use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use tracing::warn;

use crate::durable::{replace, write_whole};
use crate::json;

fn path(pods_dir: &Path, uid: &str) -> PathBuf {
    pods_dir.join(uid).join("pod.json")
}

/// Writes the pod if it differs from what is there in what a start needs (temporary name, fsync, rename).
pub fn save(pods_dir: &Path, uid: &str, pod: &Pod) -> std::io::Result<()> {
    let path = path(pods_dir, uid);
    let there = fs::read(&path).ok().and_then(|text| json::from_slice::<Pod>(&text).ok());
    if there.is_some_and(|there| same(&there, pod)) {
        return Ok(());
    }
    let text = serde_json::to_vec(pod).map_err(std::io::Error::other)?;
    fs::create_dir_all(pods_dir.join(uid))?;
    write_whole(&path, &text).map(drop)
}

/// Whether a start would make the same of both. A status changes with every probe, which is nothing to wear out a card
/// for: of it phase, start and restarts count.
fn same(one: &Pod, other: &Pod) -> bool {
    let metadata = |pod: &Pod| ObjectMeta { resource_version: None, managed_fields: None, ..pod.metadata.clone() };
    one.spec == other.spec && progress(one) == progress(other) && metadata(one) == metadata(other)
}

/// How far a pod has come.
fn progress(pod: &Pod) -> impl PartialEq + '_ {
    let status = pod.status.as_ref();
    let runs = status.map(|s| {
        let all = [&s.init_container_statuses, &s.container_statuses, &s.ephemeral_container_statuses];
        let run = |c: &ContainerStatus| (c.name.clone(), c.restart_count, c.container_id.is_some());
        all.map(|list| list.iter().flatten().map(run).collect::<Vec<_>>())
    });
    (status.map(|s| (&s.phase, &s.start_time, &s.reason)), runs)
}

/// Notes in the checkpoint, if there is one, that the pod is being deleted: what has ended for that is not to be started
/// again by an agent that starts meanwhile. A power cut ends all of it anyway, so that need not outlive one.
pub fn note_deletion(pods_dir: &Path, uid: &str, pod: &Pod) -> std::io::Result<()> {
    let path = path(pods_dir, uid);
    if !path.exists() {
        return Ok(());
    }
    let mut pod = pod.clone();
    pod.metadata.deletion_timestamp.get_or_insert_with(|| Time(jiff::Timestamp::now()));
    replace(&path, &serde_json::to_vec(&pod).map_err(std::io::Error::other)?, false)
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
        match json::from_slice(&text) {
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
        assert_eq!(load_all(&dir), vec![pod.clone()]);
        note_deletion(&dir, "a", &pod).unwrap();
        note_deletion(&dir, "never-saved", &pod).unwrap();
        let found = load_all(&dir);
        assert!(found.len() == 1 && found[0].metadata.deletion_timestamp.is_some());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_a_start_does_not_need_is_not_written() {
        let dir = std::env::temp_dir().join(format!("pikelet-checkpoint-same-{}", std::process::id()));
        let pod = |version: u32, ready: &str, restarts: u32| -> Pod {
            serde_json::from_value(serde_json::json!({
                "metadata": {"uid": "a", "name": "x", "resourceVersion": version.to_string()},
                "spec": {"containers": [{"name": "c"}]},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}],
                    "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": restarts}]},
            }))
            .unwrap()
        };
        let first = pod(1, "False", 0);
        save(&dir, "a", &first).unwrap();
        save(&dir, "a", &pod(2, "True", 0)).unwrap();
        assert_eq!(load_all(&dir), vec![first]);
        for newer in [pod(3, "True", 1), Pod { spec: None, ..pod(3, "True", 1) }, Pod { status: None, ..pod(3, "", 1) }]
        {
            save(&dir, "a", &newer).unwrap();
            assert_eq!(load_all(&dir), vec![newer]);
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
