//! What is kept of a pod that is over: nothing counts such pods, so thousands of them must fit beside those that run.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::PodExt;
use super::checkpoint;
use super::worker::Worker;
use crate::allocator::trim_soon;
use crate::cluster::SOURCE;

/// Most labels that are kept, each of 380 bytes at most.
const LABELS: usize = 64;

fn container(of: &Container) -> Container {
    let Container { name, image, restart_policy, .. } = of;
    Container {
        name: name.clone(),
        image: image.clone(),
        restart_policy: restart_policy.clone(),
        ..Container::default()
    }
}

fn ephemeral(of: &EphemeralContainer) -> EphemeralContainer {
    EphemeralContainer { name: of.name.clone(), image: of.image.clone(), ..EphemeralContainer::default() }
}

/// Who the pod was, how it ended, and what its removal goes by.
fn remnant(pod: &Pod) -> Pod {
    let all = &pod.metadata;
    let source = all.annotations.iter().flatten().find(|(key, _)| *key == SOURCE);
    let metadata = ObjectMeta {
        name: all.name.clone(),
        namespace: all.namespace.clone(),
        uid: all.uid.clone(),
        resource_version: all.resource_version.clone(),
        generation: all.generation,
        creation_timestamp: all.creation_timestamp.clone(),
        deletion_timestamp: all.deletion_timestamp.clone(),
        deletion_grace_period_seconds: all.deletion_grace_period_seconds,
        labels: all.labels.clone().filter(|labels| labels.len() <= LABELS),
        annotations: source.map(|(key, value)| [(key.clone(), value.clone())].into()),
        ..ObjectMeta::default()
    };
    let spec = pod.spec.as_ref().map(|spec| PodSpec {
        containers: spec.containers.iter().map(container).collect(),
        init_containers: spec.init_containers.as_ref().map(|list| list.iter().map(container).collect()),
        ephemeral_containers: spec.ephemeral_containers.as_ref().map(|list| list.iter().map(ephemeral).collect()),
        node_name: spec.node_name.clone(),
        restart_policy: spec.restart_policy.clone(),
        priority: spec.priority,
        host_network: spec.host_network,
        termination_grace_period_seconds: spec.termination_grace_period_seconds,
        ..PodSpec::default()
    });
    Pod { metadata, spec, status: pod.status.clone() }
}

impl Worker {
    /// Lets go of what nothing needs any more of a pod that is over; its status stays as it is. A manifest's pod is small, and
    /// is looked at again when that changes.
    pub(super) fn reduce(&mut self) {
        if self.reduced || self.pod.is_static() {
            return;
        }
        self.reduced = true;
        self.pod = remnant(&self.pod).into();
        self.shared.objects.release(&self.uid);
        let pod = Pod { status: Some(self.status.clone()), ..(*self.pod).clone() };
        self.shared.table.put(&self.uid, pod.into());
        if checkpoint::is_large(&self.shared.pods_dir, &self.uid) {
            self.save();
        }
        trim_soon();
    }

    /// What is taken of a newer version of such a pod.
    pub(super) fn reduced(&self, pod: Pod) -> Pod {
        if self.reduced { remnant(&pod) } else { pod }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_left_of_a_large_pod() {
        let long = "x".repeat(1 << 20);
        let many: std::collections::BTreeMap<_, _> = (0..10_000).map(|n| (n.to_string(), String::new())).collect();
        let large = serde_json::json!({"name": "c", "image": "i", "command": [long], "env": [{"name": "a", "value": long}],
            "resources": {"limits": {"cpu": "1"}}});
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a", "namespace": "b", "uid": "c", "resourceVersion": "1", "labels": many,
                "annotations": {SOURCE: "api", "long": long}, "finalizers": [long]},
            "spec": {"containers": [large, large], "initContainers": [large], "nodeName": "n", "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 7, "volumes": [{"name": long}]},
            "status": {"phase": "Failed", "reason": "OutOfcpu", "qosClass": "Burstable"},
        }))
        .unwrap();
        let small = remnant(&pod);
        let text = serde_json::to_string(&small).unwrap();
        assert!(text.len() < 1000, "{}", text.len());
        assert_eq!((small.name(), small.ns(), small.uid(), small.grace_seconds()), ("a", "b", "c", 7));
        assert_eq!(
            (small.restart_policy(), small.init_containers().len(), small.app_containers().len()),
            ("Never", 1, 2)
        );
        assert_eq!((&small.status, small.is_static()), (&pod.status, false));
        assert_eq!(remnant(&small), small);
    }
}
