//! How fast a pod may be, by its annotations, as the plugins of CNI know them.

use k8s_openapi::api::core::v1::Pod;

use super::PodExt;
use crate::network::Bandwidth;
use crate::quantity;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// `1k` and `1P` bits a second.
const LEAST: i128 = 1_000;
const MOST: i128 = 1_000_000_000_000_000;

fn annotated(pod: &Pod, name: &str) -> Result<Option<u64>, String> {
    let Some(text) = pod.metadata.annotations.as_ref().and_then(|all| all.get(name)) else { return Ok(None) };
    let wrong = |why: &str| format!("reading pod bandwidth annotations: {name} {text:?}: {why}");
    let bits = quantity::whole(text).ok_or_else(|| wrong("it is a quantity of bits a second, such as 10M"))?;
    match bits {
        ..LEAST => Err(wrong("resource is unreasonably small (< 1kbit)")),
        LEAST..=MOST => Ok(u64::try_from(bits).ok()),
        _ => Err(wrong("resource is unreasonably large (> 1Pbit)")),
    }
}

/// What a pod is held to.
pub(super) fn bandwidth(pod: &Pod) -> Result<Bandwidth, String> {
    Ok(Bandwidth { ingress: annotated(pod, INGRESS)?, egress: annotated(pod, EGRESS)? })
}

/// What is said of a pod of the host's network, which is held to nothing.
pub(super) fn in_vain(pod: &Pod) -> Option<String> {
    let annotated = pod.metadata.annotations.iter().flatten().any(|(name, _)| name == INGRESS || name == EGRESS);
    let vain = annotated && pod.host_network();
    vain.then(|| "Bandwidth shaping is not currently supported on the host network".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(annotations: serde_json::Value, host_network: bool) -> Pod {
        let spec = serde_json::json!({"hostNetwork": host_network, "containers": []});
        serde_json::from_value(serde_json::json!({"metadata": {"annotations": annotations}, "spec": spec})).unwrap()
    }

    #[test]
    fn annotations_are_quantities_of_bits() {
        for (text, bits) in
            [("10M", 10_000_000), ("1k", 1000), ("1P", MOST as u64), ("1Mi", 1 << 20), ("1e6", 1_000_000)]
        {
            let held = bandwidth(&pod(serde_json::json!({EGRESS: text}), false)).unwrap();
            assert_eq!(held, Bandwidth { ingress: None, egress: Some(bits) }, "{text}");
        }
        let both = bandwidth(&pod(serde_json::json!({INGRESS: "1M", EGRESS: "2M"}), false)).unwrap();
        assert_eq!(both, Bandwidth { ingress: Some(1_000_000), egress: Some(2_000_000) });
        assert_eq!(bandwidth(&pod(serde_json::json!({}), false)).unwrap(), Bandwidth::default());
        for (text, why) in [
            ("999", "unreasonably small"),
            ("-1M", "unreasonably small"),
            ("2P", "unreasonably large"),
            ("10Mbit", "such as 10M"),
            ("", "such as 10M"),
        ] {
            let said = bandwidth(&pod(serde_json::json!({INGRESS: text}), false)).unwrap_err();
            assert!(said.contains(why) && said.contains(INGRESS), "{said}");
        }
    }

    #[test]
    fn the_host_is_held_to_nothing() {
        let limited = serde_json::json!({EGRESS: "1M"});
        assert!(in_vain(&pod(limited.clone(), true)).is_some() && in_vain(&pod(limited, false)).is_none());
        assert!(in_vain(&pod(serde_json::json!({}), true)).is_none());
    }
}
