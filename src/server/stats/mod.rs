//! Statistics of node, pods and containers: read from cgroups when somebody asks, never sampled in between.

pub mod cadvisor;
pub mod own;
pub mod resource;
pub mod summary;
mod text;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::api::Kubelet;
use super::commands::statuses;
use crate::pod::PodExt;
use crate::pod::qos::pod_cgroup;
use crate::runtime::{Interface, Usage};

/// A pod with a sandbox, at one moment.
pub struct PodReading {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its cgroup, from the agent's cgroup root.
    pub cgroup: String,
    /// All of it.
    pub usage: Usage,
    /// Its own interfaces; none with the host's network.
    pub interfaces: Vec<Interface>,
    /// Its running containers.
    pub containers: Vec<ContainerReading>,
}

/// A running container, at one moment.
pub struct ContainerReading {
    /// Name in the pod.
    pub name: String,
    /// Id.
    pub id: String,
    /// Image as the pod names it.
    pub image: String,
    /// Seconds since the epoch.
    pub started: f64,
    /// Its figures.
    pub usage: Usage,
}

/// Reads all pods.
pub fn read(kubelet: &Kubelet) -> Vec<PodReading> {
    let mut readings = Vec::new();
    for pod in kubelet.pods.list() {
        let Some(sandbox) = kubelet.runtime.sandbox_of(pod.uid()) else { continue };
        let cgroup = pod_cgroup(&pod);
        let Some(usage) = kubelet.runtime.usage(&cgroup) else { continue };
        let containers = containers(kubelet, &pod, &cgroup);
        let interfaces = if pod.host_network() { Vec::new() } else { kubelet.runtime.interfaces(&sandbox) };
        readings.push(PodReading { pod, cgroup, usage, interfaces, containers });
    }
    readings
}

fn containers(kubelet: &Kubelet, pod: &Pod, cgroup: &str) -> Vec<ContainerReading> {
    let reading = |status: &k8s_openapi::api::core::v1::ContainerStatus| {
        let running = status.state.as_ref()?.running.as_ref()?;
        let id = status.container_id.as_deref()?.strip_prefix("pikelet://")?.to_owned();
        let usage = kubelet.runtime.usage(&format!("{cgroup}/{id}"))?;
        let started = running.started_at.as_ref().map_or(0.0, |t| t.0.as_millisecond() as f64 / 1000.0);
        Some(ContainerReading { name: status.name.clone(), id, image: status.image.clone(), started, usage })
    };
    statuses(pod).filter_map(reading).collect()
}
