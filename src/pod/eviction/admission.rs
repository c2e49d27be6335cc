//! Pods a node under pressure does not take.

use k8s_openapi::api::core::v1::{Pod, Taint};

use super::Pressures;
use super::ranking::is_critical;
use super::threshold::Pressure;
use crate::pod::{qos, taints};

/// The kubelet's message for a pod that is not taken; `None` for one that is. What asks for no memory is not taken
/// when memory is short; when anything else is, only what the system needs.
pub fn refuse(pod: &Pod, pressures: &Pressures) -> Option<String> {
    if pressures.is_empty() || is_critical(pod) {
        return None;
    }
    if pressures.iter().all(|p| *p == Pressure::Memory) {
        let taint = Taint {
            key: "node.kubernetes.io/memory-pressure".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        if qos::qos_class(pod) != "BestEffort" || taints::tolerates(pod, &taint) {
            return None;
        }
    }
    let names: Vec<_> = pressures.iter().map(|p| p.name()).collect();
    Some(format!("Pod was rejected: The node had condition: [{}]. ", names.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_keeps_out_who_can_do_without() {
        let pod = |spec: serde_json::Value| -> Pod {
            serde_json::from_value(serde_json::json!({"metadata": {}, "spec": spec})).unwrap()
        };
        let none = pod(serde_json::json!({"containers": [{"name": "c"}]}));
        let some =
            pod(serde_json::json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "1Mi"}}}]}));
        let critical = pod(serde_json::json!({"priority": 2_000_001_000, "containers": [{"name": "c"}]}));
        let daemon = pod(serde_json::json!({"containers": [{"name": "c"}], "tolerations": [
            {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"}]}));
        let (memory, disk): (Pressures, Pressures) = ([Pressure::Memory].into(), [Pressure::Disk].into());
        assert!(refuse(&none, &Pressures::new()).is_none());
        assert!(refuse(&none, &memory).unwrap().contains("[MemoryPressure]"));
        assert!([&some, &critical, &daemon].iter().all(|p| refuse(p, &memory).is_none()));
        assert!([&none, &some, &daemon].iter().all(|p| refuse(p, &disk).is_some()));
        assert!(refuse(&critical, &disk).is_none());
    }
}
