//! Static pods: the manifests of a folder, watched with inotify (Kubernetes "Create static Pods").

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use k8s_openapi::api::core::v1::{Pod, Toleration};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{PodExt, references};
use crate::volume::ObjectKind;

/// What the folder holds now.
#[derive(Debug)]
pub enum StaticUpdate {
    /// Every pod of it.
    Set(Vec<Arc<Pod>>),
}

/// Editors write in steps: a folder is read this long after a change.
const SETTLE: Duration = Duration::from_millis(50);

/// How often the folder is looked at should no change be told (the kubelet's `fileCheckFrequency`).
const CHECK: Duration = Duration::from_secs(20);

/// Names, sizes and times of what a folder holds.
fn print(dir: &Path) -> Vec<(PathBuf, u64, Option<SystemTime>)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| {
        let meta = fs::metadata(entry.path()).ok();
        (entry.path(), meta.as_ref().map_or(0, fs::Metadata::len), meta.and_then(|m| m.modified().ok()))
    };
    let mut found: Vec<_> = entries.map(of).collect();
    found.sort();
    found
}

/// Reads the folder, and again after every change in it.
pub fn watch_manifests(dir: PathBuf, node: String) -> mpsc::Receiver<StaticUpdate> {
    let (tx, rx) = mpsc::channel(4);
    tokio::spawn(async move {
        if let Err(error) = watch(&dir, &node, &tx).await {
            warn!(dir = %dir.display(), %error, "manifest folder not watched: changes need a restart of the agent");
        }
        // the pods read so far stay
        tx.closed().await;
    });
    rx
}

async fn watch(dir: &Path, node: &str, tx: &mpsc::Sender<StaticUpdate>) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let inotify = Inotify::init()?;
    let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
    inotify.watches().add(dir, mask)?;
    let mut changes = inotify.into_event_stream([0; 4096])?;
    let mut known: Vec<(PathBuf, Vec<Arc<Pod>>)> = Vec::new();
    loop {
        let look = print(dir);
        known = read_dir(dir, node, &known);
        let pods = known.iter().flat_map(|(_, pods)| pods.clone()).collect();
        if tx.send(StaticUpdate::Set(pods)).await.is_err() {
            return Ok(());
        }
        loop {
            match tokio::time::timeout(CHECK, changes.next()).await {
                Ok(None) => return Ok(()),
                Ok(Some(_)) => break,
                // some file systems (NFS) tell no changes, and a folder that was replaced tells none any more
                Err(_) if print(dir) != look => break,
                Err(_) => {}
            }
        }
        tokio::time::sleep(SETTLE).await;
    }
}

/// Every manifest of the folder; one with a mistake is said, and its last good version kept.
fn read_dir(dir: &Path, node: &str, known: &[(PathBuf, Vec<Arc<Pod>>)]) -> Vec<(PathBuf, Vec<Arc<Pod>>)> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.sort();
    files.retain(|f| f.is_file() && f.file_name().is_some_and(|n| !n.as_encoded_bytes().starts_with(b".")));
    let mut found = Vec::new();
    for file in files {
        match fs::read_to_string(&file).map_err(|e| e.to_string()).and_then(|text| parse(&text, &file, node)) {
            Ok(pods) => found.push((file, pods.into_iter().map(Arc::new).collect())),
            Err(error) => {
                warn!(file = %file.display(), error, "manifest not used");
                found.extend(known.iter().find(|(f, _)| *f == file).cloned());
            }
        }
    }
    info!(dir = %dir.display(), manifests = found.len(), "manifests read");
    found
}

/// The pods of one manifest, YAML (of one or more documents) or JSON, completed as an API server would.
pub fn parse(text: &str, file: &Path, node: &str) -> Result<Vec<Pod>, String> {
    let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(text).map_err(|e| e.to_string())?;
    let mut pods = Vec::new();
    for document in documents.into_iter().filter(|d| !d.is_null()) {
        if document["kind"] != "Pod" {
            return Err(format!("kind {} is not Pod", document["kind"]));
        }
        let hash = hash(&document, file, node);
        let mut pod = Pod::deserialize(document).map_err(|e| e.to_string())?;
        complete(&mut pod, hash, node)?;
        if let Some(kind) = refers_to(&pod) {
            return Err(format!("static pods may not reference {kind}: they run without an API server"));
        }
        pods.push(pod);
    }
    Ok(pods)
}

fn hash(document: &serde_json::Value, file: &Path, node: &str) -> String {
    let digest = Sha256::digest(format!("{document}{}{node}", file.display()));
    format!("{:032x}", u128::from_be_bytes(std::array::from_fn(|i| digest[i])))
}

/// A kind of object of the API that the pod cannot run without.
fn refers_to(pod: &Pod) -> Option<&'static str> {
    if let Some(key) = references::references(pod).first() {
        return Some(match key.kind {
            ObjectKind::ConfigMap => "configmaps",
            ObjectKind::Secret => "secrets",
        });
    }
    let spec = pod.pod_spec()?;
    let named = |name: &Option<String>| name.as_ref().is_some_and(|n| !n.is_empty());
    if named(&spec.service_account_name) || named(&spec.service_account) {
        return Some("serviceaccounts");
    }
    let volumes = || spec.volumes.iter().flatten();
    if volumes().any(|v| v.persistent_volume_claim.is_some() || v.ephemeral.is_some()) {
        return Some("persistentvolumeclaims");
    }
    let parts = volumes().flat_map(|v| v.projected.iter().flat_map(|p| p.sources.iter().flatten()));
    for part in parts {
        if part.service_account_token.is_some() {
            return Some("serviceaccounts");
        }
        if part.cluster_trust_bundle.is_some() {
            return Some("clustertrustbundles");
        }
    }
    spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty()).then_some("resourceclaims")
}

fn complete(pod: &mut Pod, hash: String, node: &str) -> Result<(), String> {
    let name = pod.metadata.name.clone().filter(|n| !n.is_empty()).ok_or("metadata.name is missing")?;
    pod.metadata.name = Some(format!("{name}-{node}"));
    pod.metadata.namespace.get_or_insert_with(|| "default".to_owned());
    pod.metadata.uid = Some(hash.clone());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert("kubernetes.io/config.hash".to_owned(), hash);
    annotations.insert("kubernetes.io/config.source".to_owned(), "file".to_owned());
    annotations.insert("kubernetes.io/config.seen".to_owned(), jiff::Timestamp::now().to_string());
    let spec = pod.spec.as_mut().ok_or("spec is missing")?;
    if spec.containers.is_empty() {
        return Err("spec.containers is empty".to_owned());
    }
    let shares = [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)];
    if let (Some(false), Some((name, _))) = (spec.host_users, shares.iter().find(|(_, share)| *share == Some(true))) {
        return Err(format!("spec.{name}: Forbidden: when `hostUsers` is false"));
    }
    spec.node_name = Some(node.to_owned());
    spec.restart_policy.get_or_insert_with(|| "Always".to_owned());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".to_owned());
    spec.termination_grace_period_seconds.get_or_insert(30);
    let everything = Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    };
    spec.tolerations.get_or_insert_default().push(everything);
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let image = container.image.clone().unwrap_or_default();
        let latest = image.ends_with(":latest") || !image.rsplit('/').next().unwrap_or_default().contains([':', '@']);
        let policy = if latest { "Always" } else { "IfNotPresent" };
        container.image_pull_policy.get_or_insert_with(|| policy.to_owned());
        container.termination_message_path.get_or_insert_with(|| "/dev/termination-log".to_owned());
    }
    debug_assert!(pod.is_static());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_completed_and_mistakes_named() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers: [{name: c, image: x}]\n";
        let pods = parse(text, Path::new("/m/web.yaml"), "pi").unwrap();
        assert_eq!(pods[0].name(), "web-pi");
        assert!(pods[0].is_static());
        assert_eq!(pods[0].app_containers()[0].image_pull_policy.as_deref(), Some("Always"));
        let again = parse(text, Path::new("/m/web.yaml"), "pi").unwrap();
        assert_eq!(pods[0].uid(), again[0].uid());
        let refers = |spec: &str| {
            let text =
                format!("kind: Pod\nmetadata: {{name: a}}\nspec:\n  containers: [{{name: c, image: x}}]\n  {spec}\n");
            parse(&text, Path::new("x"), "pi").unwrap_err()
        };
        assert!(refers("serviceAccountName: me").contains("static pods may not reference serviceaccounts"));
        assert!(refers("volumes: [{name: v, configMap: {name: c}}]").contains("configmaps"));
        assert!(refers("imagePullSecrets: [{name: s}]").contains("secrets"));
        assert!(refers("hostUsers: false\n  hostNetwork: true").contains("hostNetwork: Forbidden"));
        assert!(
            refers("volumes: [{name: v, persistentVolumeClaim: {claimName: c}}]").contains("persistentvolumeclaims")
        );
        assert!(parse("kind: Service", Path::new("x"), "pi").unwrap_err().contains("Service"));
        assert!(parse("kind: Pod\nspec: [", Path::new("x"), "pi").is_err());
    }
}
