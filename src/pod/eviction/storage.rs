//! What pods have on disk: write layers, logs, emptyDirs; and the limits of that.
//!
//! Rules: Kubernetes "Local ephemeral storage". Only pods with a limit are measured, and those not before the disk was
//! written, or has less free space, by as much as the pod was away from its limit: an idle node walks no folder.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, Volume};

use super::ranking::Candidate;
use super::threshold::Signal;
use crate::image::VOLUMES;
use crate::machine::folder_usage::disk_usage;
use crate::machine::usage::{file_system, memory, written};
use crate::pod::{PodExt, qos};
use crate::quantity;

/// A pod is measured after this long in any case, once its disk was written at all.
const AT_LATEST: Duration = Duration::from_mins(5);
/// The same where the kernel does not say how much was written.
const BLIND: Duration = Duration::from_secs(30);
/// A pod is measured when it may have come this much of the way to its limit.
const STEP: u64 = 2;

/// What containers write to in a pod's folder, beside volumes.
const WRITTEN: [&str; 4] = ["etc-hosts", "hostname", "resolv.conf", "containers"];

/// Folders of a node.
#[derive(Debug, Clone)]
pub struct Places {
    /// `<root>/pods`.
    pub pods: PathBuf,
    /// `<root>/containers`.
    pub containers: PathBuf,
    /// Logs.
    pub logs: PathBuf,
}

/// Bytes and inodes.
type Used = (u64, u64);

/// What one pod has on disk.
#[derive(Debug, Clone, Default)]
pub struct OnDisk {
    /// Write layer and logs of each container.
    pub containers: BTreeMap<String, Used>,
    /// emptyDirs on disk.
    pub volumes: BTreeMap<String, Used>,
    /// The pod's files that containers write to as well: `/etc/hosts` and the like, and termination messages.
    pub files: Used,
}

impl OnDisk {
    fn total(&self) -> Used {
        let parts = self.containers.values().chain(self.volumes.values()).chain([&self.files]);
        parts.fold((0, 0), |(bytes, inodes), part| (bytes + part.0, inodes + part.1))
    }

    /// As a candidate for eviction.
    pub fn candidate(&self, pod: std::sync::Arc<Pod>, signal: Signal) -> Candidate {
        let of = |used: &Used| if signal.is_inodes() { used.1 } else { used.0 };
        let containers = self.containers.iter().map(|(name, used)| (name.clone(), of(used))).collect();
        Candidate { pod, used: of(&self.total()), containers }
    }
}

/// The volumes that are folders on the node's disk and grow.
fn empty_dirs(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let volumes = pod.pod_spec().into_iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.filter(|v| v.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref().unwrap_or_default().is_empty()))
}

/// The ids of the runs a pod's status tells of, by container.
pub(super) fn runs(pod: &Pod) -> impl Iterator<Item = (&str, &str)> {
    let status = pod.status.as_ref();
    let statuses = status.into_iter().flat_map(|s| {
        [&s.init_container_statuses, &s.container_statuses, &s.ephemeral_container_statuses]
            .into_iter()
            .flatten()
            .flatten()
    });
    statuses.filter_map(|s| Some((s.name.as_str(), s.container_id.as_deref()?.split_once("://")?.1)))
}

/// Measures one pod; walks its folders.
pub fn measure(pod: &Pod, places: &Places) -> OnDisk {
    let mut found = OnDisk::default();
    let logs = places.logs.join(format!("{}_{}_{}", pod.ns(), pod.name(), pod.uid()));
    for (name, id) in runs(pod) {
        let dir = places.containers.join(id);
        let used = [dir.join("upper"), dir.join(VOLUMES), logs.join(name)].map(|dir| disk_usage(&dir));
        let sum = used.iter().fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
        found.containers.insert(name.to_owned(), sum);
    }
    let dir = places.pods.join(pod.uid());
    for part in WRITTEN {
        let (bytes, inodes) = disk_usage(&dir.join(part));
        found.files = (found.files.0 + bytes, found.files.1 + inodes);
    }
    let volumes = dir.join("volumes/kubernetes.io~empty-dir");
    for volume in empty_dirs(pod) {
        found.volumes.insert(volume.name.clone(), disk_usage(&volumes.join(&volume.name)));
    }
    found
}

/// Limits of a pod: each emptyDir's, the whole pod's, each container's.
#[derive(Debug, Default)]
struct Limits {
    volumes: Vec<(String, u64)>,
    pod: Option<u64>,
    containers: Vec<(String, u64)>,
}

fn limits(pod: &Pod) -> Limits {
    let bytes = |text: &str| quantity::whole(text).and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
    let volumes = empty_dirs(pod)
        .filter_map(|v| Some((v.name.clone(), bytes(&v.empty_dir.as_ref()?.size_limit.as_ref()?.0)?)))
        .collect();
    let of = |c: &k8s_openapi::api::core::v1::Container| {
        let limit = u64::try_from(qos::limit(c, "ephemeral-storage")?).ok()?;
        Some((c.name.clone(), limit))
    };
    let containers: Vec<_> = crate::pod::containers(pod).filter_map(of).collect();
    let pod = (!containers.is_empty()).then(|| containers.iter().map(|(_, limit)| *limit).fold(0, u64::saturating_add));
    Limits { volumes, pod, containers }
}

/// The kubelet's signals for these limits.
pub const SIGNALS: [&str; 3] = ["emptydirfs.limit", "ephemeralpodfs.limit", "ephemeralcontainerfs.limit"];

/// What the kubelet says of the first limit that is passed, with its signal, or how far it is to the nearest.
fn compare(limits: &Limits, used: &OnDisk) -> Result<u64, (&'static str, String)> {
    let mut room = u64::MAX;
    let mut within = |used: u64, limit: u64| {
        room = room.min(limit.saturating_sub(used));
        used <= limit
    };
    for (name, limit) in &limits.volumes {
        if !within(used.volumes.get(name).map_or(0, |u| u.0), *limit) {
            let limit = quantity::binary(*limit);
            return Err((SIGNALS[0], format!("Usage of EmptyDir volume {name:?} exceeds the limit {limit:?}. ")));
        }
    }
    if let Some(limit) = limits.pod
        && !within(used.total().0, limit)
    {
        let limit = quantity::binary(limit);
        let message = format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ");
        return Err((SIGNALS[1], message));
    }
    for (name, limit) in &limits.containers {
        if !within(used.containers.get(name).map_or(0, |u| u.0), *limit) {
            let limit = quantity::binary(*limit);
            return Err((
                SIGNALS[2],
                format!("Container {name} exceeded its local ephemeral storage limit {limit:?}. "),
            ));
        }
    }
    Ok(room)
}

/// How much may have been added to a disk until now.
#[derive(Debug, Clone, Copy)]
struct Disk {
    written: Option<u64>,
    available: u64,
}

impl Disk {
    fn look(path: &Path) -> Self {
        let available = file_system(path).map_or(0, |f| f.available);
        Self { written: written(path).map(|w| w + memory().unwritten), available }
    }

    /// Bytes that may be new since `before`; space can also be taken without writing (fallocate).
    fn growth(self, before: Self) -> Option<u64> {
        let written = self.written?.saturating_sub(before.written?);
        Some(written.max(before.available.saturating_sub(self.available)))
    }
}

#[derive(Debug)]
struct Measured {
    at: Instant,
    disks: Vec<Disk>,
    room: u64,
    limits: String,
}

/// Remembers how far each pod was from its limits.
#[derive(Debug, Default)]
pub struct Watch {
    pods: HashMap<String, Measured>,
}

impl Watch {
    /// The pods that use more than they may, by which signal, and what the kubelet says of them. Walks the folders of those
    /// that may have come near their limits.
    pub fn over<'a>(
        &mut self,
        pods: impl Iterator<Item = &'a Pod>,
        places: &Places,
    ) -> Vec<(String, &'static str, String)> {
        let mut over = Vec::new();
        let mut disks = None;
        let mut seen = HashMap::new();
        for pod in pods {
            let limits = limits(pod);
            if limits.volumes.is_empty() && limits.pod.is_none() {
                continue;
            }
            let disks = disks.get_or_insert_with(|| [&places.pods, &places.logs].map(|p| Disk::look(p)).to_vec());
            let stated = format!("{limits:?}");
            let before = self.pods.remove(pod.uid()).filter(|m| m.limits == stated && !due(m, disks));
            let measured = match before {
                Some(measured) => measured,
                None => match compare(&limits, &measure(pod, places)) {
                    Ok(room) => Measured { at: Instant::now(), disks: disks.clone(), room, limits: stated },
                    Err((signal, message)) => {
                        over.push((pod.uid().to_owned(), signal, message));
                        continue;
                    }
                },
            };
            seen.insert(pod.uid().to_owned(), measured);
        }
        self.pods = seen;
        over
    }
}

fn due(measured: &Measured, disks: &[Disk]) -> bool {
    let age = measured.at.elapsed();
    measured.disks.iter().zip(disks).any(|(before, now)| match now.growth(*before) {
        Some(growth) => growth >= measured.room / STEP || growth > 0 && age >= AT_LATEST,
        None => age >= BLIND,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"uid": "u", "name": "p", "namespace": "n"}, "spec": {
            "containers": [{"name": "a", "resources": {"limits": {"ephemeral-storage": "10Mi"}}}, {"name": "b"}],
            "volumes": [{"name": "e", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "m", "emptyDir": {"medium": "Memory",
                "sizeLimit": "1Mi"}}, {"name": "free", "emptyDir": {}}]},
            "status": {"containerStatuses": [{"name": "a", "containerID": "pikelet://1", "image": "", "imageID": "",
                "ready": true, "restartCount": 0}]}}))
        .unwrap()
    }

    #[test]
    fn every_limit_is_held() {
        let of = |volume: u64, a: u64, free: u64| OnDisk {
            containers: [("a".to_owned(), (a << 20, 1))].into(),
            volumes: [("e".to_owned(), (volume << 20, 1)), ("free".to_owned(), (free << 20, 1))].into(),
            files: (0, 4),
        };
        let limits = limits(&pod());
        assert_eq!(limits.volumes, [("e".to_owned(), 1 << 20)], "not the one in memory");
        assert_eq!(compare(&limits, &of(0, 4, 1)), Ok(1 << 20));
        let message = |used| compare(&limits, &used).unwrap_err().1;
        assert_eq!(message(of(2, 0, 0)), "Usage of EmptyDir volume \"e\" exceeds the limit \"1Mi\". ");
        assert_eq!(
            message(of(1, 1, 9)),
            "Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. "
        );
        let limits = Limits { pod: None, ..limits };
        assert_eq!(
            compare(&limits, &of(0, 11, 0)).unwrap_err(),
            (SIGNALS[2], "Container a exceeded its local ephemeral storage limit \"10Mi\". ".to_owned())
        );
    }

    #[test]
    fn folders_are_walked_when_they_may_have_grown() {
        let disk = |written: u64, available: u64| Disk { written: Some(written), available };
        let measured =
            |room: u64| Measured { at: Instant::now(), disks: vec![disk(100, 1000)], room, limits: String::new() };
        assert!(!due(&measured(500), &[disk(100, 1000)]));
        assert!(!due(&measured(500), &[disk(300, 900)]));
        assert!(due(&measured(500), &[disk(350, 1000)]), "written");
        assert!(due(&measured(500), &[disk(100, 700)]), "taken");
        assert!(!due(&measured(500), &[Disk { written: None, available: 1000 }]));
    }

    #[test]
    fn write_layers_logs_and_volumes_are_measured() {
        let root = std::env::temp_dir().join(format!("pikelet-storage-{}", std::process::id()));
        let places = Places { pods: root.join("pods"), containers: root.join("containers"), logs: root.join("logs") };
        let write = |path: PathBuf, bytes: usize| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![1; bytes]).unwrap();
        };
        write(places.containers.join("1/upper/x"), 100_000);
        write(places.logs.join("n_p_u/a/0.log"), 200_000);
        write(places.pods.join("u/volumes/kubernetes.io~empty-dir/e/x"), 2_000_000);
        let found = measure(&pod(), &places);
        assert!(found.containers["a"].0 >= 300_000 && found.containers["a"].0 < 400_000);
        assert!(found.volumes["e"].0 >= 2_000_000 && !found.volumes.contains_key("m"));
        let over = Watch::default().over([&pod()].into_iter(), &places);
        assert!(over[0].1 == SIGNALS[0] && over[0].2.contains("EmptyDir volume \"e\""));
        std::fs::remove_dir_all(places.pods.join("u/volumes")).unwrap();
        write(places.pods.join("u/etc-hosts"), 6_000_000);
        write(places.pods.join("u/containers/a/12345678"), 6_000_000);
        assert!(measure(&pod(), &places).files.0 >= 12_000_000);
        let over = Watch::default().over([&pod()].into_iter(), &places);
        assert!(over[0].2.starts_with("Pod ephemeral local storage usage exceeds"), "{over:?}");
        std::fs::remove_dir_all(&root).unwrap();
    }
}
