//! Volumes that outlive their pod: claims and what they are bound to (local, hostPath, NFS), and NFS without a claim.
//!
//! Rules: Kubernetes "Persistent Volumes", "Ephemeral Volumes" (generic ones), "Configure volume permission and
//! ownership change policy for Pods".

use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, NFSVolumeSource, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod, Volume,
};
use nix::mount::{MsFlags, mount};

use super::{Volumes, blocking, fs_group, local, mounts, ownership};

/// How long a server may take to answer a mount.
const NFS_ANSWER: Duration = Duration::from_mins(2);
/// Versions of the protocol the kernel speaks without a helper program, the newest first.
const NFS_VERSIONS: [&str; 3] = ["4.2", "4.1", "4.0"];

/// Name of the claim behind a volume, and whether the volume is asked for read-only.
fn claim_of(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
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
            return Some(self.claimed(pod, volume, &claim, read_only).await);
        }
        let nfs = volume.nfs.as_ref()?;
        let mounted = match self.place(pod, "kubernetes.io~nfs", &volume.name) {
            Ok(place) => mount_nfs(nfs, &[], place, nfs.read_only == Some(true)).await,
            Err(error) => Err(error),
        };
        Some(mounted)
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
        self.mount_pv(pod, &pv, read_only).await
    }

    async fn mount_pv(&self, pod: &Pod, pv: &PersistentVolume, read_only: bool) -> Result<PathBuf, String> {
        let name = pv.metadata.name.as_deref().unwrap_or_default();
        let spec = pv.spec.as_ref().ok_or_else(|| format!("PV {name:?} has no spec"))?;
        if spec.volume_mode.as_deref() == Some("Block") {
            return block_device(pv, spec);
        }
        let options = spec.mount_options.clone().unwrap_or_default();
        if let Some(nfs) = &spec.nfs {
            let place = self.place(pod, "kubernetes.io~nfs", name)?;
            return mount_nfs(nfs, &options, place, read_only || nfs.read_only == Some(true)).await;
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
        blocking(move || {
            let path = local::host_path(&source)?;
            if let Some(group) = group {
                ownership::give(&path, group, only_on_mismatch)?;
            }
            mounts::bind(&path, &place, read_only)?;
            Ok(place)
        })
        .await
    }
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

/// Mounts an export by the kernel's own client, which knows version 4 without help.
async fn mount_nfs(
    source: &NFSVolumeSource,
    options: &[String],
    place: PathBuf,
    read_only: bool,
) -> Result<PathBuf, String> {
    let what = format!("NFS {}:{}", source.server, source.path);
    let export = format!("{}:{}", source.server, source.path);
    let (server, options, of) = (source.server.clone(), options.to_vec(), what.clone());
    let mounting = blocking(move || {
        mounts::make_dir(&place, 0o750)?;
        if mounts::is_mount_point(&place)? {
            return Ok(place);
        }
        let (versions, others) = nfs_options(&options).map_err(|e| format!("{of}: {e}"))?;
        let address = (server.trim_matches(['[', ']']), 2049).to_socket_addrs();
        let address = address.map_err(|e| format!("{of}: resolving the server's name: {e}"))?.next();
        let address = address.ok_or_else(|| format!("{of}: the server's name has no address"))?.ip();
        let mut last = nix::errno::Errno::EPROTONOSUPPORT;
        for version in versions {
            let data = format!("vers={version},addr={address}{others}");
            match nfs(&export, &place, &data, read_only) {
                Ok(()) => return Ok(place),
                Err(e @ (nix::errno::Errno::EPROTONOSUPPORT | nix::errno::Errno::EINVAL)) => last = e,
                Err(nix::errno::Errno::ENODEV) => {
                    return Err(format!("{of}: this kernel has no NFS client (nfsv4): load or build it"));
                }
                Err(e) => return Err(format!("mounting {of}: {e}")),
            }
        }
        Err(format!("mounting {of}: {last} (version 4 of the protocol is needed)"))
    });
    match tokio::time::timeout(NFS_ANSWER, mounting).await {
        Ok(mounted) => mounted,
        Err(_) => Err(format!("mounting {what}: no answer within {} s", NFS_ANSWER.as_secs())),
    }
}

fn nfs(export: &str, place: &Path, data: &str, read_only: bool) -> nix::Result<()> {
    let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    mount(Some(export), place, Some("nfs4"), flags, Some(data))
}

/// The versions to try, and the other options as the kernel reads them, each behind a comma.
fn nfs_options(options: &[String]) -> Result<(Vec<String>, String), String> {
    let (mut versions, mut others) = (NFS_VERSIONS.map(str::to_owned).to_vec(), String::new());
    for option in options.iter().flat_map(|o| o.split(',')).map(str::trim).filter(|o| !o.is_empty()) {
        match option.split_once('=') {
            Some(("vers" | "nfsvers", version)) if version.starts_with('4') => versions = vec![version.to_owned()],
            Some(("vers" | "nfsvers", version)) => {
                return Err(format!("version {version} needs helper programs on the node; use version 4"));
            }
            _ => others.extend([",", option]),
        }
    }
    Ok((versions, others))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_options_of_nfs() {
        let of = |list: &[&str]| nfs_options(&list.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&[]).unwrap(), (NFS_VERSIONS.map(str::to_owned).to_vec(), String::new()));
        assert_eq!(of(&["nfsvers=4.1", "hard,timeo=600"]).unwrap(), (vec!["4.1".into()], ",hard,timeo=600".into()));
        assert!(of(&["vers=3"]).unwrap_err().contains("version 4"));
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
