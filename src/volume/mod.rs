//! Volumes: emptyDir, hostPath, configMap, secret, downwardAPI and projected, and the atomic writer.
//!
//! Knows nothing of containers: it makes host paths, the runtime mounts them.

mod atomic;
mod host_path;
mod payload;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Volume};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Where ConfigMaps, Secrets and tokens come from: a control plane, or nothing on a standalone node.
pub trait ObjectSource: Send + Sync {
    /// A ConfigMap; `None` if it does not exist.
    fn config_map<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<ConfigMap>, String>>;
    /// A Secret; `None` if it does not exist.
    fn secret<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<Secret>, String>>;
    /// A service account token bound to the pod.
    fn token<'a>(
        &'a self,
        pod: &'a Pod,
        audience: Option<String>,
        expiration_seconds: i64,
    ) -> BoxFuture<'a, Result<String, String>>;
}

/// A volume that could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume {volume:?} : {message}")]
pub struct VolumeError {
    /// Volume name.
    pub volume: String,
    /// What went wrong.
    pub message: String,
}

/// The volumes of this node's pods; cheap to clone.
#[derive(Clone)]
pub struct Volumes {
    root: PathBuf,
    objects: Arc<dyn ObjectSource>,
}

impl Volumes {
    /// Volumes below `<root>/<pod uid>/volumes`.
    pub fn new(root: PathBuf, objects: Arc<dyn ObjectSource>) -> Self {
        Self { root, objects }
    }

    fn dir(&self, uid: &str) -> PathBuf {
        self.root.join(uid).join("volumes")
    }

    /// Makes every volume of the pod; returns host paths by volume name. Repeatable.
    pub async fn prepare(&self, pod: &Pod) -> Result<BTreeMap<String, PathBuf>, VolumeError> {
        let mut paths = BTreeMap::new();
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            let failed = |message| VolumeError { volume: volume.name.clone(), message };
            let path = self.one(pod, volume).await.map_err(failed)?;
            paths.insert(volume.name.clone(), path);
        }
        Ok(paths)
    }

    /// Writes changed ConfigMaps, Secrets, tokens and pod fields into their volumes.
    pub async fn refresh(&self, pod: &Pod) -> Result<(), VolumeError> {
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter(|v| payload::is_projected(v)) {
            let failed = |message| VolumeError { volume: volume.name.clone(), message };
            self.one(pod, volume).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn one(&self, pod: &Pod, volume: &Volume) -> Result<PathBuf, String> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let dir = |kind: &str| self.dir(uid).join(format!("kubernetes.io~{kind}")).join(&volume.name);
        let group = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|c| c.fs_group);
        if let Some(empty) = &volume.empty_dir {
            let path = dir("empty-dir");
            let memory = empty.medium.as_deref() == Some("Memory");
            let size = empty.size_limit.as_ref().and_then(|q| crate::pod::qos::parse_quantity(q, 1.0));
            make_empty_dir(&path, memory, size, group).map_err(|e| format!("creating {}: {e}", path.display()))?;
            return Ok(path);
        }
        if let Some(host) = &volume.host_path {
            return host_path::check(Path::new(&host.path), host.type_.as_deref().unwrap_or_default());
        }
        if let Some(files) = payload::collect(pod, volume, &*self.objects).await? {
            let path = dir(files.kind);
            if files.secret {
                tmpfs(&path, None).map_err(|e| format!("mounting a tmpfs on {}: {e}", path.display()))?;
            }
            atomic::write(&path, &files.files, group).map_err(|e| format!("writing {}: {e}", path.display()))?;
            return Ok(path);
        }
        Err("this kind of volume is not one this node can mount (it can: emptyDir, hostPath, configMap, secret, \
             downwardAPI, projected)"
            .to_owned())
    }

    /// Unmounts and removes all volumes of a pod; returns what could not be done. Safe to repeat.
    pub async fn teardown(&self, uid: &str) -> Vec<String> {
        let dir = self.dir(uid);
        let mut errors = Vec::new();
        for kind in fs::read_dir(&dir).into_iter().flatten().flatten() {
            for volume in fs::read_dir(kind.path()).into_iter().flatten().flatten() {
                match umount2(&volume.path(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                    Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                    Err(error) => errors.push(format!("unmounting {}: {error}", volume.path().display())),
                }
            }
        }
        if errors.is_empty()
            && let Err(error) = fs::remove_dir_all(&dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            errors.push(format!("removing {}: {error}", dir.display()));
        }
        errors
    }
}

/// Mounts a tmpfs unless there is one already.
fn tmpfs(path: &Path, size: Option<i64>) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let name = path.display().to_string();
    if mounts.lines().any(|l| l.split(' ').nth(1) == Some(name.as_str())) {
        return Ok(());
    }
    let options = size.map(|s| format!("size={s}"));
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, options.as_deref())?;
    Ok(())
}

fn make_empty_dir(path: &Path, memory: bool, size: Option<i64>, group: Option<i64>) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if memory {
        tmpfs(path, size)?;
    } else {
        fs::create_dir_all(path)?;
    }
    let mut mode = 0o777;
    if let Some(gid) = group.and_then(|g| u32::try_from(g).ok()) {
        std::os::unix::fs::chown(path, None, Some(gid))?;
        mode |= 0o2000;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// A `subPath` of a volume, made as a directory where missing; one that leads out of the volume is refused.
pub fn sub_path(volume: &Path, sub: &str) -> Result<PathBuf, String> {
    let sub_path = Path::new(sub);
    if !sub_path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("subPath {sub:?} must be relative and must not contain .."));
    }
    let target = volume.join(sub_path);
    if !target.exists() {
        fs::create_dir_all(&target).map_err(|e| format!("creating subPath {}: {e}", target.display()))?;
    }
    let (real, root) = (target.canonicalize(), volume.canonicalize());
    match (real, root) {
        (Ok(real), Ok(root)) if real.starts_with(&root) => Ok(real),
        _ => Err(format!("subPath {sub:?} leads out of its volume: refused")),
    }
}
