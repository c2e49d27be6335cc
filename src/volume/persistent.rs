//! Volumes that outlive their pod: claims and what they are bound to (local, hostPath, NFS), and NFS without a claim.
//!
//! Rules: Kubernetes "Persistent Volumes", "Ephemeral Volumes" (generic ones), "Configure volume permission and
//! ownership change policy for Pods".

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, NFSVolumeSource, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod, Volume,
};

use super::under_way::on_own_thread;
use super::{Volumes, fs_group, local, mounts, ownership};
use crate::mount_tree::Follow;

/// Name of the claim behind a volume, and whether the volume is asked for read-only.
pub(super) fn claim_of(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some((source.claim_name.clone(), source.read_only == Some(true)));
    }
    volume.ephemeral.as_ref()?;
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    Some((format!("{pod_name}-{}", volume.name), false))
}

impl Volumes {
    /// Sets up a volume that a claim, or the pod itself, takes from outside the pod. `None`: it is of another kind.
    pub(super) async fn persistent(&self, pod: &Pod, volume: &Volume) -> Option<Result<PathBuf, String>> {
        if let Some((claim, read_only)) = claim_of(pod, volume) {
            return Some(Box::pin(self.claimed(pod, volume, &claim, read_only)).await);
        }
        let nfs = volume.nfs.as_ref()?;
        Some(self.mount_nfs(pod, volume, &volume.name, nfs, Vec::new(), nfs.read_only == Some(true)).await)
    }

    async fn mount_nfs(
        &self,
        pod: &Pod,
        volume: &Volume,
        name: &str,
        source: &NFSVolumeSource,
        options: Vec<String>,
        read_only: bool,
    ) -> Result<PathBuf, String> {
        let place = self.place(pod, "kubernetes.io~nfs", name)?;
        let (mounter, source, gate) = (self.nfs.clone(), source.clone(), self.gate(pod));
        let mount = move || async move { mounter.mount(&source, &options, place, read_only, gate).await };
        self.may_hang(pod, volume, mount).await
    }

    async fn claimed(&self, pod: &Pod, volume: &Volume, claim: &str, read_only: bool) -> Result<PathBuf, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let what = format!("{namespace}/{claim}");
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let found = self.objects.claim(namespace, claim, uid).await?;
        let found = found.ok_or_else(|| format!("persistentvolumeclaim {what:?} not found"))?;
        if volume.ephemeral.is_some() && !is_owned(&found, pod) {
            return Err(format!(
                "PVC {what} was not created for pod {namespace}/{}",
                pod.metadata.name.as_deref().unwrap_or_default()
            ));
        }
        let bound = found.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        let name = found.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|n| bound && !n.is_empty());
        let name = name.ok_or_else(|| format!("PVC {what} is not bound: waiting for a PersistentVolume"))?;
        let pv = self.objects.persistent_volume(&name, uid).await?;
        let pv = pv.ok_or_else(|| format!("persistentvolume {name:?} not found"))?;
        let claimed_by = pv.spec.as_ref().and_then(|s| s.claim_ref.as_ref()?.uid.clone());
        if claimed_by != found.metadata.uid {
            return Err(format!("PV {name:?} is bound to another claim than {what}"));
        }
        Box::pin(self.mount_pv(pod, volume, &pv, read_only)).await
    }

    async fn mount_pv(
        &self,
        pod: &Pod,
        volume: &Volume,
        pv: &PersistentVolume,
        read_only: bool,
    ) -> Result<PathBuf, String> {
        let name = pv.metadata.name.as_deref().unwrap_or_default();
        let spec = pv.spec.as_ref().ok_or_else(|| format!("PV {name:?} has no spec"))?;
        // a pod that names its node was seen by no scheduler
        if let Some(required) = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref())
            && !self.objects.selects_node(required).await
        {
            return Err(format!("NodeAffinity check failed for PV {name:?}: no matching NodeSelectorTerms"));
        }
        if spec.volume_mode.as_deref() == Some("Block") {
            let (pv, spec) = (pv.clone(), spec.clone());
            let look = move || on_own_thread(move || block_device(&pv, &spec));
            return Box::pin(self.may_hang(pod, volume, look)).await;
        }
        let options = spec.mount_options.clone().unwrap_or_default();
        if let Some(nfs) = &spec.nfs {
            let read_only = read_only || nfs.read_only == Some(true);
            return self.mount_nfs(pod, volume, name, nfs, options, read_only).await;
        }
        let (source, plugin) = match (&spec.local, &spec.host_path) {
            (Some(local), _) => {
                let source = HostPathVolumeSource { path: local.path.clone(), type_: Some("Directory".to_owned()) };
                (source, "kubernetes.io~local-volume")
            }
            (None, Some(host_path)) => (host_path.clone(), "kubernetes.io~host-path"),
            (None, None) => return Err(format!("PV {name:?}: this agent has local, hostPath and NFS volumes only")),
        };
        let place = self.place(pod, plugin, name)?;
        // as kubelet has it: what a hostPath holds keeps its owners
        let group = fs_group(pod).filter(|_| spec.local.is_some() && !read_only);
        let only_on_mismatch = ownership::only_on_mismatch(pod);
        let follow = if is_bidirectional(pod, &volume.name) { Follow::Both } else { Follow::Source };
        let gate = self.gate(pod);
        let work = move || {
            let path = local::host_path(&source)?;
            let opened = local::open(&path)?;
            if let Some(group) = group {
                let given = ownership::give(&opened, group, only_on_mismatch);
                given.map_err(|e| format!("cannot give {} to group {group}: {e}", path.display()))?;
            }
            let _pass = gate.enter()?;
            mounts::make_dir(&place, 0o700)?;
            mounts::bind(&opened, &place, read_only, follow)?;
            Ok(place)
        };
        self.may_hang(pod, volume, move || on_own_thread(work)).await
    }
}

/// Whether a container of the pod mounts the volume so that what is mounted in it is seen on the node.
fn is_bidirectional(pod: &Pod, volume: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut mounts = containers.flat_map(|c| c.volume_mounts.iter().flatten());
    mounts.any(|m| m.name == volume && m.mount_propagation.as_deref() == Some("Bidirectional"))
}

/// The device that a volume of mode `Block` is.
fn block_device(pv: &PersistentVolume, spec: &PersistentVolumeSpec) -> Result<PathBuf, String> {
    let name = pv.metadata.name.as_deref().unwrap_or_default();
    let path = match (&spec.local, &spec.host_path) {
        (Some(local), _) => &local.path,
        (None, Some(host_path)) => &host_path.path,
        (None, None) => return Err(format!("PV {name:?}: this agent has local and hostPath block volumes only")),
    };
    let source = HostPathVolumeSource { path: path.clone(), type_: Some("BlockDevice".to_owned()) };
    local::host_path(&source).map_err(|e| format!("PV {name:?} has volumeMode Block: {e}"))
}

fn is_owned(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    let mut owners = claim.metadata.owner_references.iter().flatten();
    owners.any(|o| Some(&o.uid) == pod.metadata.uid.as_ref() && o.controller == Some(true))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Scratch, volumes, with_volume};
    use super::*;

    #[tokio::test]
    async fn a_volume_of_another_node_is_not_mounted() {
        let dir = Scratch::new();
        let (volumes, objects) = volumes(&dir);
        let claim = serde_json::json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}});
        let mount = async |mode: &str, disk: &str| {
            let term = serde_json::json!({"matchExpressions": [{"key": "disk", "operator": "In", "values": [disk]}]});
            *objects.pv.lock().unwrap() = serde_json::json!({"local": {"path": "/not/there"}, "volumeMode": mode,
                "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}});
            volumes.prepare(&with_volume(claim.clone())).await.unwrap_err().to_string()
        };
        for mode in ["Filesystem", "Block"] {
            let error = mount(mode, "ssd").await;
            assert!(
                error.contains("NodeAffinity check failed for PV \"pv\": no matching NodeSelectorTerms"),
                "{error}"
            );
            let error = mount(mode, "sd").await;
            assert!(error.contains("/not/there"), "{error}");
        }
    }

    #[test]
    fn a_generic_ephemeral_volume_has_a_claim_of_its_own() {
        let pod = serde_json::json!({"metadata": {"name": "web"}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let volume = |v| serde_json::from_value::<Volume>(v).unwrap();
        assert_eq!(
            claim_of(&pod, &volume(serde_json::json!({"name": "s", "ephemeral": {}}))),
            Some(("web-s".into(), false))
        );
        let claim = serde_json::json!({"name": "s", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}});
        assert_eq!(claim_of(&pod, &volume(claim)), Some(("c".into(), true)));
        assert_eq!(claim_of(&pod, &volume(serde_json::json!({"name": "s", "emptyDir": {}}))), None);
    }
}
