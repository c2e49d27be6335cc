//! Names of a pod that become names of files and folders: those of a manifest, which no API server has looked at.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;

/// Longest label and longest subdomain, in bytes (RFC 1123).
const LABEL: usize = 63;
const SUBDOMAIN: usize = 253;

/// Refuses a pod whose own name, namespace, containers or volumes are not called as the API server would have it. None of
/// these names has a `/`, nor is it `..`.
pub fn check(pod: &Pod) -> Result<(), String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if !is_subdomain(name) {
        return Err(refused("metadata.name", name, "letters a to z, digits, '-' and '.', at most 253"));
    }
    let labels = "letters a to z, digits and '-', at most 63";
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    if !is_label(namespace) {
        return Err(refused("metadata.namespace", namespace, labels));
    }
    let Some(spec) = &pod.spec else { return Ok(()) };
    let containers = [Some(&spec.containers), spec.init_containers.as_ref()].into_iter().flatten().flatten();
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let containers = containers.map(|c| &c.name).chain(ephemeral.map(|c| &c.name));
    let volumes = spec.volumes.iter().flatten().map(|v| &v.name);
    for (of, names) in [("container", containers.collect::<Vec<_>>()), ("volume", volumes.collect())] {
        let mut known = BTreeSet::new();
        for name in names {
            if !is_label(name) {
                return Err(refused(&format!("name of a {of}"), name, labels));
            }
            if !known.insert(name) {
                return Err(format!("name of a {of}: Duplicate value: {name:?}"));
            }
        }
    }
    Ok(())
}

fn refused(field: &str, name: &str, may: &str) -> String {
    let shown: String = name.chars().take(LABEL).collect();
    format!("{field}: Invalid value: {shown:?}: must have {may}, and begin and end with a letter or digit")
}

/// A DNS label (RFC 1123).
fn is_label(name: &str) -> bool {
    name.len() <= LABEL && is_part(name)
}

/// A DNS subdomain (RFC 1123), of which the API server bounds the whole only.
fn is_subdomain(name: &str) -> bool {
    name.len() <= SUBDOMAIN && name.split('.').all(is_part)
}

fn is_part(name: &str) -> bool {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.first().is_some_and(plain) && bytes.last().is_some_and(plain) && bytes.iter().all(|b| plain(b) || *b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_file_names_are_refused() {
        let pod = |name: &str, namespace: &str, container: &str, volume: &str| -> Result<(), String> {
            let pod = serde_json::json!({
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"containers": [{"name": container}], "volumes": [{"name": volume}]},
            });
            check(&serde_json::from_value(pod).unwrap())
        };
        assert_eq!(pod("web-1.example", "kube-system", "c", "data"), Ok(()));
        for bad in ["", "..", ".", "a/b", "../x", "A", "-a", "a-", "m\u{e9}", "a\nb", "a..b", &"a".repeat(300)] {
            for (field, made) in [
                ("metadata.name", pod(bad, "default", "c", "v")),
                ("metadata.namespace", pod("a", bad, "c", "v")),
                ("container", pod("a", "default", bad, "v")),
                ("volume", pod("a", "default", "c", bad)),
            ] {
                assert!(made.as_ref().is_err_and(|e| e.contains(field)), "{field} {bad:?}: {made:?}");
            }
        }
        assert!(pod("a", "default", "a.b", "v").is_err());
        let twice = serde_json::json!({
            "metadata": {"name": "a"},
            "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "c"}]},
        });
        assert!(check(&serde_json::from_value(twice).unwrap()).unwrap_err().contains("Duplicate"));
    }
}
