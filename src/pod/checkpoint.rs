//! The last accepted spec of each pod on disk (`pods/<uid>/pod.json`), so that pods come back without an API server.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use tracing::warn;

use super::restart::restarts;
use crate::files::{self, Durability, write_changed};
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
    files::dir_kept(&pods_dir.join(uid), 0o750)?;
    write_changed(&path, &text, 0o600).map(drop)
}

/// Whether a start would make the same of both. A status changes with every probe, which is nothing to wear out a card
/// for: of it phase, start and restarts count, and ends that are for good.
fn same(one: &Pod, other: &Pod) -> bool {
    let metadata = |pod: &Pod| ObjectMeta { resource_version: None, managed_fields: None, ..pod.metadata.clone() };
    one.spec == other.spec && progress(one) == progress(other) && metadata(one) == metadata(other)
}

/// How far a pod has come.
fn progress(pod: &Pod) -> impl PartialEq + '_ {
    let status = pod.status.as_ref();
    let runs = status.map(|s| {
        let all = [&s.init_container_statuses, &s.container_statuses, &s.ephemeral_container_statuses];
        let run = |c: &ContainerStatus| {
            let end = c.state.as_ref().and_then(|s| s.terminated.as_ref()).map(|t| t.exit_code);
            let for_good = end.filter(|code| !restarts(pod, &c.name, *code));
            (c.name.clone(), c.restart_count, c.container_id.is_some(), for_good)
        };
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
    let text = serde_json::to_vec(&pod).map_err(std::io::Error::other)?;
    files::write(&path, &text, 0o600, Durability::Volatile)
}

/// Bytes of a checkpoint that is worth another write when most of it is not needed any more.
const LARGE: u64 = 64 << 10;

/// Whether the checkpoint, if there is one, is such.
pub fn is_large(pods_dir: &Path, uid: &str) -> bool {
    fs::metadata(path(pods_dir, uid)).is_ok_and(|file| file.len() > LARGE)
}

/// True when the folder of a pod holds its checkpoint.
pub fn exists(pod_dir: &Path) -> bool {
    pod_dir.join("pod.json").exists()
}

/// What [`load_all`] has found.
#[derive(Debug, Default)]
pub struct Checkpoints {
    /// Every pod that was accepted and not yet torn down.
    pub pods: Vec<Pod>,
    /// Uids of those whose file cannot be read, or not be understood, such as one of another version.
    pub unreadable: BTreeSet<String>,
}

/// Reads all checkpoints.
pub fn load_all(pods_dir: &Path) -> Checkpoints {
    let mut found = Checkpoints::default();
    let Ok(entries) = fs::read_dir(pods_dir) else { return found };
    for entry in entries.flatten() {
        let file = entry.path().join("pod.json");
        let read = match fs::read(&file) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => continue,
            Err(error) => Err(error.to_string()),
            Ok(text) => json::from_slice(&text).map_err(|e| e.to_string()),
        };
        match read {
            Ok(pod) => found.pods.push(pod),
            Err(error) => {
                warn!(file = %file.display(), %error, "checkpoint unreadable: what runs of the pod goes on until its source tells of it");
                found.unreadable.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
    }
    found
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
        let found = load_all(&dir);
        assert_eq!((found.pods, found.unreadable), (vec![pod.clone()], BTreeSet::from(["b".to_owned()])));
        note_deletion(&dir, "a", &pod).unwrap();
        note_deletion(&dir, "never-saved", &pod).unwrap();
        let found = load_all(&dir).pods;
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
        assert_eq!(load_all(&dir).pods, vec![first.clone()]);
        let ended = |policy: &str| {
            let mut pod = pod(2, "False", 0);
            let status = &mut pod.status.as_mut().unwrap().container_statuses.as_mut().unwrap()[0];
            let end = serde_json::json!({"terminated": {"exitCode": 0}});
            status.state = Some(serde_json::from_value(end).unwrap());
            pod.spec.as_mut().unwrap().restart_policy = Some(policy.to_owned());
            pod
        };
        assert!(progress(&ended("Always")) == progress(&first), "it is started again");
        assert!(progress(&ended("OnFailure")) != progress(&first));
        for newer in [pod(3, "True", 1), Pod { spec: None, ..pod(3, "True", 1) }, Pod { status: None, ..pod(3, "", 1) }]
        {
            save(&dir, "a", &newer).unwrap();
            assert_eq!(load_all(&dir).pods, vec![newer]);
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
