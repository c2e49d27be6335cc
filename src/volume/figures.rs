//! What volumes are told of in figures: how long their set-up took, which there are, and how full those of claims are.
//!
//! How full one is its disk or server tells when somebody asks, on a thread of its own: one that does not answer is left out
//! after a moment, and not asked again before it has answered.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, Volume};

use super::persistent::claim_of;
use super::under_way::on_own_thread;
use super::{Volumes, kind_of, pod_volumes, used};
use crate::machine::usage::{FileSystem, file_system};
use crate::metrics;

/// How long figures of volumes are waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Volumes that are asked at once: each takes a thread, of which there are few.
const AT_ONCE: usize = 32;

/// How full the volume of a claim is.
#[derive(Debug, Clone)]
pub struct ClaimFigures {
    /// Uid of the pod that has it.
    pub pod_uid: String,
    /// Name of the volume in the pod.
    pub volume: String,
    /// Namespace of the claim.
    pub namespace: String,
    /// Name of the claim.
    pub claim: String,
    /// Its file system.
    pub of: FileSystem,
}

/// Uid of the pod, name of the volume.
type Key = (String, String);

/// Where the volumes are that are set up, and which are being asked for their figures.
#[derive(Debug, Default)]
pub(super) struct Placed {
    places: Mutex<BTreeMap<Key, PathBuf>>,
}

impl Placed {
    /// A volume is set up.
    fn put(&self, pod: &Pod, volume: &Volume, path: &Path) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.places.lock().unwrap_or_else(PoisonError::into_inner).insert((uid, volume.name.clone()), path.to_owned());
    }

    /// The volumes of a pod go.
    pub fn forget(&self, uid: &str) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _), _| of != uid);
    }

    fn of(&self, pod: &Pod, volume: &str) -> Option<PathBuf> {
        let key = (pod.metadata.uid.clone().unwrap_or_default(), volume.to_owned());
        self.places.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }
}

/// The kubelet's name of the plugin for a volume, which is at `path` once it is set up: of a claim only that tells its kind.
fn plugin(volume: &Volume, path: Option<&Path>) -> &'static str {
    let of_claim = |path: &Path| {
        let kinds = path.parent()?.file_name()?.to_str()?;
        let known = ["kubernetes.io/local-volume", "kubernetes.io/host-path", "kubernetes.io/nfs"];
        known.into_iter().find(|name| kinds == name.replace('/', "~"))
    };
    match kind_of(volume) {
        "emptyDir" => "kubernetes.io/empty-dir",
        "hostPath" => "kubernetes.io/host-path",
        "configMap" => "kubernetes.io/configmap",
        "secret" => "kubernetes.io/secret",
        "downwardAPI" => "kubernetes.io/downward-api",
        "projected" => "kubernetes.io/projected",
        _ if volume.nfs.is_some() => "kubernetes.io/nfs",
        _ if volume.image.is_some() => "kubernetes.io/image",
        _ if volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some() => {
            path.and_then(of_claim).unwrap_or("kubernetes.io/persistent-claim")
        }
        _ => "unknown",
    }
}

impl Volumes {
    /// Notes what came of the set-up of a volume that began then.
    pub(super) fn note(&self, pod: &Pod, volume: &Volume, began: Instant, outcome: &Result<PathBuf, String>) {
        if let Ok(path) = outcome {
            self.placed.put(pod, volume, path);
        }
        let status = if outcome.is_ok() { "success" } else { "fail-unknown" };
        let plugin = plugin(volume, outcome.as_deref().ok());
        let words = ["false".into(), "volume_mount".into(), status.into(), plugin.into()];
        metrics::VOLUMES.observe(words, began.elapsed());
    }

    /// How many volumes pods want, and how many are set up, by plugin.
    pub fn count<'a>(&self, pods: impl Iterator<Item = &'a Pod>) -> BTreeMap<&'static str, [u64; 2]> {
        let mut counts = BTreeMap::<_, [u64; 2]>::new();
        for pod in pods {
            let used = used(pod);
            for volume in pod_volumes(pod).iter().filter(|v| used.contains(v.name.as_str())) {
                let path = self.placed.of(pod, &volume.name);
                let count = counts.entry(plugin(volume, path.as_deref())).or_default();
                count[0] += 1;
                count[1] += u64::from(path.is_some());
            }
        }
        counts
    }

    /// How full the volumes of the claims of these pods are.
    pub async fn claims(&self, pods: &[Arc<Pod>]) -> Vec<ClaimFigures> {
        let wanted = pods.iter().flat_map(|pod| pod_volumes(pod).iter().map(move |volume| (pod, volume)));
        let wanted = wanted.filter_map(|(pod, volume)| {
            let (claim, _) = claim_of(pod, volume)?;
            let path = self.placed.of(pod, &volume.name)?;
            Some(async move { Some((pod, volume, claim, self.ask(pod, volume, path).await?)) })
        });
        let (mut wanted, mut found) = (wanted.collect::<Vec<_>>(), Vec::new());
        while !wanted.is_empty() {
            let later = wanted.split_off(wanted.len().min(AT_ONCE));
            found.extend(futures::future::join_all(wanted).await.into_iter().flatten());
            wanted = later;
        }
        let figures = found.into_iter().map(|(pod, volume, claim, of)| ClaimFigures {
            pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
            volume: volume.name.clone(),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            claim,
            of,
        });
        figures.collect()
    }

    /// The file system of a volume; none of a block device.
    async fn ask(&self, pod: &Pod, volume: &Volume, path: PathBuf) -> Option<FileSystem> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let found = Arc::new(Mutex::new(None));
        let told = found.clone();
        let look = move || {
            let of = if path.is_dir() { file_system(&path) } else { None };
            *told.lock().unwrap_or_else(PoisonError::into_inner) = of;
            Ok(path)
        };
        // a sign that no volume's name has
        let name = format!("{}?", volume.name);
        // why it does not answer is nothing figures tell
        let _ = self.under_way.run(uid, &name, PATIENCE, move || on_own_thread(look)).await;
        found.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::volume::tests::Fake;

    #[tokio::test]
    async fn volumes_of_claims_are_counted_and_asked_once_they_are_set_up() {
        let volumes = Volumes::new("/nowhere".into(), Arc::new(Fake::default()), BTreeMap::new());
        let pod = |uid: &str| -> Arc<Pod> {
            let claim =
                |name: &str| json!({"name": name, "persistentVolumeClaim": {"claimName": format!("of-{name}")}});
            let mounts = json!([{"name": "a", "mountPath": "/a"}, {"name": "b", "mountPath": "/b"}]);
            let spec =
                json!({"containers": [{"name": "c", "volumeMounts": mounts}], "volumes": [claim("a"), claim("b")]});
            let pod = json!({"metadata": {"uid": uid, "namespace": "n"}, "spec": spec});
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let pods = [pod("1"), pod("2")];
        let began = Instant::now();
        let [a, b] = [0, 1].map(|at| pod_volumes(&pods[0])[at].clone());
        volumes.note(&pods[0], &a, began, &Ok(std::env::temp_dir()));
        // a block device has no file system
        volumes.note(&pods[0], &b, began, &Ok("/dev/null".into()));
        volumes.note(&pods[1], &a, began, &Err("not bound".to_owned()));
        let count = || volumes.count(pods.iter().map(|p| &**p)).into_iter().collect::<Vec<_>>();
        assert_eq!(count(), [("kubernetes.io/persistent-claim", [4, 2])]);
        let told = volumes.claims(&pods).await;
        let names: Vec<_> = told.iter().map(|c| (c.pod_uid.as_str(), c.namespace.as_str(), c.claim.as_str())).collect();
        assert_eq!(names, [("1", "n", "of-a")]);
        assert!(told[0].of.capacity > 0);
        volumes.placed.forget("1");
        assert_eq!(count(), [("kubernetes.io/persistent-claim", [4, 0])]);
        assert!(volumes.claims(&pods).await.is_empty());
    }

    #[test]
    fn plugins_have_the_kubelets_names() {
        let of = |volume: serde_json::Value, path: Option<&str>| {
            plugin(&serde_json::from_value(volume).unwrap(), path.map(Path::new))
        };
        let claim = json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}});
        assert_eq!(of(claim.clone(), None), "kubernetes.io/persistent-claim");
        assert_eq!(of(claim, Some("/p/u/volumes/kubernetes.io~nfs/pv")), "kubernetes.io/nfs");
        assert_eq!(of(json!({"name": "v", "configMap": {"name": "m"}}), None), "kubernetes.io/configmap");
        assert_eq!(of(json!({"name": "v", "csi": {"driver": "d"}}), None), "unknown");
    }
}
