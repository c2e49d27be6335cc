//! The status of a pod from what its worker knows: phase, conditions and container statuses.
//!
//! Rules: Kubernetes "Pod Lifecycle" (pod phase, container states, pod conditions).

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::allocation::{Resizing, Unfit};
use super::container::{ContainerState, Containers};
use super::container_status::container_status;
use super::ephemeral::ephemeral;
use super::{PodExt, is_sidecar, qos, restart_all};

/// What the status is computed from.
pub struct Facts<'a> {
    /// The pod as last accepted.
    pub pod: &'a Pod,
    /// Its status as last computed (condition times and the phase carry over).
    pub previous: &'a PodStatus,
    /// Container states by name.
    pub containers: &'a Containers,
    /// The sandbox is up and has its network.
    pub sandbox_ready: bool,
    /// Pod addresses.
    pub pod_ips: &'a [IpAddr],
    /// Node addresses.
    pub host_ips: &'a [IpAddr],
    /// Reason and message of a pod that was refused or failed as a whole.
    pub failed: Option<(&'a str, &'a str)>,
    /// It was never taken: it has no containers that could be told of.
    pub refused: bool,
    /// Why its containers cannot be made yet.
    pub waits_for: Option<&'a str>,
    /// How far a resize has come.
    pub resizing: &'a Resizing,
    /// Message of a pod this node has given up to help others.
    pub evicted: Option<&'a str>,
    /// Its containers are being ended to be started anew, all of them.
    pub restarting_all: bool,
    /// Being deleted.
    pub terminating: bool,
}

fn now() -> Time {
    Time(jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or_default())
}

/// True when every init container that must end has ended well and every sidecar was started.
fn initialized(facts: &Facts) -> bool {
    facts.pod.init_containers().iter().all(|c| {
        facts.containers.get(&c.name).is_some_and(|s| if is_sidecar(c) { s.current.is_some() } else { s.succeeded() })
    })
}

/// Why the pod has failed as a whole, once none of its containers runs any more.
fn failed<'a>(facts: &Facts<'a>) -> Option<(&'a str, &'a str)> {
    facts.failed.filter(|_| !running(facts))
}

fn running(facts: &Facts) -> bool {
    facts.containers.values().any(|s| s.running())
}

/// `Succeeded` or `Failed` once nothing of the pod is to be started again; sidecars may still run.
pub fn outcome(facts: &Facts) -> Option<&'static str> {
    if facts.failed.is_some() {
        return Some("Failed");
    }
    if facts.restarting_all {
        return None;
    }
    let restarts = !facts.terminating;
    for container in facts.pod.init_containers().iter().filter(|c| !is_sidecar(c)) {
        let state = facts.containers.get(&container.name);
        let lost =
            |s: &ContainerState| s.exit().is_some_and(|e| e.code != 0) && !s.wants_restart(facts.pod, &container.name);
        if state.is_some_and(|s| lost(s)) {
            return Some("Failed");
        }
    }
    if !initialized(facts) {
        return None;
    }
    let states: Vec<_> = facts.pod.app_containers().iter().map(|c| facts.containers.get(&c.name)).collect();
    let ended = |c: &Container| {
        let state = facts.containers.get(&c.name);
        state.is_some_and(|s| s.exit().is_some() && !(restarts && s.wants_restart(facts.pod, &c.name)))
    };
    if !facts.pod.app_containers().iter().all(ended) {
        return None;
    }
    Some(if states.iter().all(|s| s.is_some_and(|s| s.succeeded())) { "Succeeded" } else { "Failed" })
}

/// `Pending`, `Running`, `Succeeded` or `Failed`. A terminal phase never goes back, and comes when nothing runs any more.
pub(super) fn phase(facts: &Facts) -> &'static str {
    match facts.previous.phase.as_deref() {
        Some("Succeeded") => return "Succeeded",
        Some("Failed") => return "Failed",
        _ => {}
    }
    if let Some(outcome) = outcome(facts).filter(|_| !running(facts)) {
        return outcome;
    }
    // of a pod that is deleted nothing is to come: controllers wait for its end (the kubelet's status manager)
    if facts.pod.metadata.deletion_timestamp.is_some() && !facts.pod.is_static() && !running(facts) {
        return "Failed";
    }
    let begun = |c: &Container| {
        let current = facts.containers.get(&c.name).and_then(|s| s.current.as_ref());
        current.is_some_and(|c| c.started_at.is_some() || c.exit.is_some())
    };
    let up = initialized(facts) && facts.pod.app_containers().iter().all(begun);
    if up { "Running" } else { "Pending" }
}

fn condition(
    previous: &PodStatus,
    type_: &str,
    value: bool,
    reason: Option<&str>,
    message: Option<String>,
) -> PodCondition {
    let status = if value { "True" } else { "False" };
    let old = previous.conditions.iter().flatten().find(|c| c.type_ == type_);
    let transition = old.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.map(str::to_owned),
        message,
        last_transition_time: Some(transition.unwrap_or_else(now)),
        ..PodCondition::default()
    }
}

/// The conditions of a resize.
const RESIZE: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

fn resize_conditions(facts: &Facts) -> impl Iterator<Item = PodCondition> {
    let one = |type_, reason, message: Option<String>| condition(facts.previous, type_, true, reason, message);
    let pending = facts.resizing.pending.as_ref().map(|unfit| match unfit {
        Unfit::Infeasible(message) => one(RESIZE[0], Some("Infeasible"), Some(message.clone())),
        Unfit::Deferred(message) => one(RESIZE[0], Some("Deferred"), Some(message.clone())),
    });
    let progress =
        facts.resizing.progress.as_ref().map(|error| one(RESIZE[1], error.as_ref().map(|_| "Error"), error.clone()));
    pending.into_iter().chain(progress)
}

fn unready_names<'a>(statuses: impl Iterator<Item = &'a ContainerStatus>) -> String {
    let names: Vec<_> = statuses.filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    format!("containers with unready status: [{}]", names.join(" "))
}

/// What `readinessGates` still wait for: conditions that others set.
fn closed_gate(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let closed = |gate: &String| match conditions.into_iter().flatten().find(|c| c.type_ == *gate) {
        None => Some(format!("corresponding condition of pod readiness gate {gate:?} does not exist.")),
        Some(found) if found.status == "True" => None,
        Some(found) => Some(format!("the status of pod readiness gate {gate:?} is not \"True\", but {}", found.status)),
    };
    let gates = pod.spec.iter().flat_map(|s| s.readiness_gates.iter().flatten());
    let waits: Vec<_> = gates.filter_map(|g| closed(&g.condition_type)).collect();
    (!waits.is_empty()).then(|| waits.join("; "))
}

/// The whole status.
pub fn compute(facts: &Facts) -> PodStatus {
    let phase = phase(facts);
    let done = matches!(phase, "Succeeded" | "Failed");
    let init_done = initialized(facts);
    let was = |c: &PodCondition| c.type_ == "Initialized" && c.status == "True";
    // it is told once: init containers that run again do not take it back
    let told_initialized = init_done || facts.previous.conditions.iter().flatten().any(was);
    let fallback = (if init_done { "ContainerCreating" } else { "PodInitializing" }, facts.waits_for);
    let build = |list: &[Container], init: bool| -> Vec<ContainerStatus> {
        list.iter().map(|c| container_status(c, facts.containers.get(&c.name).map(|s| &**s), init, fallback)).collect()
    };
    // an agent that came back after the pod had ended knows only what was reported then
    let over = matches!(facts.previous.phase.as_deref(), Some("Succeeded" | "Failed"));
    let told = |list: &[Container], init, before: &Option<Vec<ContainerStatus>>| match before {
        _ if facts.refused => Vec::new(),
        Some(before) if done && facts.containers.is_empty() => before.clone(),
        None if over && facts.containers.is_empty() => Vec::new(),
        _ => build(list, init),
    };
    let inits = told(facts.pod.init_containers(), true, &facts.previous.init_container_statuses);
    let apps = told(facts.pod.app_containers(), false, &facts.previous.container_statuses);
    let mut ephemerals = told(&ephemeral(facts.pod), false, &facts.previous.ephemeral_container_statuses);
    for status in &mut ephemerals {
        // they take no traffic
        status.ready = false;
    }
    let sidecars = || facts.pod.init_containers().iter().zip(&inits).filter(|(c, _)| is_sidecar(c)).map(|(_, s)| s);
    let serving = || sidecars().chain(&apps);
    let all_ready = !done && init_done && serving().all(|s| s.ready);
    let reason = match phase {
        "Succeeded" => Some("PodCompleted"),
        "Failed" => Some("PodFailed"),
        _ if all_ready => None,
        _ => Some("ContainersNotReady"),
    };
    let message = (!all_ready && !done).then(|| unready_names(serving()));
    let mut conditions = vec![
        // also of one that no scheduler has seen
        condition(facts.previous, "PodScheduled", true, None, None),
        condition(facts.previous, "PodReadyToStartContainers", facts.sandbox_ready, None, None),
        condition(
            facts.previous,
            "Initialized",
            told_initialized,
            match (told_initialized, phase) {
                (true, "Succeeded") => Some("PodCompleted"),
                (true, _) => None,
                _ => Some("ContainersNotInitialized"),
            },
            (!told_initialized).then(|| unready_names(inits.iter()).replace("unready", "incomplete")),
        ),
        match closed_gate(facts.pod).filter(|_| all_ready) {
            Some(gate) => condition(facts.previous, "Ready", false, Some("ReadinessGatesNotReady"), Some(gate)),
            None => condition(facts.previous, "Ready", all_ready, reason, message.clone()),
        },
        condition(facts.previous, "ContainersReady", all_ready, reason, message),
    ];
    if restart_all::possible(facts.pod) {
        let told = facts.restarting_all.then(|| "container exited with restart policy rule".to_owned());
        let reason = told.is_some().then_some("RestartAllContainersStarted");
        conditions.push(condition(facts.previous, "AllContainersRestarting", told.is_some(), reason, told));
    }
    conditions.extend(resize_conditions(facts));
    conditions.extend(facts.evicted.map(|message| {
        let reason = Some("TerminationByKubelet");
        condition(facts.previous, "DisruptionTarget", true, reason, Some(message.to_owned()))
    }));
    let generation = facts.pod.metadata.generation;
    for condition in &mut conditions {
        condition.observed_generation = generation;
    }
    let there = || facts.pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    for other in there() {
        // those of a resize that is over go
        if !conditions.iter().any(|c| c.type_ == other.type_) && !RESIZE.contains(&other.type_.as_str()) {
            conditions.push(other.clone());
        }
    }
    // in the order of the API server, so that the two compare equal
    conditions.sort_by_key(|c| there().position(|t| t.type_ == c.type_).unwrap_or(usize::MAX));
    let ip = |ip: &IpAddr| ip.to_string();
    let given = qos::of_whole_pod(facts.pod).filter(|_| !facts.refused);
    let resources = match facts.resizing.progress {
        // it has what it had until all is changed
        Some(_) => facts.previous.resources.clone(),
        None => given.cloned(),
    };
    PodStatus {
        allocated_resources: given.and_then(|g| g.requests.clone()),
        resources,
        phase: Some(phase.to_owned()),
        reason: failed(facts).map(|f| f.0.to_owned()).or_else(|| facts.previous.reason.clone()),
        message: failed(facts).map(|f| f.1.to_owned()).or_else(|| facts.previous.message.clone()),
        conditions: Some(conditions),
        init_container_statuses: (!inits.is_empty()).then_some(inits),
        container_statuses: (!apps.is_empty()).then_some(apps),
        ephemeral_container_statuses: (!ephemerals.is_empty()).then_some(ephemerals),
        pod_ip: facts.pod_ips.first().map(ip),
        pod_ips: (!facts.pod_ips.is_empty()).then(|| facts.pod_ips.iter().map(|i| PodIP { ip: ip(i) }).collect()),
        host_ip: facts.host_ips.first().map(ip),
        host_ips: Some(facts.host_ips.iter().map(|i| HostIP { ip: ip(i) }).collect()),
        start_time: facts.previous.start_time.clone().or_else(|| Some(now())),
        qos_class: Some(qos::qos_class(facts.pod).to_owned()),
        observed_generation: generation,
        ..PodStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{ContainerInfo, ContainerSpec, ExitRecord};

    fn state(started: bool, code: Option<i32>) -> Box<ContainerState> {
        let exit = code.map(|code| ExitRecord { code, signal: None, oom_killed: false, finished_at: 0 });
        let spec = ContainerSpec { id: "c".into(), ..ContainerSpec::default() };
        let info = ContainerInfo { spec, pid: 1, started_at: started.then_some(0), created_at: 0, exit };
        Box::new(ContainerState { current: Some(info), ..ContainerState::default() })
    }

    fn phase_of(policy: &str, codes: &[Option<i32>]) -> String {
        let names: Vec<_> = (0..codes.len()).map(|i| serde_json::json!({"name": format!("c{i}")})).collect();
        let pod = serde_json::json!({"metadata": {}, "spec": {"restartPolicy": policy, "containers": names}});
        phase_in(pod, codes)
    }

    fn phase_in(pod: serde_json::Value, codes: &[Option<i32>]) -> String {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let containers = codes.iter().enumerate().map(|(i, c)| (format!("c{i}"), state(true, *c))).collect();
        let facts = Facts {
            pod: &pod,
            previous: &PodStatus::default(),
            containers: &containers,
            sandbox_ready: true,
            pod_ips: &[],
            host_ips: &[],
            failed: None,
            refused: false,
            waits_for: None,
            resizing: &Resizing::default(),
            evicted: None,
            restarting_all: false,
            terminating: pod.metadata.deletion_timestamp.is_some(),
        };
        compute(&facts).phase.unwrap()
    }

    #[test]
    fn deleted_pods_come_to_an_end_even_if_nothing_of_them_ran() {
        let pod = |containers: serde_json::Value| {
            serde_json::json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"containers": containers}})
        };
        assert_eq!(phase_in(pod(serde_json::json!([{"name": "never-made"}])), &[]), "Failed");
        let both = serde_json::json!([{"name": "c0"}, {"name": "never-made"}]);
        assert_eq!(phase_in(pod(both.clone()), &[None]), "Pending", "one runs still");
        assert_eq!(phase_in(pod(both), &[Some(0)]), "Failed");
        assert_eq!(phase_in(pod(serde_json::json!([{"name": "c0"}])), &[Some(0)]), "Succeeded");
    }

    #[test]
    fn phases_by_restart_policy() {
        assert_eq!(phase_of("Always", &[None, None]), "Running");
        assert_eq!(phase_of("Always", &[Some(0), Some(1)]), "Running");
        assert_eq!(phase_of("OnFailure", &[Some(0), Some(1)]), "Running");
        assert_eq!(phase_of("OnFailure", &[Some(0), Some(0)]), "Succeeded");
        assert_eq!(phase_of("Never", &[Some(0), None]), "Running");
        assert_eq!(phase_of("Never", &[Some(0), Some(137)]), "Failed");
        assert_eq!(phase_of("Never", &[Some(0), Some(0)]), "Succeeded");
    }
}
