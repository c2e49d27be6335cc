//! Static pods: the manifests of a folder (`folder.rs`) and those a web server gives (`url.rs`), completed as an API
//! server would (Kubernetes "Create static Pods").

mod folder;
mod url;

use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Toleration};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{PodExt, annotation, names, references};
use crate::cluster::{MIRROR, SOURCE};
use crate::config::mistake;
use crate::json;
use crate::volume::ObjectKind;

pub use url::Remote;

/// How often each source is looked at where nothing else is said (the kubelet's `fileCheckFrequency` and
/// `httpCheckFrequency`).
pub const CHECK: Duration = Duration::from_secs(20);

/// The kinds of sources.
pub const KINDS: [&str; 2] = ["file", "http"];

/// Where static pods come from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// A folder (`staticPodPath`).
    pub folder: Option<PathBuf>,
    /// How often that is looked at should no change be told.
    pub folder_check: Duration,
    /// A web server (`staticPodURL`).
    pub remote: Option<Remote>,
}

/// What a source holds now: every pod of it.
#[derive(Debug)]
pub struct StaticUpdate {
    /// One of [`KINDS`].
    pub source: &'static str,
    /// Its pods.
    pub pods: Vec<Arc<Pod>>,
}

/// Where a manifest is.
#[derive(Debug, Clone, Copy)]
enum Origin<'a> {
    File(&'a Path),
    Url(&'a str),
}

impl Origin<'_> {
    fn kind(self) -> &'static str {
        match self {
            Self::File(_) => KINDS[0],
            Self::Url(_) => KINDS[1],
        }
    }
}

impl Display for Origin<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(to),
            Self::Url(url) => url.fmt(to),
        }
    }
}

/// The source a static pod came from, as [`KINDS`] has it.
pub fn source_of(pod: &Pod) -> &str {
    annotation(pod, SOURCE).unwrap_or_default()
}

/// Reads all sources, and again when they change. One that is not there holds nothing.
pub fn watch(sources: Sources, node: &str) -> mpsc::Receiver<StaticUpdate> {
    let (tx, rx) = mpsc::channel(4);
    let Sources { folder, folder_check, remote } = sources;
    let [file, http] = KINDS;
    let (name, to) = (node.to_owned(), tx.clone());
    tokio::spawn(async move {
        match folder {
            Some(dir) => folder::keep(&dir, folder_check, &name, &to).await,
            None => drop(to.send(StaticUpdate { source: file, pods: Vec::new() }).await),
        }
    });
    let name = node.to_owned();
    tokio::spawn(async move {
        match remote {
            Some(remote) => remote.keep(&name, &tx).await,
            None => drop(tx.send(StaticUpdate { source: http, pods: Vec::new() }).await),
        }
        // what was read stays
        tx.closed().await;
    });
    rx
}

/// The pods of one manifest, YAML (of one or more documents) or JSON, pods or lists of them.
fn parse(text: &str, origin: Origin<'_>, node: &str) -> Result<Vec<Arc<Pod>>, String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|e| mistake::explain(&e))?;
    let mut pods = Vec::new();
    for document in documents.into_iter().filter(|d| !d.is_null()).flat_map(items) {
        if document["kind"] != "Pod" {
            return Err(format!("kind {} is not Pod", document["kind"]));
        }
        let hash = hash(&document, origin, node);
        let mut pod = json::convert::<Pod>(&document).map_err(|e| mistake::explain_value(&e))?;
        complete(&mut pod, hash, origin, node)?;
        if let Some(kind) = refers_to(&pod) {
            return Err(format!("static pods may not reference {kind}: they run without an API server"));
        }
        pods.push(Arc::new(pod));
    }
    Ok(pods)
}

/// What a list lists; anything else is its own only item.
fn items(mut document: Value) -> Vec<Value> {
    let list = matches!(document["kind"].as_str(), Some("PodList" | "List"));
    let Some(items) = document["items"].as_array_mut().filter(|_| list) else { return vec![document] };
    let mut items = std::mem::take(items);
    for item in &mut items {
        // those of a PodList need not say it
        if item["kind"].is_null() && item.is_object() {
            item["kind"] = "Pod".into();
        }
    }
    items
}

fn hash(document: &Value, origin: Origin<'_>, node: &str) -> String {
    let digest = Sha256::digest(format!("{document}{origin}{node}"));
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

fn complete(pod: &mut Pod, hash: String, origin: Origin<'_>, node: &str) -> Result<(), String> {
    let name = pod.metadata.name.clone().filter(|n| !n.is_empty()).ok_or("metadata.name is missing")?;
    names::check(pod)?;
    pod.metadata.name = Some(format!("{name}-{node}"));
    pod.metadata.namespace.get_or_insert_with(|| "default".to_owned());
    pod.metadata.uid = Some(hash.clone());
    // one that was copied out of a cluster
    pod.metadata.resource_version = None;
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.remove(MIRROR);
    annotations.insert("kubernetes.io/config.hash".to_owned(), hash);
    annotations.insert(SOURCE.to_owned(), origin.kind().to_owned());
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
    // as the kubelet has it: those of a file only
    if matches!(origin, Origin::File(_)) {
        let everything = Toleration {
            operator: Some("Exists".to_owned()),
            effect: Some("NoExecute".to_owned()),
            ..Toleration::default()
        };
        spec.tolerations.get_or_insert_default().push(everything);
    }
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
        let pods = parse(text, Origin::File(Path::new("/m/web.yaml")), "pi").unwrap();
        assert_eq!(pods[0].name(), "web-pi");
        assert!(pods[0].is_static());
        assert_eq!(pods[0].app_containers()[0].image_pull_policy.as_deref(), Some("Always"));
        for wrong in [
            "env: [{name: A, value: hunter2, value: x}]",
            "env: [{name: A, value: [hunter2]}]",
            "stdin: hunter2",
            "[hunter2",
        ] {
            let text = text.replace("image: x}]", &format!("image: x, {wrong}}}]"));
            let error = parse(&text, Origin::File(Path::new("/m/web.yaml")), "pi").unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let again = parse(text, Origin::File(Path::new("/m/web.yaml")), "pi").unwrap();
        assert_eq!(pods[0].uid(), again[0].uid());
        let refers = |spec: &str| {
            let text =
                format!("kind: Pod\nmetadata: {{name: a}}\nspec:\n  containers: [{{name: c, image: x}}]\n  {spec}\n");
            parse(&text, Origin::File(Path::new("x")), "pi").unwrap_err()
        };
        assert!(refers("serviceAccountName: me").contains("static pods may not reference serviceaccounts"));
        assert!(refers("volumes: [{name: v, configMap: {name: c}}]").contains("configmaps"));
        assert!(refers("imagePullSecrets: [{name: s}]").contains("secrets"));
        assert!(refers("hostUsers: false\n  hostNetwork: true").contains("hostNetwork: Forbidden"));
        assert!(
            refers("volumes: [{name: v, persistentVolumeClaim: {claimName: c}}]").contains("persistentvolumeclaims")
        );
        let list = format!("kind: PodList\nitems:\n- {}", text.replace("kind: Pod\n", "").replace('\n', "\n  "));
        let listed = parse(&list, Origin::Url("http://m/web"), "pi").unwrap();
        assert_eq!((listed[0].name(), source_of(&listed[0])), ("web-pi", "http"));
        assert_ne!(listed[0].uid(), pods[0].uid());
        // one that was copied out of a cluster, or says that it was
        let copied = text.replace(
            "{name: web}",
            "{name: web, resourceVersion: '7', annotations: {kubernetes.io/config.source: api, kubernetes.io/config.mirror: x}}",
        );
        let copied = parse(&copied, Origin::File(Path::new("/m/web.yaml")), "pi").unwrap();
        assert!(copied[0].is_static() && !copied[0].is_mirror());
        assert!(listed[0].is_static() && listed[0].spec.as_ref().unwrap().tolerations.is_none());
        let text = text.replace("web", "../web");
        assert!(parse(&text, Origin::File(Path::new("x")), "pi").unwrap_err().contains("metadata.name"));
        assert!(parse("kind: Service", Origin::File(Path::new("x")), "pi").unwrap_err().contains("Service"));
        assert!(parse("kind: Pod\nspec: [", Origin::File(Path::new("x")), "pi").is_err());
    }
}
