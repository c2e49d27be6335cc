//! In-place resize: what a changed spec asks for is given to the pod if it fits, then to its containers, live or by
//! starting them again, as their `resizePolicy` says.
//!
//! Rules: Kubernetes "Resize CPU and Memory Resources assigned to Containers" and "… to Pods".

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use super::{Allocated, LABEL_RESOURCES, Unfit};
use crate::files::Durability;
use crate::pod::qos;
use crate::pod::worker::Worker;
use crate::runtime::ContainerInfo;

/// How often a resize that does not fit, or could not be made, is tried again.
const AGAIN: Duration = Duration::from_secs(3);

/// How far a resize has come; the conditions of the pod's status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resizing {
    /// It was not given yet.
    pub pending: Option<Unfit>,
    /// It was given, and not all containers have it yet; an error's text when that failed.
    pub progress: Option<Option<String>>,
}

/// What a run that an earlier agent left has.
pub fn applied_before(allocated: Option<&Allocated>, run: &ContainerInfo) -> Option<ResourceRequirements> {
    let resized = allocated.and_then(|a| a.applied.get(&run.spec.id).cloned());
    resized.or_else(|| serde_json::from_str(run.spec.labels.get(LABEL_RESOURCES)?).ok())
}

/// Names of the resources, of cpu and memory, that differ.
fn differing(one: &ResourceRequirements, other: &ResourceRequirements) -> Vec<&'static str> {
    let of = |r: &ResourceRequirements, name: &str| {
        [&r.requests, &r.limits].map(|list| list.as_ref().and_then(|l| l.get(name)).map(|q| q.0.clone()))
    };
    ["cpu", "memory"].into_iter().filter(|name| of(one, name) != of(other, name)).collect()
}

/// True when a change of one of these resources needs a new start of the container.
fn needs_restart(container: &Container, changed: &[&str]) -> bool {
    let policies = container.resize_policy.iter().flatten();
    policies.into_iter().any(|p| p.restart_policy == "RestartContainer" && changed.contains(&p.resource_name.as_str()))
}

impl Worker {
    /// Takes a newer spec: what the pod was given stays until it is resized.
    pub(in crate::pod) fn take_resources(&mut self, pod: &mut Pod) {
        if let Some(allocated) = &self.allocated {
            self.desired = Some(Allocated::of(pod));
            allocated.put_into(pod);
        }
    }

    /// One step of a resize; returns when the next is due by itself.
    pub(in crate::pod) fn resize(&mut self) -> Option<Instant> {
        self.give();
        let mut error = self.apply();
        if self.resizing.progress.is_some() && !self.unapplied() {
            error = error.or(self.apply_to_pod());
            if error.is_none() {
                self.resizing.progress = None;
                self.event(None, "Normal", "ResizeCompleted", "Pod resize completed".to_owned());
            }
        }
        let waits = self.resizing.pending.is_some() || error.is_some();
        if self.unapplied() || error.is_some() {
            self.resizing.progress = Some(error);
        }
        waits.then(|| Instant::now() + AGAIN)
    }

    fn give(&mut self) {
        let (Some(allocated), Some(desired)) = (&self.allocated, &self.desired) else { return };
        if allocated.gives_as(desired) {
            if self.resizing.pending.take().is_some() {
                self.shared.allocations.settled(&self.uid);
            }
            return;
        }
        let mut pod = (*self.pod).clone();
        desired.put_into(&mut pod);
        let pod = Arc::new(pod);
        let given = self.shared.allocations.resize(&pod);
        if let Err(unfit) = given {
            if self.resizing.pending.as_ref() != Some(&unfit) {
                let (reason, message) = match &unfit {
                    Unfit::Infeasible(message) => ("ResizeInfeasible", message),
                    Unfit::Deferred(message) => ("ResizeDeferred", message),
                };
                self.event(None, "Warning", reason, message.clone());
            }
            self.resizing.pending = Some(unfit);
            return;
        }
        let (applied, devices) = (allocated.applied.clone(), allocated.devices.clone());
        self.allocated = Some(Allocated { applied, devices, ..desired.clone() });
        self.pod = pod;
        self.resizing = Resizing { pending: None, progress: Some(None) };
        self.save_allocated(Durability::Synced);
        self.event(None, "Normal", "ResizeStarted", "Pod resize started".to_owned());
    }

    /// Running containers that do not have what they were given.
    fn unapplied(&self) -> bool {
        crate::pod::containers(&self.pod).any(|c| self.change(c).is_some())
    }

    /// What of a running container is to be changed.
    fn change(&self, container: &Container) -> Option<Vec<&'static str>> {
        let state = self.containers.get(&container.name).filter(|s| s.running())?;
        let wanted = container.resources.clone().unwrap_or_default();
        let changed = differing(state.applied.as_ref()?, &wanted);
        (!changed.is_empty()).then_some(changed)
    }

    /// Gives running containers what the pod was given; returns why it could not.
    fn apply(&mut self) -> Option<String> {
        let pod = self.pod.clone();
        let changes: BTreeMap<_, _> =
            crate::pod::containers(&pod).filter_map(|c| Some((c.name.as_str(), self.change(c)?))).collect();
        if changes.is_empty() {
            return None;
        }
        let mut errors = Vec::new();
        let cgroup = qos::pod_cgroup(&pod);
        errors.extend(self.widen(&cgroup));
        for container in crate::pod::containers(&pod) {
            let Some(changed) = changes.get(container.name.as_str()) else { continue };
            if needs_restart(container, changed) {
                self.start_anew(container, format!("Container {} resize requires restart", container.name));
            } else if let Err(error) = self.change_now(container, &cgroup) {
                errors.push(error);
            }
        }
        self.save_allocated(Durability::Synced);
        (!errors.is_empty()).then(|| errors.join("; "))
    }

    /// The pod's cgroup is never less than its containers': wide before they change, as it shall be afterwards.
    fn widen(&self, cgroup: &str) -> Option<String> {
        let mut wide = qos::pod_resources(&self.pod, &self.shared.limits);
        (wide.cpu_quota, wide.memory_limit) = (wide.cpu_quota.map(|_| -1), wide.memory_limit.map(|_| -1));
        self.shared.runtime.limit(cgroup, &wide).err().map(|e| e.to_string())
    }

    /// The pod's own cgroup, once its containers have what they were given, and those of containers with the pod's limits.
    fn apply_to_pod(&self) -> Option<String> {
        self.sandbox.as_ref()?;
        let (cgroup, resources) = (qos::pod_cgroup(&self.pod), qos::pod_resources(&self.pod, &self.shared.limits));
        let within = crate::pod::containers(&self.pod).filter(|c| qos::shares_limits(&self.pod, c));
        let within: Vec<_> = within.filter_map(|c| Some((c, self.run_of(c)?.id))).collect();
        let mut errors = Vec::new();
        if !within.is_empty() {
            errors.extend(self.widen(&cgroup));
            errors.extend(within.into_iter().filter_map(|(c, id)| self.limit_run(c, &cgroup, &id).err()));
        }
        errors.extend(self.shared.runtime.limit(&cgroup, &resources).err().map(|e| e.to_string()));
        (!errors.is_empty()).then(|| errors.join("; "))
    }

    /// Limits a running container to what it was given.
    fn limit_run(&self, container: &Container, cgroup: &str, id: &str) -> Result<(), String> {
        let own = format!("{cgroup}/{id}");
        let resources = qos::container_resources(&self.pod, container, &self.shared.limits, self.shared.machine);
        let used = self.shared.runtime.usage(&own).map_or(0, |u| u.working_set);
        if let Some(limit) = resources.memory_limit.and_then(|l| u64::try_from(l).ok()).filter(|l| *l < used) {
            let name = &container.name;
            return Err(format!(
                "attempting to set container {name:?} memory limit ({limit}) below its current usage ({used})"
            ));
        }
        self.shared.runtime.limit(&own, &resources).map_err(|e| e.to_string())
    }

    fn change_now(&mut self, container: &Container, cgroup: &str) -> Result<(), String> {
        let Some(id) = self.run_of(container).map(|r| r.id) else { return Ok(()) };
        self.limit_run(container, cgroup, &id)?;
        let applied = container.resources.clone().unwrap_or_default();
        self.state(&container.name).applied = Some(applied.clone());
        if let Some(allocated) = &mut self.allocated {
            allocated.applied.insert(id, applied);
            let current: Vec<_> =
                self.containers.values().filter_map(|s| s.current.as_ref()).map(|c| c.spec.id.as_str()).collect();
            allocated.applied.retain(|run, _| current.contains(&run.as_str()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_say_what_needs_a_restart() {
        let container: Container = serde_json::from_value(serde_json::json!({"name": "c", "resizePolicy": [
            {"resourceName": "cpu", "restartPolicy": "NotRequired"},
            {"resourceName": "memory", "restartPolicy": "RestartContainer"}]}))
        .unwrap();
        assert!(needs_restart(&container, &["cpu", "memory"]) && !needs_restart(&container, &["cpu"]));
        let of = |cpu: &str, memory: &str| -> ResourceRequirements {
            serde_json::from_value(serde_json::json!({"requests": {"cpu": cpu}, "limits": {"memory": memory}})).unwrap()
        };
        assert_eq!(differing(&of("1", "1Mi"), &of("2", "1Mi")), ["cpu"]);
        assert!(differing(&of("1", "1Mi"), &of("1", "1Mi")).is_empty());
    }
}
