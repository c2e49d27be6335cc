//! What volumes are told of in figures: how long their set-up took, which there are, and how full those of claims are.
//!
//! How full one is its disk or server tells when somebody asks, on one of a few threads, once for all pods that have the
//! claim: one that does not answer is left out after a moment, and not asked again before it has answered.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, Volume};

use super::persistent::claim_of;
use super::under_way::Threads;
use super::{Volumes, kind_of, pod_volumes, used};
use crate::machine::usage::{FileSystem, file_system};
use crate::metrics;

/// How long figures of a claim are waited for, and those of all.
const PATIENCE: Duration = Duration::from_secs(2);
const OF_ALL: Duration = Duration::from_secs(4);
/// Claims that are asked at once, each on a thread.
const AT_ONCE: usize = 16;
/// The threads, which are not those that set volumes up.
static THREADS: Threads = Threads::new(AT_ONCE);

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
/// Namespace and name of a claim.
type Claim = (String, String);

/// Where the volumes are that are set up, and what was last told of claims.
#[derive(Debug, Default)]
pub(super) struct Placed {
    places: Mutex<BTreeMap<Key, PathBuf>>,
    told: Mutex<BTreeMap<Claim, FileSystem>>,
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
        let (mut places, mut holders) = (BTreeMap::new(), Vec::new());
        for (pod, volume) in pods.iter().flat_map(|pod| pod_volumes(pod).iter().map(move |volume| (pod, volume))) {
            let Some((claim, _)) = claim_of(pod, volume) else { continue };
            let Some(path) = self.placed.of(pod, &volume.name) else { continue };
            let claim = (pod.metadata.namespace.clone().unwrap_or_default(), claim);
            let key = (pod.metadata.uid.clone().unwrap_or_default(), volume.name.clone());
            holders.push((key.clone(), claim.clone()));
            places.entry(claim).or_insert((key, path));
        }
        self.placed.told.lock().unwrap_or_else(PoisonError::into_inner).retain(|claim, _| places.contains_key(claim));
        let (places, mut found) = (places.into_iter().collect::<Vec<_>>(), BTreeMap::new());
        let end = Instant::now() + OF_ALL;
        for some in places.chunks(AT_ONCE) {
            let patience = PATIENCE.min(end.saturating_duration_since(Instant::now()));
            if patience.is_zero() {
                break;
            }
            let asked = some.iter().map(|(claim, place)| self.ask(claim, place, patience));
            found.extend(futures::future::join_all(asked).await.into_iter().flatten());
        }
        let figures = holders.into_iter().filter_map(|((pod_uid, volume), claim)| {
            let of = *found.get(&claim)?;
            let (namespace, claim) = claim;
            Some(ClaimFigures { pod_uid, volume, namespace, claim, of })
        });
        figures.collect()
    }

    /// The file system of a claim, by the place it has in a pod; none of a block device.
    async fn ask(&self, claim: &Claim, place: &(Key, PathBuf), patience: Duration) -> Option<(Claim, FileSystem)> {
        let ((uid, volume), path) = place;
        let (placed, of, path) = (self.placed.clone(), claim.clone(), path.clone());
        let look = move || {
            let told = if path.is_dir() { file_system(&path) } else { None };
            let mut all = placed.told.lock().unwrap_or_else(PoisonError::into_inner);
            match told {
                Some(told) => drop(all.insert(of, told)),
                None => drop(all.remove(&of)),
            }
            Ok(path)
        };
        // a sign that no volume's name has
        let name = format!("{volume}?");
        // why it does not answer is nothing figures tell
        self.under_way.run(uid, &name, patience, move || THREADS.run(look)).await.ok()?;
        let told = self.placed.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.get(claim).map(|of| (claim.clone(), *of))
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
        // asked by two at once, both are told
        let (first, second) = tokio::join!(volumes.claims(&pods), volumes.claims(&pods));
        assert_eq!((first.len(), second.len()), (1, 1));
        // and all pods that have it
        volumes.note(&pods[1], &a, began, &Ok("/nowhere".into()));
        let both = volumes.claims(&pods).await;
        assert_eq!(both.iter().map(|c| c.pod_uid.as_str()).collect::<Vec<_>>(), ["1", "2"]);
        volumes.placed.forget("1");
        volumes.placed.forget("2");
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
