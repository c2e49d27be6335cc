//! Statistics of node, pods and containers: read from cgroups when somebody asks, never sampled in between.

pub mod cadvisor;
pub mod own;
pub mod resource;
pub mod summary;
mod text;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::Semaphore;

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

/// Answers that read the machine on a thread, at once: more wait, and give their place up when nobody waits for them any more.
/// The threads are also those that pods are set up and taken down with.
static AT_ONCE: Semaphore = Semaphore::const_new(2);

/// Does such work; it keeps its place until it has ended, also when nobody waits for it.
pub async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let place = AT_ONCE.acquire().await.map_err(|e| e.to_string())?;
    let done = tokio::task::spawn_blocking(move || {
        let done = work();
        drop(place);
        done
    });
    done.await.map_err(|e| format!("reading statistics: {e}"))
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::text::Text;

    /// Names and labels of what is told, and that all can be read.
    fn told(text: &Text) -> BTreeMap<String, BTreeSet<String>> {
        let (mut found, mut seen) = (BTreeMap::<_, BTreeSet<_>>::new(), BTreeSet::new());
        for line in text.lines() {
            if let Some(head) = line.strip_prefix("# ") {
                let words: Vec<&str> = head.split(' ').take(2).collect();
                assert!(seen.insert(words.join(" ")), "twice: {line}");
                continue;
            }
            let end = line.find("} ").map_or_else(|| line.find(' '), |at| Some(at + 1)).unwrap();
            let series = &line[..end];
            assert!(seen.insert(series.to_owned()), "twice: {series}");
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let labels = labels.trim_end_matches('}').split(',').filter_map(|l| l.split_once('='));
            found.entry(name.to_owned()).or_default().extend(labels.map(|(label, _)| label.to_owned()));
        }
        found
    }

    #[tokio::test]
    async fn what_rules_and_dashboards_read_is_there_or_named_as_absent() {
        let (own, probes) = super::own::tests::told().await;
        let places = [
            ("/metrics", told(&own)),
            ("/metrics/probes", told(&probes)),
            ("/metrics/cadvisor", told(&super::cadvisor::tests::told())),
            ("/metrics/resource", told(&super::resource::tests::told())),
        ];
        let absent = include_str!("../../../docs/metrics.md").split_once("## Not served").unwrap().1;
        let mut count = 0;
        for line in include_str!("../../../tests/metrics.txt").lines().filter(|l| !l.is_empty() && !l.starts_with('#'))
        {
            count += 1;
            let words: Vec<&str> = line.split(' ').collect();
            let (place, name) = (words[0], words[1]);
            if place == "absent" {
                assert!(absent.contains(&format!("`{name}`")), "docs/metrics.md does not name {name}");
                assert!(places.iter().all(|(_, told)| !told.contains_key(name)), "{name} is there");
                continue;
            }
            let (_, told) = places.iter().find(|(p, _)| *p == place).expect(line);
            let labels = told.get(name).unwrap_or_else(|| panic!("{place} does not tell {name}"));
            for label in &words[2..] {
                assert!(labels.contains(*label), "{name} has no label {label}: {labels:?}");
            }
        }
        assert!(count > 80, "{count}");
    }
}
