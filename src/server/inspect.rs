//! `/inspect/{namespace}/{pod}` of the local socket: a pod as the runtime has it. Environments are left out: they hold
//! secrets.

use std::collections::HashMap;

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::api::Kubelet;
use super::commands::find_pod;
use super::streaming::upgrade::Refused;
use crate::pod::PodExt;
use crate::pod::container::{LABEL_IMAGE, LABEL_IMAGE_ID, exit_reason};
use crate::runtime::{ContainerInfo, SandboxInfo};

/// A time of the runtime as the API writes it.
fn time(nanos: i64) -> Option<String> {
    jiff::Timestamp::from_nanosecond(i128::from(nanos)).ok().map(|t| t.to_string())
}

fn pod_part(pod: &Pod) -> Value {
    let status = pod.status.clone().unwrap_or_default();
    json!({
        "name": pod.name(), "namespace": pod.ns(), "uid": pod.uid(), "labels": pod.metadata.labels,
        "static": pod.is_static(), "phase": status.phase, "qosClass": status.qos_class,
        "restartPolicy": pod.restart_policy(), "startTime": status.start_time,
        "podIPs": status.pod_ips.iter().flatten().map(|ip| &ip.ip).collect::<Vec<_>>(),
    })
}

fn sandbox_part(kubelet: &Kubelet, info: &SandboxInfo) -> Value {
    let spec = &info.spec;
    json!({
        "id": spec.id, "attempt": spec.attempt, "createdAt": time(info.created_at), "pid": kubelet.runtime.shim(&spec.id),
        "netns": if spec.host_network { None } else { kubelet.runtime.netns_path(&spec.id) },
        "cgroup": kubelet.runtime.cgroup_path(&spec.cgroup), "hostname": spec.hostname,
        "hostNetwork": spec.host_network, "hostIPC": spec.host_ipc, "hostPID": spec.host_pid,
        "shareProcessNamespace": spec.share_process_namespace, "userNamespace": spec.user_namespace,
        "resources": spec.resources,
    })
}

fn container_part(kubelet: &Kubelet, sandbox: &SandboxInfo, info: &ContainerInfo) -> Value {
    let spec = &info.spec;
    let state = match (info.started_at, &info.exit) {
        (_, Some(_)) => "exited",
        (Some(_), None) => "running",
        (None, None) => "created",
    };
    let exit = info.exit.as_ref().map(|exit| {
        json!({"code": exit.code, "signal": exit.signal, "reason": exit_reason(exit),
            "finishedAt": time(exit.finished_at)})
    });
    let cgroup = format!("{}/{}", sandbox.spec.cgroup, spec.id);
    json!({
        "name": spec.name, "id": spec.id, "attempt": spec.attempt, "state": state,
        "pid": if state == "running" { Some(info.pid) } else { None },
        "createdAt": time(info.created_at), "startedAt": info.started_at.and_then(time), "exit": exit,
        "image": spec.labels.get(LABEL_IMAGE), "imageID": spec.labels.get(LABEL_IMAGE_ID),
        "cgroup": kubelet.runtime.cgroup_path(&cgroup), "rootfs": spec.rootfs, "logPath": spec.log_path,
        "mounts": spec.mounts, "command": spec.args, "workingDir": spec.cwd, "user": spec.user,
        "privileged": spec.privileged, "readOnlyRootFilesystem": spec.read_only_rootfs, "tty": spec.tty,
        "devices": spec.devices, "resources": spec.resources, "oomScoreAdj": spec.oom_score_adj,
    })
}

/// The pod, its sandbox (`null` when it has none), and every run of a container that the sandbox still holds.
pub async fn inspect(
    State(kubelet): State<Kubelet>,
    Path(names): Path<HashMap<String, String>>,
) -> Result<Json<Value>, Refused> {
    let pod = find_pod(&kubelet, &names)?;
    let Some(sandbox) = kubelet.runtime.sandbox_of(pod.uid()) else {
        return Ok(Json(json!({"pod": pod_part(&pod), "sandbox": null, "containers": []})));
    };
    let info = kubelet.runtime.inspect(&sandbox).await;
    let info = info.map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    let containers: Vec<Value> = info.containers.iter().map(|c| container_part(&kubelet, &info, c)).collect();
    Ok(Json(json!({"pod": pod_part(&pod), "sandbox": sandbox_part(&kubelet, &info), "containers": containers})))
}
