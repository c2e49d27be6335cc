//! The ConfigMaps and Secrets a pod refers to.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::PodExt;
use super::ephemeral::all_containers;
use crate::volume::{ObjectKey, ObjectKind};

/// Every object whose content the pod uses: in volumes, environments and as pull secrets.
pub fn references(pod: &Pod) -> BTreeSet<ObjectKey> {
    let mut found = BTreeSet::new();
    let mut add = |kind, name: &str| {
        if !name.is_empty() {
            found.insert(ObjectKey { kind, namespace: pod.ns().to_owned(), name: name.to_owned() });
        }
    };
    let Some(spec) = pod.pod_spec() else { return found };
    for secret in spec.image_pull_secrets.iter().flatten() {
        add(ObjectKind::Secret, &secret.name);
    }
    for volume in spec.volumes.iter().flatten() {
        if let Some(source) = &volume.config_map {
            add(ObjectKind::ConfigMap, &source.name);
        }
        if let Some(name) = volume.secret.as_ref().and_then(|s| s.secret_name.as_deref()) {
            add(ObjectKind::Secret, name);
        }
        for part in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            if let Some(source) = &part.config_map {
                add(ObjectKind::ConfigMap, &source.name);
            }
            if let Some(source) = &part.secret {
                add(ObjectKind::Secret, &source.name);
            }
        }
    }
    for container in all_containers(pod) {
        environment(&container, &mut add);
    }
    found
}

fn environment(container: &Container, add: &mut impl FnMut(ObjectKind, &str)) {
    for source in container.env_from.iter().flatten() {
        if let Some(map) = &source.config_map_ref {
            add(ObjectKind::ConfigMap, &map.name);
        }
        if let Some(secret) = &source.secret_ref {
            add(ObjectKind::Secret, &secret.name);
        }
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        if let Some(key) = &source.config_map_key_ref {
            add(ObjectKind::ConfigMap, &key.name);
        }
        if let Some(key) = &source.secret_key_ref {
            add(ObjectKind::Secret, &key.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_looked_at() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"namespace": "n"}, "spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "a", "configMap": {"name": "cm1"}}, {"name": "b", "secret": {"secretName": "s1"}},
                {"name": "c", "projected": {"sources": [{"configMap": {"name": "cm2"}}, {"secret": {"name": "s2"}}]}}],
            "containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": "cm3"}}, {"secretRef": {"name": "s3"}}],
                "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "cm4", "key": "k"}}},
                        {"name": "Y", "valueFrom": {"secretKeyRef": {"name": "s4", "key": "k"}}}]}]}}))
        .unwrap();
        let names: Vec<_> = references(&pod).into_iter().map(|k| k.name).collect();
        assert_eq!(names, ["cm1", "cm2", "cm3", "cm4", "pull", "s1", "s2", "s3", "s4"]);
    }
}
