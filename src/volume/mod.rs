//! Volumes: one file per kind, and the atomic writer. Knows nothing of containers.
//!
//! `local.rs` owns emptyDir and hostPath, `persistent.rs` claims and what they are bound to, `nfs.rs` mounts of NFS,
//! `projection.rs` what configMap, secret, downwardAPI and projected volumes hold, `atomic.rs` how that is written,
//! `fields.rs` the values of a pod's own fields and resources, `figures.rs` how full volumes are, `mounts.rs` tmpfs and
//! teardown, `under_way.rs` what may never end.

mod atomic;
pub mod fields;
mod figures;
mod local;
mod mounts;
pub mod nfs;
mod ownership;
mod persistent;
mod projection;
mod sub_path;
mod under_way;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, ConfigMap, NodeSelector, PersistentVolume, PersistentVolumeClaim, Pod,
    PodCertificateProjection, Secret, Volume,
};

use projection::Token;
use serde_json::{Map, Value};
use under_way::{Gate, UnderWay, on_own_thread};

use crate::files;
pub use crate::mount_tree::Follow;
pub use figures::ClaimFigures;
pub use mounts::{remove_tree, shared_memory};
pub use sub_path::{Part, read_beneath, release_sub_paths, stays_inside, sub_path};

/// The kinds of objects whose content pods use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectKind {
    /// `ConfigMap`.
    ConfigMap,
    /// `Secret`.
    Secret,
}

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A certificate of a pod, in PEM.
#[derive(Debug, Clone)]
pub struct PodCertificate {
    /// Its key (PKCS #8).
    pub key: String,
    /// The certificate, and those between it and its CA.
    pub chain: String,
}

/// Where the objects pods refer to come from. `Ok(None)` means that the object does not exist.
pub trait ObjectSource: Send + Sync {
    /// The `ConfigMap` of that namespace and name.
    fn config_map<'a>(&'a self, ns: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<ConfigMap>, String>>;
    /// The `Secret` of that namespace and name.
    fn secret<'a>(&'a self, ns: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<Secret>, String>>;
    /// The claim of that namespace and name, for a pod; a source with no API server behind it has none.
    fn claim<'a>(
        &'a self,
        _ns: &'a str,
        _name: &'a str,
        _pod_uid: &'a str,
    ) -> BoxFuture<'a, Result<Option<PersistentVolumeClaim>, String>> {
        Box::pin(async { Ok(None) })
    }
    /// The persistent volume of that name; as for claims.
    fn persistent_volume<'a>(
        &'a self,
        _name: &'a str,
        _pod_uid: &'a str,
    ) -> BoxFuture<'a, Result<Option<PersistentVolume>, String>> {
        Box::pin(async { Ok(None) })
    }
    /// Whether this node is among the selected; a source with no API server behind it cannot tell, and says so of any.
    fn selects_node<'a>(&'a self, _selector: &'a NodeSelector) -> BoxFuture<'a, bool> {
        Box::pin(async { true })
    }
    /// From now on the pod of that uid refers to those objects: they are kept up to date.
    fn hold(&self, _pod_uid: &str, _keys: BTreeSet<ObjectKey>) {}
    /// The pod of that uid is gone.
    fn release(&self, _pod_uid: &str) {}
    /// Forgets what is kept for pods that refer to nothing any more: they ended while no agent ran.
    fn sweep(&self) {}
    /// The anchors of the trust bundles a source of that place names, in PEM.
    fn trust_bundle<'a>(
        &'a self,
        _source: &'a ClusterTrustBundleProjection,
        _pod_uid: &'a str,
        _place: &'a str,
    ) -> BoxFuture<'a, Result<String, String>> {
        Box::pin(async { Err("ClusterTrustBundles need an API server".to_owned()) })
    }
    /// The certificate of the source of that place, once a signer has issued it.
    fn pod_certificate(
        &self,
        _source: &PodCertificateProjection,
        _pod: &Pod,
        _place: &str,
    ) -> Result<PodCertificate, String> {
        Err("certificates of pods need an API server".to_owned())
    }
    /// A token of the service account bound to the pod, with its expiry in unix seconds.
    fn token<'a>(
        &'a self,
        ns: &'a str,
        service_account: &'a str,
        pod_name: &'a str,
        pod_uid: &'a str,
        audience: Option<String>,
        expiration_seconds: i64,
    ) -> BoxFuture<'a, Result<(String, i64), String>>;
}

/// Why a volume cannot be set up; the message is fit for a pod's events.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {message}")]
pub struct VolumeError {
    /// Name of the volume in the pod.
    pub volume: String,
    /// What went wrong.
    pub message: String,
}

/// The volumes of this node's pods; cheap to clone.
#[derive(Clone)]
pub struct Volumes {
    root: PathBuf,
    objects: Arc<dyn ObjectSource>,
    allocatable: Arc<fields::Allocatable>,
    tokens: Arc<Mutex<HashMap<TokenKey, Token>>>,
    under_way: Arc<UnderWay>,
    placed: Arc<figures::Placed>,
    nfs: Arc<nfs::Mounter>,
    /// How long a pod's set-up waits for a disk or server before it says so and looks at the pod again.
    patience: Duration,
}

/// Pod uid, volume name, path in the volume.
type TokenKey = (String, String, String);

/// The field of a volume that says its kind, e.g. `configMap`; empty for a kind this agent does not have.
pub fn kind_of(volume: &Volume) -> &'static str {
    if volume.empty_dir.is_some() {
        "emptyDir"
    } else if volume.host_path.is_some() {
        "hostPath"
    } else if volume.config_map.is_some() {
        "configMap"
    } else if volume.secret.is_some() {
        "secret"
    } else if volume.downward_api.is_some() {
        "downwardAPI"
    } else if volume.projected.is_some() {
        "projected"
    } else {
        ""
    }
}

/// Whether containers may only read volumes of this kind (as [`kind_of`] names it).
pub fn volume_is_read_only(kind: &str) -> bool {
    matches!(kind, "configMap" | "secret" | "downwardAPI" | "projected")
}

impl Volumes {
    /// `root` is `<rootDir>/pods`; `allocatable` what pods may have of the node.
    pub fn new(root: PathBuf, objects: Arc<dyn ObjectSource>, allocatable: fields::Allocatable) -> Self {
        Self {
            root,
            objects,
            allocatable: Arc::new(allocatable),
            tokens: Arc::default(),
            under_way: Arc::default(),
            placed: Arc::default(),
            nfs: Arc::default(),
            patience: Duration::from_secs(10),
        }
    }

    /// Sets up every volume that a container of the pod uses, and returns where each is on the host. Safe to repeat.
    pub async fn prepare(&self, pod: &Pod) -> Result<BTreeMap<String, PathBuf>, VolumeError> {
        let mut paths = BTreeMap::new();
        let used = used(pod);
        for volume in pod_volumes(pod).iter().filter(|v| used.contains(v.name.as_str())) {
            let began = Instant::now();
            let outcome = Box::pin(self.set_up(pod, volume)).await;
            self.note(pod, volume, began, &outcome);
            let path = outcome.map_err(|message| in_volume(volume, message))?;
            paths.insert(volume.name.clone(), path);
        }
        Ok(paths)
    }

    /// Writes the projected kinds anew where their sources changed or a token nears its end. Every volume is tried;
    /// the first error is returned and what that volume held before stays. Volumes that are not set up, or no longer,
    /// are left alone.
    pub async fn refresh(&self, pod: &Pod) -> Result<(), VolumeError> {
        let mut first_error = Ok(());
        for volume in pod_volumes(pod).iter().filter(|v| volume_is_read_only(kind_of(v))) {
            let refreshed = match self.volume_dir(pod, volume, kind_of(volume)) {
                Ok(dir) if !dir.is_dir() => continue,
                Ok(_) => Box::pin(self.set_up(pod, volume)).await.map(drop),
                Err(message) => Err(message),
            };
            if let Err(message) = refreshed {
                first_error = first_error.and_then(|()| Err(in_volume(volume, message)));
            }
        }
        first_error
    }

    /// Unmounts and removes the volumes of a pod that has ended; what else is kept of it stays. Safe to repeat.
    pub async fn release(&self, uid: &str) -> Vec<String> {
        self.forget_tokens(uid);
        match pod_dir(&self.root, uid) {
            Ok(dir) => self.remove(uid, dir.join("volumes")).await,
            Err(message) => vec![message],
        }
    }

    /// Unmounts and removes everything of the pod; returns what could not be done. Safe to repeat.
    pub async fn teardown(&self, uid: &str) -> Vec<String> {
        self.forget_tokens(uid);
        match pod_dir(&self.root, uid) {
            Ok(dir) => self.remove(uid, dir).await,
            Err(message) => vec![message],
        }
    }

    /// Removes a folder of a pod, for which nothing is mounted any more.
    async fn remove(&self, uid: &str, dir: PathBuf) -> Vec<String> {
        self.placed.forget(uid);
        if let Err(error) = self.under_way.end(uid).await {
            return vec![error];
        }
        let removed = files::removal(move || mounts::remove_tree(&dir)).await;
        let errors = removed.unwrap_or_else(|e| vec![e.to_string()]);
        if errors.is_empty() {
            self.under_way.forget(uid);
        }
        errors
    }

    fn gate(&self, pod: &Pod) -> Arc<Gate> {
        self.under_way.gate(pod.metadata.uid.as_deref().unwrap_or_default())
    }

    /// Work on a volume that a disk or server may never answer: once at a time, waited for with a limit.
    async fn may_hang<F>(&self, pod: &Pod, volume: &Volume, start: impl FnOnce() -> F) -> Result<PathBuf, String>
    where
        F: Future<Output = Result<PathBuf, String>> + Send + 'static,
    {
        self.of_volume(pod, &volume.name, start).await
    }

    /// The same by a name, to which a sign is added that no volume's has for what is not its set-up.
    async fn of_volume<F>(&self, pod: &Pod, name: &str, start: impl FnOnce() -> F) -> Result<PathBuf, String>
    where
        F: Future<Output = Result<PathBuf, String>> + Send + 'static,
    {
        self.under_way.run(pod.metadata.uid.as_deref().unwrap_or_default(), name, self.patience, start).await
    }

    /// Binds `sub` of a pod's volume to `place`, as [`sub_path`] does. Its disk or server may not answer: waited for with a
    /// limit, once at a time.
    pub async fn bind_part(&self, pod: &Pod, name: &str, part: Part) -> Result<(), String> {
        // what another run has waited for may come first
        for _ in 0..2 {
            let (gate, part, place) = (self.gate(pod), part.clone(), part.place.clone());
            let bind = move || {
                let _pass = gate.enter()?;
                sub_path(&part.volume, &part.sub, &part.place, part.create, part.follow)?;
                Ok(part.place)
            };
            if self.of_volume(pod, &format!("{name}/"), move || on_own_thread(bind)).await? == place {
                return Ok(());
            }
        }
        Err("another container's part of the volume came first".to_owned())
    }

    /// Whether a pod's volume, which is at `path`, is a block device; waited for as in [`Volumes::bind_part`].
    pub async fn is_block_device(&self, pod: &Pod, name: &str, path: &Path) -> Result<bool, String> {
        let path = path.to_owned();
        let look = move || {
            let is = std::fs::metadata(&path).is_ok_and(|meta| meta.file_type().is_block_device());
            Ok(if is { path } else { PathBuf::new() })
        };
        let found = self.of_volume(pod, &format!("{name}:"), move || on_own_thread(look)).await?;
        Ok(!found.as_os_str().is_empty())
    }

    fn forget_tokens(&self, uid: &str) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _, _), _| of != uid);
    }

    async fn set_up(&self, pod: &Pod, volume: &Volume) -> Result<PathBuf, String> {
        let kind = kind_of(volume);
        if let Some(source) = &volume.host_path {
            let source = source.clone();
            return self.may_hang(pod, volume, || on_own_thread(move || local::host_path(&source))).await;
        }
        if let Some(mounted) = Box::pin(self.persistent(pod, volume)).await {
            return mounted;
        }
        if volume.image.is_some() {
            // mounted by who has the images; this is where
            return Ok(self.place(pod, "kubernetes.io~image", &volume.name)?.join("rootfs"));
        }
        let dir = self.volume_dir(pod, volume, kind)?;
        let (group, gate) = (fs_group(pod), self.gate(pod));
        if let Some(source) = &volume.empty_dir {
            let (source, limit, pages) = (source.clone(), fields::pod_memory_limit(pod), fields::huge_page_sizes(pod));
            return blocking(move || {
                let _pass = gate.enter()?;
                local::empty_dir(&dir, &source, limit, &pages, group)
            })
            .await;
        }
        if kind.is_empty() {
            return Err(format!("this agent has no {} volumes", written_kind(volume)));
        }
        let payload = self.payload(pod, volume).await?;
        let in_memory = matches!(kind, "secret" | "projected");
        blocking(move || {
            let _pass = gate.enter()?;
            mounts::make_dir(&dir, 0o755)?;
            if in_memory {
                mounts::mount_tmpfs(&dir, "mode=0755")?;
            }
            atomic::write(&dir, &payload, group)
                .map_err(|e| format!("cannot write the files of {}: {e}", dir.display()))?;
            Ok(dir)
        })
        .await
    }

    fn volume_dir(&self, pod: &Pod, volume: &Volume, kind: &str) -> Result<PathBuf, String> {
        let plugin = match kind {
            "emptyDir" => "kubernetes.io~empty-dir",
            "configMap" => "kubernetes.io~configmap",
            "downwardAPI" => "kubernetes.io~downward-api",
            "secret" => "kubernetes.io~secret",
            _ => "kubernetes.io~projected",
        };
        self.place(pod, plugin, &volume.name)
    }

    /// Where a plugin of that name puts a volume of that name.
    fn place(&self, pod: &Pod, plugin: &str, name: &str) -> Result<PathBuf, String> {
        if !is_file_name(name) {
            return Err(format!("{name:?} cannot be the name of a directory"));
        }
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        Ok(pod_dir(&self.root, uid)?.join("volumes").join(plugin).join(name))
    }
}

fn pod_dir(root: &Path, uid: &str) -> Result<PathBuf, String> {
    if is_file_name(uid) { Ok(root.join(uid)) } else { Err(format!("{uid:?} cannot be the uid of a pod")) }
}

fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

/// Names of the volumes that containers of the pod use; the others need not be there.
pub fn used(pod: &Pod) -> BTreeSet<&str> {
    let spec = pod.spec.as_ref();
    let containers = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let ephemeral = spec.into_iter().flat_map(|s| s.ephemeral_containers.iter().flatten());
    let uses = containers.map(|c| (&c.volume_mounts, &c.volume_devices, &c.env));
    let uses = uses.chain(ephemeral.map(|c| (&c.volume_mounts, &c.volume_devices, &c.env)));
    let names = uses.flat_map(|(mounts, devices, env)| {
        let files = env.iter().flatten().filter_map(|e| e.value_from.as_ref()?.file_key_ref.as_ref());
        let mounts = mounts.iter().flatten().map(|m| m.name.as_str());
        mounts.chain(devices.iter().flatten().map(|d| d.name.as_str())).chain(files.map(|f| f.volume_name.as_str()))
    });
    names.collect()
}

fn pod_volumes(pod: &Pod) -> &[Volume] {
    pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default()
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

fn in_volume(volume: &Volume, message: String) -> VolumeError {
    VolumeError { volume: volume.name.clone(), message }
}

/// The kind as the manifest has it, for a message.
fn written_kind(volume: &Volume) -> String {
    let fields: Map<String, Value> = crate::json::convert(volume).unwrap_or_default();
    let kind = fields.into_iter().map(|(key, _)| key).find(|k| k != "name");
    kind.unwrap_or_else(|| "kindless".into())
}

/// Whether something is mounted on `path`; where nothing is, nothing is mounted.
pub fn is_mounted(path: &Path) -> bool {
    mounts::is_mount_point(path).unwrap_or(false)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(format!("the file work was given up: {e}")))
}
