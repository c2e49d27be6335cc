//! Taints and tolerations, as the scheduler matches them.

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

use super::PodExt;

fn matches(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |field: &Option<String>| field.as_deref().unwrap_or_default().to_owned();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => !key.is_empty() && text(&toleration.value) == text(&taint.value),
        _ => false,
    }
}

/// True when the pod may stay beside that taint.
pub fn tolerates(pod: &Pod, taint: &Taint) -> bool {
    pod.pod_spec().is_some_and(|s| s.tolerations.iter().flatten().any(|t| matches(t, taint)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_match_by_key_value_and_effect() {
        let of = |toleration: serde_json::Value| {
            let pod = serde_json::json!({"metadata": {}, "spec": {"containers": [], "tolerations": [toleration]}});
            let taint =
                Taint { key: "k".into(), value: Some("v".into()), effect: "NoExecute".into(), ..Taint::default() };
            tolerates(&serde_json::from_value(pod).unwrap(), &taint)
        };
        for good in [
            serde_json::json!({"operator": "Exists"}),
            serde_json::json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}),
            serde_json::json!({"key": "k", "value": "v"}),
        ] {
            assert!(of(good.clone()), "{good}");
        }
        for bad in [
            serde_json::json!({"key": "k"}),
            serde_json::json!({"key": "other", "operator": "Exists"}),
            serde_json::json!({"operator": "Exists", "effect": "NoSchedule"}),
        ] {
            assert!(!of(bad.clone()), "{bad}");
        }
    }
}
