//! Registry logins of a pod: its `imagePullSecrets`.
//!
//! Formats: Kubernetes Secret types `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg`.

use k8s_openapi::api::core::v1::{Pod, Secret};
use serde_json::Value;
use tracing::warn;

use super::PodExt;
use crate::image::{Credential, Origin, docker_config};
use crate::volume::ObjectSource;

/// The logins of every pull secret that can be read; one that can't is said and passed over, as kubelet does.
pub(super) async fn credentials(pod: &Pod, objects: &dyn ObjectSource) -> Vec<Credential> {
    let mut found = Vec::new();
    let references = pod.pod_spec().and_then(|s| s.image_pull_secrets.as_deref()).unwrap_or_default();
    for reference in references {
        match objects.secret(pod.ns(), &reference.name).await {
            Ok(Some(secret)) => {
                let origin = Origin::Secret {
                    uid: secret.metadata.uid.clone().unwrap_or_default(),
                    namespace: pod.ns().to_owned(),
                    name: reference.name.clone(),
                };
                found.extend(parse(&secret).into_iter().map(|login| Credential { origin: origin.clone(), ..login }));
            }
            Ok(None) => warn!(pod = pod.name(), secret = reference.name, "pull secret not found"),
            Err(error) => warn!(pod = pod.name(), secret = reference.name, error, "pull secret not read"),
        }
    }
    found
}

fn parse(secret: &Secret) -> Vec<Credential> {
    let data = secret.data.as_ref();
    let json = |key: &str| data.and_then(|d| d.get(key)).and_then(|b| serde_json::from_slice::<Value>(&b.0).ok());
    let config = json(".dockerconfigjson").or_else(|| json(".dockercfg"));
    config.map(|c| docker_config(&c)).unwrap_or_default()
}
