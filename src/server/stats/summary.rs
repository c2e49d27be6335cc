//! `/stats/summary` (Kubernetes' `stats/v1alpha1.Summary`).

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use axum::Json;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use k8s_openapi::api::core::v1::Volume;
use serde_json::{Value, json};

use super::{ContainerReading, PodReading, apart, read};
use crate::image::VOLUMES;
use crate::machine::folder_usage::disk_usage;
use crate::machine::usage::{self, FileSystem, file_system, node_usage};
use crate::pod::PodExt;
use crate::runtime::{Interface, Usage, interfaces};
use crate::server::api::Kubelet;
use crate::volume::ClaimFigures;

/// CPU times of the last answer, from which the present use is told.
#[derive(Default)]
pub struct Last(Mutex<HashMap<String, (Instant, u64)>>);

impl Last {
    /// Nanoseconds of CPU per second since the last answer; `None` the first time.
    fn rate(&self, key: &str, cpu: u64) -> Option<u64> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (then, before) = map.insert(key.to_owned(), (now, cpu))?;
        let nanos = now.duration_since(then).as_nanos().max(1);
        u64::try_from(u128::from(cpu.saturating_sub(before)) * 1_000_000_000 / nanos).ok()
    }

    fn keep_only(&self, keys: &[&str]) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.retain(|key, _| keys.contains(&key.as_str()));
    }
}

/// The answer.
pub async fn summary(State(kubelet): State<Kubelet>, Query(query): Query<HashMap<String, String>>) -> Response {
    let only = query.get("only_cpu_and_memory").is_some_and(|v| v == "true");
    let claims = if only { Vec::new() } else { kubelet.volumes.claims(&kubelet.pods.list()).await };
    // walking folders takes time
    match apart(move || compute(&kubelet, only, &claims)).await {
        Ok(summary) => Json(summary).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}

fn compute(kubelet: &Kubelet, only: bool, claims: &[ClaimFigures]) -> Value {
    let time = jiff::Timestamp::now().to_string();
    let pods = read(kubelet);
    let keys: Vec<&str> = pods
        .iter()
        .flat_map(|p| p.containers.iter().map(|c| c.id.as_str()).chain([p.cgroup.as_str()]))
        .chain(["/"])
        .collect();
    kubelet.last.keep_only(&keys);
    let node = node_usage();
    let root = file_system(&kubelet.root_dir).unwrap_or_default();
    let started = jiff::Timestamp::from_second(node.booted as i64).unwrap_or_default().to_string();
    let mut summary = json!({
        "node": {
            "nodeName": kubelet.node,
            "startTime": started,
            "cpu": {"time": time, "usageNanoCores": kubelet.last.rate("/", node.cpu).unwrap_or_default(),
                "usageCoreNanoSeconds": node.cpu},
            "memory": {"time": time, "availableBytes": node.total.saturating_sub(node.working_set),
                "usageBytes": node.memory, "workingSetBytes": node.working_set, "rssBytes": node.rss},
            "swap": {"time": time, "swapUsageBytes": node.swap},
        },
        "pods": pods.iter().map(|p| pod(kubelet, p, &time, root, only, claims)).collect::<Vec<_>>(),
    });
    if !only {
        let (images, _) = disk_usage(&kubelet.root_dir.join("images"));
        summary["node"]["network"] = network(&interfaces(&usage::interfaces_text()), &time);
        summary["node"]["fs"] = fs(root, root.used, root.inodes.saturating_sub(root.inodes_free), &time);
        let image_fs = fs(root, images, 0, &time);
        summary["node"]["runtime"] = json!({"imageFs": image_fs, "containerFs": image_fs});
        let (now, most) = usage::processes();
        summary["node"]["rlimit"] = json!({"time": time, "maxpid": most, "curproc": now});
    }
    summary
}

fn cpu_memory(kubelet: &Kubelet, key: &str, usage: &Usage, time: &str) -> (Value, Value) {
    let mut memory = json!({"time": time, "usageBytes": usage.memory, "workingSetBytes": usage.working_set,
        "rssBytes": usage.rss, "pageFaults": usage.page_faults, "majorPageFaults": usage.major_page_faults});
    if let Some(limit) = usage.memory_limit {
        memory["availableBytes"] = json!(limit.saturating_sub(usage.working_set));
    }
    let mut cpu = json!({"time": time, "usageCoreNanoSeconds": usage.cpu});
    if let Some(rate) = kubelet.last.rate(key, usage.cpu) {
        cpu["usageNanoCores"] = json!(rate);
    }
    (cpu, memory)
}

fn pod(
    kubelet: &Kubelet,
    reading: &PodReading,
    time: &str,
    root: FileSystem,
    only: bool,
    claims: &[ClaimFigures],
) -> Value {
    let pod = &reading.pod;
    let (cpu, memory) = cpu_memory(kubelet, &reading.cgroup, &reading.usage, time);
    let started = pod.status.as_ref().and_then(|s| s.start_time.clone());
    let logs = kubelet.logs_dir.join(format!("{}_{}_{}", pod.ns(), pod.name(), pod.uid()));
    let containers: Vec<Value> =
        reading.containers.iter().map(|c| container(kubelet, c, &logs, time, root, only)).collect();
    let mut value = json!({
        "podRef": {"name": pod.name(), "namespace": pod.ns(), "uid": pod.uid()},
        "startTime": started, "cpu": cpu, "memory": memory,
        "swap": {"time": time, "swapUsageBytes": reading.usage.swap},
        "process_stats": {"process_count": reading.usage.processes},
        "containers": containers,
    });
    if only {
        return value;
    }
    if !reading.interfaces.is_empty() {
        value["network"] = network(&reading.interfaces, time);
    }
    let volumes = kubelet.root_dir.join("pods").join(pod.uid()).join("volumes");
    let (mut used, mut inodes) = (0, 0);
    let mut list = Vec::new();
    let own = |v: &&Volume| v.persistent_volume_claim.is_none() && v.ephemeral.is_none();
    for entry in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter(own) {
        let Some(dir) = volume_dir(&volumes, &entry.name) else { continue };
        let (bytes, files) = disk_usage(&dir);
        let on = file_system(&dir).unwrap_or(root);
        let mut volume = fs(on, bytes, files, time);
        volume["name"] = json!(entry.name);
        list.push(volume);
        used += bytes;
        inodes += files;
    }
    for claim in claims.iter().filter(|c| c.pod_uid == pod.uid()) {
        let mut volume = fs(claim.of, claim.of.used, claim.of.inodes.saturating_sub(claim.of.inodes_free), time);
        volume["name"] = json!(claim.volume);
        volume["pvcRef"] = json!({"namespace": claim.namespace, "name": claim.claim});
        list.push(volume);
    }
    let write_layers = containers_used(&value);
    value["volume"] = json!(list);
    value["ephemeral-storage"] = fs(root, used + write_layers, inodes, time);
    value
}

/// The folder of a volume: `<volumes>/<kind>/<name>`.
fn volume_dir(volumes: &Path, name: &str) -> Option<std::path::PathBuf> {
    let kinds = std::fs::read_dir(volumes).ok()?.flatten();
    kinds.map(|kind| kind.path().join(name)).find(|dir| dir.is_dir())
}

fn containers_used(pod: &Value) -> u64 {
    let containers = pod["containers"].as_array().into_iter().flatten();
    containers.flat_map(|c| [&c["rootfs"]["usedBytes"], &c["logs"]["usedBytes"]]).filter_map(Value::as_u64).sum()
}

fn container(
    kubelet: &Kubelet,
    reading: &ContainerReading,
    logs: &Path,
    time: &str,
    root: FileSystem,
    only: bool,
) -> Value {
    let (cpu, memory) = cpu_memory(kubelet, &reading.id, &reading.usage, time);
    let started = jiff::Timestamp::from_millisecond((reading.started * 1000.0) as i64).unwrap_or_default().to_string();
    let mut value = json!({"name": reading.name, "startTime": started, "cpu": cpu, "memory": memory,
        "swap": {"time": time, "swapUsageBytes": reading.usage.swap}});
    if !only {
        let dir = kubelet.root_dir.join("containers").join(&reading.id);
        let (layer, volumes) = (disk_usage(&dir.join("upper")), disk_usage(&dir.join(VOLUMES)));
        let (bytes, inodes) = (layer.0 + volumes.0, layer.1 + volumes.1);
        value["rootfs"] = fs(root, bytes, inodes, time);
        let (bytes, inodes) = disk_usage(&logs.join(&reading.name));
        value["logs"] = fs(root, bytes, inodes, time);
    }
    value
}

fn fs(of: FileSystem, used: u64, inodes_used: u64, time: &str) -> Value {
    json!({"time": time, "availableBytes": of.available, "capacityBytes": of.capacity, "usedBytes": used,
        "inodesFree": of.inodes_free, "inodes": of.inodes, "inodesUsed": inodes_used})
}

fn network(interfaces: &[Interface], time: &str) -> Value {
    let one = |i: &Interface| {
        json!({"name": i.name, "rxBytes": i.received[0], "rxErrors": i.received[2], "txBytes": i.sent[0],
            "txErrors": i.sent[2]})
    };
    let list: Vec<Value> = interfaces.iter().map(one).collect();
    let first = interfaces.iter().find(|i| i.name == "eth0").or_else(|| interfaces.first());
    let mut value = first.map_or_else(|| json!({}), one);
    value["time"] = json!(time);
    value["interfaces"] = json!(list);
    value
}
