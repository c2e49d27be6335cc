//! What a pod was given, and what its running containers have of it: kept with the pod's checkpoint, so that an agent
//! that starts again neither takes it back nor gives it twice.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use serde::{Deserialize, Serialize};

use super::devices::Given;
use crate::files::{self, Durability};
use crate::json;

const FILE: &str = "allocation.json";

/// Resources of a pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Allocated {
    /// `spec.resources`.
    pub pod: Option<ResourceRequirements>,
    /// Of each container and init container.
    pub containers: BTreeMap<String, ResourceRequirements>,
    /// What runs (container ids) have that were resized since they began.
    #[serde(default)]
    pub applied: BTreeMap<String, ResourceRequirements>,
    /// Devices of the board.
    #[serde(default, skip_serializing_if = "Given::is_empty")]
    pub devices: Given,
}

impl Allocated {
    /// What the pod's spec asks for.
    pub fn of(pod: &Pod) -> Self {
        let resources =
            |c: &k8s_openapi::api::core::v1::Container| (c.name.clone(), c.resources.clone().unwrap_or_default());
        Self {
            pod: pod.spec.as_ref().and_then(|s| s.resources.clone()),
            containers: crate::pod::containers(pod).map(resources).collect(),
            ..Self::default()
        }
    }

    /// True when both give the same.
    pub fn gives_as(&self, other: &Self) -> bool {
        self.pod == other.pod && self.containers == other.containers
    }

    /// Writes these resources into the pod's spec.
    pub fn put_into(&self, pod: &mut Pod) {
        let Some(spec) = pod.spec.as_mut() else { return };
        spec.resources.clone_from(&self.pod);
        for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
            if let Some(resources) = self.containers.get(&container.name) {
                container.resources = Some(resources.clone());
            }
        }
    }

    /// Reads what was written for the pod with that folder.
    pub fn load(pod_dir: &Path) -> Option<Self> {
        json::from_slice(&fs::read(pod_dir.join(FILE)).ok()?).ok()
    }

    /// Writes it (temporary name, rename) unless it is there; `Synced` also so that it outlives a power cut.
    pub fn save(&self, pod_dir: &Path, durability: Durability) -> std::io::Result<()> {
        if Self::load(pod_dir).as_ref() == Some(self) {
            return Ok(());
        }
        files::dir_kept(pod_dir, 0o750)?;
        let text = serde_json::to_vec(self).map_err(std::io::Error::other)?;
        files::write(&pod_dir.join(FILE), &text, 0o600, durability)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_outlives_the_agent() {
        let dir = std::env::temp_dir().join(format!("pikelet-allocation-{}", std::process::id()));
        let pod = |cpu: &str| -> Pod {
            serde_json::from_value(serde_json::json!({"metadata": {}, "spec": {"containers": [
                {"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}))
            .unwrap()
        };
        let unit = [("a/b".to_owned(), vec!["0".to_owned()])].into();
        let devices = [("c".to_owned(), unit)].into();
        let given = Allocated { devices, ..Allocated::of(&pod("1")) };
        given.save(&dir, Durability::Synced).unwrap();
        let read = Allocated::load(&dir).unwrap();
        assert_eq!(read, given);
        let mut wanted = pod("2");
        assert!(!read.gives_as(&Allocated::of(&wanted)));
        read.put_into(&mut wanted);
        assert_eq!(wanted, pod("1"));
        fs::remove_dir_all(&dir).unwrap();
    }
}
