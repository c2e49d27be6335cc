//! The environment of a container: every source, and `$(VAR)` (Kubernetes "Define Environment Variables").

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, ResourceFieldSelector};

use super::{PodExt, qos};
use crate::volume::ObjectSource;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the environment takes from the node.
pub struct EnvContext {
    /// Node addresses.
    pub host_ips: Vec<IpAddr>,
    /// Pod addresses.
    pub pod_ips: Vec<IpAddr>,
    /// Node name.
    pub node_name: String,
    /// Host name of the pod.
    pub hostname: String,
    /// Service variables.
    pub extra: Vec<(String, String)>,
}

/// Expands `$(NAME)`; `$$` is a dollar sign, an unknown name stays as it is written.
pub fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix("$(").and_then(|r| r.split_once(')')) {
            match variables.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&rest[..name.len() + 3]),
            }
            rest = after;
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

/// A field of the pod's metadata or spec by its path.
pub fn field(pod: &Pod, path: &str) -> Result<String, String> {
    let map = |m: &Option<BTreeMap<String, String>>| {
        m.iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect::<Vec<_>>().join("\n")
    };
    let keyed = |m: &Option<BTreeMap<String, String>>, prefix: &str| {
        let key = path.strip_prefix(prefix)?.strip_suffix("']")?;
        Some(m.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default())
    };
    let spec = pod.spec.as_ref();
    Ok(match path {
        "metadata.name" => pod.name().to_owned(),
        "metadata.namespace" => pod.ns().to_owned(),
        "metadata.uid" => pod.uid().to_owned(),
        "metadata.labels" => map(&pod.metadata.labels),
        "metadata.annotations" => map(&pod.metadata.annotations),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        _ => {
            let labels = keyed(&pod.metadata.labels, "metadata.labels['");
            let found = labels.or_else(|| keyed(&pod.metadata.annotations, "metadata.annotations['"));
            return found.ok_or_else(|| format!("unsupported fieldPath: {path}"));
        }
    })
}

/// A resource request or limit of a container of the pod (`own` where the selector names none).
pub fn resource(pod: &Pod, selector: &ResourceFieldSelector, own: Option<&Container>) -> Result<String, String> {
    let name = selector.container_name.as_deref().filter(|n| !n.is_empty());
    let container = match name {
        Some(name) => pod.init_containers().iter().chain(pod.app_containers()).find(|c| c.name == name),
        None => own,
    };
    let container = container.ok_or_else(|| format!("container {name:?} not found"))?;
    let (list, resource) = selector.resource.split_once('.').unwrap_or(("", selector.resource.as_str()));
    let value = match list {
        "limits" => qos::limit(container, resource),
        "requests" => qos::request(container, resource),
        _ => return Err(format!("unsupported resource: {}", selector.resource)),
    };
    let scale = if resource == "cpu" { 1000.0 } else { 1.0 };
    let divisor = selector.divisor.as_ref().and_then(|d| qos::parse_quantity(d, scale)).filter(|d| *d > 0);
    let divisor = divisor.unwrap_or(if resource == "cpu" { 1000 } else { 1 });
    let value = value.unwrap_or(0);
    Ok(((value + divisor - 1) / divisor).to_string())
}

/// The whole environment, in order.
pub async fn build_env(
    pod: &Pod,
    container: &Container,
    image_env: &[String],
    context: &EnvContext,
    objects: &dyn ObjectSource,
) -> Result<Vec<(String, String)>, String> {
    let mut env = Env::default();
    env.set("PATH", DEFAULT_PATH.to_owned());
    env.set("HOSTNAME", context.hostname.clone());
    for pair in image_env {
        if let Some((name, value)) = pair.split_once('=') {
            env.set(name, value.to_owned());
        }
    }
    for (name, value) in &context.extra {
        env.set(name, value.clone());
    }
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            match objects.config_map(pod.ns(), &reference.name).await? {
                Some(map) => map.data.into_iter().flatten().for_each(|(k, v)| env.set(&format!("{prefix}{k}"), v)),
                None if reference.optional == Some(true) => {}
                None => return Err(format!("configmap {:?} not found", reference.name)),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match objects.secret(pod.ns(), &reference.name).await? {
                Some(secret) => {
                    for (key, value) in secret.data.into_iter().flatten() {
                        env.set(&format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("secret {:?} not found", reference.name)),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value_of(pod, container, variable, context, objects, &env).await? {
            env.set(&variable.name, value);
        }
    }
    Ok(env.order.into_iter().filter_map(|n| env.values.get(&n).map(|v| (n.clone(), v.clone()))).collect())
}

#[derive(Default)]
struct Env {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Env {
    fn set(&mut self, name: &str, value: String) {
        if self.values.insert(name.to_owned(), value).is_none() {
            self.order.push(name.to_owned());
        }
    }
}

async fn value_of(
    pod: &Pod,
    container: &Container,
    variable: &EnvVar,
    context: &EnvContext,
    objects: &dyn ObjectSource,
    env: &Env,
) -> Result<Option<String>, String> {
    let Some(from) = &variable.value_from else {
        return Ok(Some(expand(variable.value.as_deref().unwrap_or_default(), &env.values)));
    };
    let join = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    if let Some(reference) = &from.field_ref {
        return Ok(Some(match reference.field_path.as_str() {
            "status.hostIP" => join(&context.host_ips[..context.host_ips.len().min(1)]),
            "status.hostIPs" => join(&context.host_ips),
            "status.podIP" => join(&context.pod_ips[..context.pod_ips.len().min(1)]),
            "status.podIPs" => join(&context.pod_ips),
            "spec.nodeName" => context.node_name.clone(),
            path => field(pod, path)?,
        }));
    }
    if let Some(selector) = &from.resource_field_ref {
        return resource(pod, selector, Some(container)).map(Some);
    }
    if let Some(reference) = &from.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let found = objects.config_map(pod.ns(), &reference.name).await?;
        if found.is_none() && !optional {
            return Err(format!("configmap {:?} not found", reference.name));
        }
        let value = found.and_then(|m| m.data).and_then(|mut d| d.remove(&reference.key));
        return match value {
            None if !optional => {
                Err(format!("couldn't find key {} in ConfigMap {}/{}", reference.key, pod.ns(), reference.name))
            }
            value => Ok(value),
        };
    }
    if let Some(reference) = &from.secret_key_ref {
        let optional = reference.optional == Some(true);
        let found = objects.secret(pod.ns(), &reference.name).await?;
        if found.is_none() && !optional {
            return Err(format!("secret {:?} not found", reference.name));
        }
        let value = found.and_then(|s| s.data).and_then(|mut d| d.remove(&reference.key));
        return match value {
            None if !optional => {
                Err(format!("couldn't find key {} in Secret {}/{}", reference.key, pod.ns(), reference.name))
            }
            value => Ok(value.map(|v| String::from_utf8_lossy(&v.0).into_owned())),
        };
    }
    Err(format!("environment variable {}: this source is not one this node knows", variable.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_expand() {
        let variables = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        for (text, want) in
            [("x$(A)y", "x1y"), ("$$(A)", "$(A)"), ("$(B)", "$(B)"), ("$A", "$A"), ("$(A", "$(A"), ("end$", "end$")]
        {
            assert_eq!(expand(text, &variables), want);
        }
    }
}
