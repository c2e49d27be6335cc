//! Registry logins of a pod: its `imagePullSecrets`.
//!
//! Formats: Kubernetes Secret types `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg`.

use base64::Engine;
use k8s_openapi::api::core::v1::{Pod, Secret};
use serde_json::Value;
use tracing::warn;

use super::PodExt;
use crate::image::Credential;
use crate::volume::ObjectSource;

/// The logins of every pull secret that can be read; one that can't is said and passed over, as kubelet does.
pub(super) async fn credentials(pod: &Pod, objects: &dyn ObjectSource) -> Vec<Credential> {
    let mut found = Vec::new();
    let references = pod.pod_spec().and_then(|s| s.image_pull_secrets.as_deref()).unwrap_or_default();
    for reference in references {
        match objects.secret(pod.ns(), &reference.name).await {
            Ok(Some(secret)) => found.extend(parse(&secret)),
            Ok(None) => warn!(pod = pod.name(), secret = reference.name, "pull secret not found"),
            Err(error) => warn!(pod = pod.name(), secret = reference.name, error, "pull secret not read"),
        }
    }
    found
}

fn parse(secret: &Secret) -> Vec<Credential> {
    let data = secret.data.as_ref();
    let json = |key: &str| data.and_then(|d| d.get(key)).and_then(|b| serde_json::from_slice::<Value>(&b.0).ok());
    let auths = json(".dockerconfigjson").map(|v| v["auths"].clone()).or_else(|| json(".dockercfg"));
    let Some(Value::Object(auths)) = auths else { return Vec::new() };
    auths.iter().filter_map(|(registry, entry)| login(registry, entry)).collect()
}

fn login(registry: &str, entry: &Value) -> Option<Credential> {
    let text = |key: &str| entry[key].as_str().map(str::to_owned);
    let (username, password) = match text("auth") {
        Some(auth) => {
            let decoded = base64::engine::general_purpose::STANDARD.decode(auth).ok()?;
            let pair = String::from_utf8(decoded).ok()?;
            let (user, password) = pair.split_once(':')?;
            (user.to_owned(), password.to_owned())
        }
        None => (text("username")?, text("password")?),
    };
    Some(Credential { registry: registry.to_owned(), username, password })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read() {
        let entry = serde_json::json!({"auth": "dTpw"});
        assert_eq!(login("r", &entry).map(|c| (c.username, c.password)), Some(("u".into(), "p".into())));
        let entry = serde_json::json!({"username": "a", "password": "b"});
        assert_eq!(login("r", &entry).map(|c| c.username), Some("a".into()));
        assert!(login("r", &serde_json::json!({"auth": "???"})).is_none());
    }
}
