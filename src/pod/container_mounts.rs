//! What a container sees of its pod's volumes and files, and how that is given back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, VolumeDevice as ApiVolumeDevice, VolumeMount};

use super::worker::Worker;
use super::{PodExt, env};
use crate::image::{Image, volume_places};
use crate::mount_tree::Follow;
use crate::runtime::{DeviceGrant, Mount, Propagation, VolumeDevice};
use crate::volume::{self, Part};

/// POSIX shared memory, `shm_overview(7)`.
const SHM: &str = "/dev/shm";
/// Most VOLUMEs an image may have, as each is copied; real ones have a handful.
const MOST_IMAGE_VOLUMES: usize = 64;

impl Worker {
    /// The mounts of the run `id`. `variables`: the container's environment, for `subPathExpr`.
    pub(super) async fn mounts(
        &self,
        container: &Container,
        id: &str,
        image: &Image,
        termination_log: &Path,
        variables: &BTreeMap<String, String>,
    ) -> Result<Vec<Mount>, String> {
        let file = |source: PathBuf, destination: &str| Mount {
            source,
            destination: destination.to_owned(),
            read_only: false,
            recursive_read_only: false,
            no_exec: false,
            propagation: Propagation::None,
            mapped: false,
        };
        let dir = self.pod_dir();
        let host_ipc = self.pod.pod_spec().and_then(|s| s.host_ipc).unwrap_or(false);
        let shared_memory = if host_ipc { PathBuf::from(SHM) } else { self.shared_memory() };
        let message_path = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
        let mut mounts = vec![
            file(dir.join("resolv.conf"), "/etc/resolv.conf"),
            file(dir.join("etc-hosts"), "/etc/hosts"),
            file(dir.join("hostname"), "/etc/hostname"),
            file(termination_log.to_owned(), message_path),
            // the owners of its files are as the pod's users have made them
            Mount { mapped: !host_ipc, ..file(shared_memory, SHM) },
        ];
        let wanted = container.volume_mounts.as_deref().unwrap_or_default();
        mounts.retain(|m| {
            !wanted.iter().any(|w| w.mount_path.trim_end_matches('/') == m.destination) && m.source.exists()
        });
        // what is within one goes on top of it
        mounts.splice(0..0, self.image_volumes(id, image, wanted, &mounts).await?);
        for (index, mount) in wanted.iter().enumerate() {
            let volume = self.volumes.as_ref().and_then(|v| v.get(&mount.name)).ok_or_else(|| {
                format!("cannot find volume {:?} to mount into container {:?}", mount.name, container.name)
            })?;
            if self.claim_read_only(&mount.name).is_some() && self.is_block_device(&mount.name, volume).await? {
                return Err(format!("volume {} has volumeMode Block, but is specified in volumeMounts", mount.name));
            }
            let is_image = self.is_image_volume(&mount.name);
            let source = match sub_path(mount, variables)? {
                Some(sub) => {
                    let place = self.sub_paths_dir(id).join(index.to_string());
                    let both = mount.mount_propagation.as_deref() == Some("Bidirectional");
                    let follow = if both { Follow::Both } else { Follow::Source };
                    let part = Part { volume: volume.clone(), sub, place: place.clone(), create: !is_image, follow };
                    let bound = self.shared.volumes.bind_part(&self.pod, &mount.name, part).await;
                    bound.map_err(|e| format!("failed to prepare subPath for volumeMount {:?}: {e}", mount.name))?;
                    place
                }
                None => volume.clone(),
            };
            mounts.push(Mount {
                source,
                destination: mount.mount_path.clone(),
                read_only: is_image || self.is_read_only(&mount.name) || mount.read_only.unwrap_or(false),
                recursive_read_only: matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
                no_exec: is_image,
                propagation: match mount.mount_propagation.as_deref() {
                    Some("HostToContainer") => Propagation::HostToContainer,
                    Some("Bidirectional") => Propagation::Bidirectional,
                    _ => Propagation::None,
                },
                mapped: is_image,
            });
        }
        Ok(mounts)
    }

    /// A folder for each VOLUME of the image that is not, and does not lie in, a volume of the pod. (An engine would put
    /// one over a folder of the pod's volume as well, where data that are to be kept would then be lost.)
    async fn image_volumes(
        &self,
        id: &str,
        image: &Image,
        wanted: &[VolumeMount],
        files: &[Mount],
    ) -> Result<Vec<Mount>, String> {
        let mut mounts = Vec::new();
        let dir = self.shared.containers_dir.join(id);
        let kept = |w: &VolumeMount, place: &Path| {
            place == Path::new(&w.mount_path) || w.read_only != Some(true) && place.starts_with(&w.mount_path)
        };
        let places = volume_places(&image.config.volumes);
        if places.len() > MOST_IMAGE_VOLUMES {
            return Err(format!("the image has {} VOLUMEs: at most {MOST_IMAGE_VOLUMES} can be had", places.len()));
        }
        for (number, place) in places.iter().enumerate() {
            if wanted.iter().any(|w| kept(w, place)) || files.iter().any(|f| Path::new(&f.destination) == place) {
                continue;
            }
            let made = self.shared.images.volume(&dir, number, place, self.users().as_ref()).await;
            mounts.push(Mount {
                source: made.map_err(|e| e.to_string())?,
                destination: place.display().to_string(),
                read_only: false,
                recursive_read_only: false,
                no_exec: false,
                propagation: Propagation::None,
                // it was filled from a root file system whose owners were
                mapped: true,
            });
        }
        Ok(mounts)
    }

    /// The volumes a container gets as devices.
    pub(super) async fn volume_devices(&self, container: &Container) -> Result<Vec<VolumeDevice>, String> {
        let mut devices = Vec::new();
        for ApiVolumeDevice { name, device_path } in container.volume_devices.iter().flatten() {
            let path =
                self.volumes.as_ref().and_then(|v| v.get(name)).ok_or_else(|| {
                    format!("cannot find volume {name:?} to pass into container {:?}", container.name)
                })?;
            if !self.is_block_device(name, path).await? {
                return Err(format!("volume {name} has volumeMode Filesystem, but is specified in volumeDevices"));
            }
            let permissions = if self.claim_read_only(name) == Some(true) { "r" } else { "rwm" };
            let grant = DeviceGrant { path: path.clone(), permissions: permissions.to_owned() };
            devices.push(VolumeDevice { grant, destination: PathBuf::from(device_path) });
        }
        Ok(devices)
    }

    async fn is_block_device(&self, name: &str, path: &Path) -> Result<bool, String> {
        let found = self.shared.volumes.is_block_device(&self.pod, name, path).await;
        found.map_err(|e| format!("volume {name:?}: {e}"))
    }

    /// Whether a volume that a claim brings is read-only; `None` for others.
    fn claim_read_only(&self, name: &str) -> Option<bool> {
        let volume = self.pod.pod_spec()?.volumes.iter().flatten().find(|v| v.name == name)?;
        let claim = volume.persistent_volume_claim.as_ref();
        claim.map(|c| c.read_only == Some(true)).or(volume.ephemeral.as_ref().map(|_| false))
    }

    /// What one container would write into a ConfigMap, a Secret or the like another one would read.
    fn is_read_only(&self, name: &str) -> bool {
        let mut volumes = self.pod.pod_spec().into_iter().flat_map(|s| s.volumes.iter().flatten());
        volumes.any(|v| v.name == name && volume::volume_is_read_only(volume::kind_of(v)))
    }

    fn is_image_volume(&self, name: &str) -> bool {
        let volumes = self.pod.pod_spec().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
        volumes.iter().any(|v| v.name == name && v.image.is_some())
    }

    fn sub_paths_dir(&self, id: &str) -> PathBuf {
        self.pod_dir().join("volume-subpaths").join(id)
    }

    /// Gives back what the run `id` had mounted: its write layer and parts of volumes.
    pub(super) async fn unmount(&self, id: &str) -> Result<(), String> {
        let layer = self.shared.images.unmount(&self.shared.containers_dir.join(id)).await.map_err(|e| e.to_string());
        let dir = self.sub_paths_dir(id);
        let parts = tokio::task::spawn_blocking(move || volume::release_sub_paths(&dir)).await;
        layer.and(parts.unwrap_or_else(|e| Err(e.to_string())))
    }
}

/// `subPath`, or what `subPathExpr` comes to.
fn sub_path(mount: &VolumeMount, variables: &BTreeMap<String, String>) -> Result<Option<String>, String> {
    if let Some(expression) = mount.sub_path_expr.as_deref().filter(|s| !s.is_empty()) {
        return env::expand_known(expression, variables).map(Some);
    }
    Ok(mount.sub_path.clone().filter(|s| !s.is_empty()))
}
