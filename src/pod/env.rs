//! The environment of a container, and the expansion of `$(VAR)`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret};

use super::env_file::EnvFile;
use crate::files;
use crate::volume::fields::Allocatable;
use crate::volume::{self, ObjectSource, fields};

/// The search path of a container whose image sets none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Most that the variables of a container come to, or what its command line does, in bytes. The kernel hands no more to a
/// program (execve(2): at most 6 MiB of both, mostly 2); references to references would come to any size.
const MOST: usize = 4 << 20;
/// Most that is read of files for `fileKeyRef` of one container, in bytes, as often as they are read.
const MOST_READ: usize = 64 << 20;

/// What the environment may say that the pod's manifest does not.
#[derive(Debug, Clone, Default)]
pub struct EnvContext {
    /// Addresses of the node, the primary first.
    pub host_ips: Vec<IpAddr>,
    /// Addresses of the pod, the primary first.
    pub pod_ips: Vec<IpAddr>,
    /// Name of the node.
    pub node_name: String,
    /// Host name inside the pod.
    pub hostname: String,
    /// Where the pod's volumes are on the host, by name.
    pub volumes: BTreeMap<String, PathBuf>,
    /// What pods may have of the node.
    pub allocatable: Arc<Allocatable>,
    /// Variables the agent adds, such as `KUBERNETES_SERVICE_HOST`; the container's own win over them.
    pub extra: Vec<(String, String)>,
}

/// The variables of a container in the order they are set, each name once; and those of them that `$(VAR)` in its command
/// line and in a `subPathExpr` sees: the pod's, not those of its image, which are for a shell to look up.
///
/// Later sources win: defaults, image, the agent's own, `envFrom`, `env`. `$(VAR)` in a value of `env` sees the
/// agent's own, `envFrom` and the entries of `env` before it.
pub async fn build_env(
    pod: &Pod,
    container: &Container,
    image_env: &[String],
    ctx: &EnvContext,
    objects: &dyn ObjectSource,
) -> Result<(Vec<(String, String)>, BTreeMap<String, String>), String> {
    let mut env = Environment::default();
    env.set("PATH", DEFAULT_PATH.into())?;
    env.set("HOSTNAME", ctx.hostname.clone())?;
    for (name, value) in image_env.iter().filter_map(|e| e.split_once('=')) {
        env.set(name, value.into())?;
    }
    let mut visible = BTreeMap::new();
    for (name, value) in &ctx.extra {
        env.set(name, value.clone())?;
        visible.insert(name.clone(), value.clone());
    }
    let mut objects = Objects::new(pod, objects);
    let mut set = |name: String, value: String| {
        env.set(&name, value.clone())?;
        visible.insert(name, value);
        Ok(())
    };
    from_objects(container, &mut objects, &mut set).await?;
    for var in container.env.iter().flatten() {
        let value = match (&var.value_from, &var.value) {
            (Some(source), _) => match value_from(pod, container, source, ctx, &mut objects).await? {
                Some(value) => value,
                None => continue,
            },
            (None, Some(value)) => expand(value, &visible).map_err(|e| format!("variable {}: {e}", var.name))?,
            (None, None) => String::new(),
        };
        env.set(&var.name, value.clone())?;
        visible.insert(var.name.clone(), value);
    }
    Ok((env.variables, visible))
}

/// Replaces `$(NAME)` by the variable's value and `$$` by `$`; a name that is not known stays as written.
fn expand(text: &str, variables: &BTreeMap<String, String>) -> Result<String, String> {
    replace(text, |name| Ok(variables.get(name).map_or_else(|| format!("$({name})").into(), |v| v.as_str().into())))
}

/// Does that with all words of a command line.
pub fn expand_all(words: &[String], variables: &BTreeMap<String, String>) -> Result<Vec<String>, String> {
    let mut all = 0;
    let mut one = |word: &String| {
        let expanded = expand(word, variables).map_err(|e| format!("command line: {e}"))?;
        all += expanded.len();
        if all > MOST { Err(format!("command line: {}", too_long())) } else { Ok(expanded) }
    };
    words.iter().map(&mut one).collect()
}

fn too_long() -> String {
    format!("more than {} MiB, which the kernel hands to no program", MOST >> 20)
}

/// As [`expand`]; a name that is not known is an error.
pub fn expand_known(text: &str, variables: &BTreeMap<String, String>) -> Result<String, String> {
    let known = |name: &str| variables.get(name).ok_or_else(|| format!("missing value for {name:?}"));
    replace(text, |name| known(name).map(|value| value.as_str().into()))
}

/// Replaces each `$(NAME)` by what `value` says of it; ends when that does, or with more than [`MOST`].
fn replace<'a>(text: &str, value: impl Fn(&str) -> Result<Cow<'a, str>, String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    // behind it no name ends: looked for once, not at each `$(` of many
    let last = text.rfind(')').unwrap_or(0);
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(tail) = rest.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if text.len() - rest.len() <= last
            && let Some((name, tail)) = rest.strip_prefix('(').and_then(|r| r.split_once(')'))
        {
            out.push_str(&value(name)?);
            if out.len() > MOST {
                return Err(too_long());
            }
            rest = tail;
        } else {
            out.push('$');
        }
    }
    Ok(out + rest)
}

/// Variables in order, each name once.
#[derive(Default)]
struct Environment {
    variables: Vec<(String, String)>,
    /// Where each name is in them.
    places: BTreeMap<String, usize>,
    /// Bytes of all that was set.
    size: usize,
}

impl Environment {
    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        self.size += name.len() + value.len();
        if self.size > MOST {
            return Err(format!("environment: {}", too_long()));
        }
        if let Some(&place) = self.places.get(name) {
            self.variables[place].1 = value;
        } else {
            self.places.insert(name.to_owned(), self.variables.len());
            self.variables.push((name.to_owned(), value));
        }
        Ok(())
    }
}

/// The objects this container refers to, each asked for once.
struct Objects<'a> {
    namespace: &'a str,
    source: &'a dyn ObjectSource,
    config_maps: BTreeMap<String, Option<ConfigMap>>,
    secrets: BTreeMap<String, Option<Secret>>,
    /// The file of `fileKeyRef` that was read last, by volume and path.
    file: Option<((String, String), EnvFile)>,
    /// Bytes of all such files that were read.
    read: usize,
}

impl<'a> Objects<'a> {
    fn new(pod: &'a Pod, source: &'a dyn ObjectSource) -> Self {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        Self { namespace, source, config_maps: BTreeMap::new(), secrets: BTreeMap::new(), file: None, read: 0 }
    }

    /// A file of a volume, which lies in `dir`. It is read once for all keys that are asked for one after another.
    fn file(&mut self, dir: &Path, volume: &str, path: &str) -> Result<&EnvFile, String> {
        let wanted = (volume.to_owned(), path.to_owned());
        let found = if let Some(known) = self.file.take().filter(|(known, _)| *known == wanted) {
            known
        } else {
            let file = files::aside(|| {
                let text = volume::read_beneath(dir, path)?;
                self.read += text.len();
                if self.read > MOST_READ {
                    return Err(format!("more than {} MiB of such files for one container", MOST_READ >> 20));
                }
                Ok(EnvFile::read(&text))
            })?;
            (wanted, file)
        };
        Ok(&self.file.insert(found).1)
    }

    async fn config_map(&mut self, name: &str) -> Result<Option<&ConfigMap>, String> {
        if !self.config_maps.contains_key(name) {
            let found = self.source.config_map(self.namespace, name).await?;
            self.config_maps.insert(name.to_owned(), found);
        }
        Ok(self.config_maps.get(name).and_then(Option::as_ref))
    }

    async fn secret(&mut self, name: &str) -> Result<Option<&Secret>, String> {
        if !self.secrets.contains_key(name) {
            let found = self.source.secret(self.namespace, name).await?;
            self.secrets.insert(name.to_owned(), found);
        }
        Ok(self.secrets.get(name).and_then(Option::as_ref))
    }
}

async fn from_objects(
    container: &Container,
    objects: &mut Objects<'_>,
    set: &mut impl FnMut(String, String) -> Result<(), String>,
) -> Result<(), String> {
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(source) = &from.config_map_ref {
            match objects.config_map(&source.name).await? {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        set_named(format!("{prefix}{key}"), || value.clone(), set)?;
                    }
                }
                None if source.optional == Some(true) => {}
                None => return Err(format!("configmap {:?} not found", source.name)),
            }
        }
        if let Some(source) = &from.secret_ref {
            match objects.secret(&source.name).await? {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        set_named(format!("{prefix}{key}"), || text(&value.0), set)?;
                    }
                }
                None if source.optional == Some(true) => {}
                None => return Err(format!("secret {:?} not found", source.name)),
            }
        }
    }
    Ok(())
}

/// Sets a variable, unless its name is one that is left out, as kubelet does.
fn set_named(
    name: String,
    value: impl FnOnce() -> String,
    set: &mut impl FnMut(String, String) -> Result<(), String>,
) -> Result<(), String> {
    if is_variable_name(&name) { set(name, value()) } else { Ok(()) }
}

/// A name the kernel can carry.
fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('=') && name.bytes().all(|b| (0x20..0x7f).contains(&b))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The value, or `None` when an optional one is missing.
async fn value_from(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    ctx: &EnvContext,
    objects: &mut Objects<'_>,
) -> Result<Option<String>, String> {
    let namespace = objects.namespace;
    if let Some(selector) = &source.config_map_key_ref {
        let (name, key, optional) = (&selector.name, &selector.key, selector.optional == Some(true));
        return match objects.config_map(name).await? {
            Some(map) => match map.data.as_ref().and_then(|d| d.get(key)) {
                Some(value) => Ok(Some(value.clone())),
                None if optional => Ok(None),
                None => Err(format!("couldn't find key {key} in ConfigMap {namespace}/{name}")),
            },
            None if optional => Ok(None),
            None => Err(format!("configmap {name:?} not found")),
        };
    }
    if let Some(selector) = &source.secret_key_ref {
        let (name, key, optional) = (&selector.name, &selector.key, selector.optional == Some(true));
        return match objects.secret(name).await? {
            Some(secret) => match secret.data.as_ref().and_then(|d| d.get(key)) {
                Some(value) => Ok(Some(text(&value.0))),
                None if optional => Ok(None),
                None => Err(format!("couldn't find key {key} in Secret {namespace}/{name}")),
            },
            None if optional => Ok(None),
            None => Err(format!("secret {name:?} not found")),
        };
    }
    if let Some(field) = &source.field_ref {
        let value = pod_field(pod, &field.field_path, ctx);
        return value.map(Some).ok_or_else(|| format!("unsupported fieldPath: {}", field.field_path));
    }
    if let Some(selector) = &source.resource_field_ref {
        return fields::resource_field(pod, selector, Some(container), &ctx.allocatable).map(Some);
    }
    if let Some(selector) = &source.file_key_ref {
        let (volume, path, key) = (&selector.volume_name, &selector.path, &selector.key);
        let dir = ctx.volumes.get(volume);
        let dir = dir.ok_or_else(|| format!("cannot find the volume {volume:?} referenced by fileKeyRef"))?;
        let wrong = |e| format!("environment file {path:?} of volume {volume:?}: {e}");
        let value = objects.file(dir, volume, path).and_then(|file| file.value(key)).map_err(wrong)?;
        return match value {
            None if selector.optional != Some(true) => Err(wrong(format!("it has no key {key:?}"))),
            value => Ok(value),
        };
    }
    Err("valueFrom names no source this agent knows \
         (configMapKeyRef, secretKeyRef, fieldRef, resourceFieldRef, fileKeyRef)"
        .into())
}

fn pod_field(pod: &Pod, path: &str, ctx: &EnvContext) -> Option<String> {
    let list = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    match path {
        "spec.nodeName" => Some(ctx.node_name.clone()),
        "spec.serviceAccountName" => {
            Some(pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_default())
        }
        "status.hostIP" => Some(list(ctx.host_ips.get(..1).unwrap_or_default())),
        "status.hostIPs" => Some(list(&ctx.host_ips)),
        "status.podIP" => Some(list(ctx.pod_ips.get(..1).unwrap_or_default())),
        "status.podIPs" => Some(list(&ctx.pod_ips)),
        // A variable holds one label or annotation, never all of them.
        "metadata.labels" | "metadata.annotations" => None,
        _ => fields::metadata_field(pod, path),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::future::BoxFuture;

    use super::*;

    struct Fake;

    impl ObjectSource for Fake {
        fn config_map<'a>(&'a self, _ns: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<ConfigMap>, String>> {
            let map = serde_json::json!({"data": {"a": "1", "host": "db"}});
            Box::pin(async move { Ok((name == "cm").then(|| serde_json::from_value(map).unwrap())) })
        }
        fn secret<'a>(&'a self, _ns: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<Secret>, String>> {
            let secret = serde_json::json!({"data": {"pass": "aHVudGVy"}});
            Box::pin(async move { Ok((name == "s").then(|| serde_json::from_value(secret).unwrap())) })
        }
        fn token<'a>(
            &'a self,
            _ns: &'a str,
            _service_account: &'a str,
            _pod_name: &'a str,
            _pod_uid: &'a str,
            _audience: Option<String>,
            _expiration_seconds: i64,
        ) -> BoxFuture<'a, Result<(String, i64), String>> {
            Box::pin(async { Err("no tokens here".into()) })
        }
    }

    async fn env_of(container: serde_json::Value) -> Result<BTreeMap<String, String>, String> {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns", "labels": {"app": "web"}},
            "spec": {"containers": [container]}}))
        .unwrap();
        let ctx = EnvContext {
            host_ips: vec!["192.0.2.1".parse().unwrap()],
            pod_ips: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            node_name: "n1".into(),
            hostname: "p".into(),
            volumes: BTreeMap::new(),
            allocatable: Arc::default(),
            extra: vec![("KUBERNETES_SERVICE_HOST".into(), "10.43.0.1".into())],
        };
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let image = ["PATH=/bin".to_owned(), "A=image".to_owned()];
        let (all, visible) = build_env(&pod, container, &image, &ctx, &Fake).await?;
        assert!(!visible.contains_key("PATH") && !visible.contains_key("HOSTNAME"), "those are not the pod's");
        assert!(visible.contains_key("KUBERNETES_SERVICE_HOST"));
        Ok(all.into_iter().collect())
    }

    #[test]
    fn expansion_knows_escapes_and_leaves_the_unknown() {
        let variables = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        for (text, expected) in
            [("$(A)-$$(A)-$(B)", "1-$(A)-$(B)"), ("$", "$"), ("$(A", "$(A"), ("$A $$", "$A $"), ("é$(A)", "é1")]
        {
            assert_eq!(expand(text, &variables).unwrap(), expected);
        }
        // many beginnings without an end take one look
        let many = "$(".repeat(2_000_000);
        assert_eq!(expand(&many, &variables).unwrap(), many);
        assert_eq!(expand(&format!("{many})$(A"), &variables).unwrap().len(), many.len() + 4);
    }

    #[tokio::test]
    async fn every_source_is_read_and_later_ones_win() {
        let env = env_of(serde_json::json!({"name": "c",
            "resources": {"limits": {"memory": "64Mi"}},
            "envFrom": [{"prefix": "CM_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "s"}},
                        {"configMapRef": {"name": "none", "optional": true}}],
            "env": [
                {"name": "A", "value": "own"},
                {"name": "URL", "value": "http://$(CM_host)/$(A)/$(KUBERNETES_SERVICE_HOST)/$(LATER)"},
                {"name": "LATER", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pass"}}},
                {"name": "GONE", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "x", "optional": true}}},
                {"name": "IPS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIPs"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}}]}))
        .await
        .unwrap();
        let expected = [
            ("PATH", "/bin"),
            ("HOSTNAME", "p"),
            ("A", "own"),
            ("pass", "hunter"),
            ("URL", "http://db/own/10.43.0.1/$(LATER)"),
            ("LATER", "hunter"),
            ("IPS", "10.0.0.2,fd00::2"),
            ("APP", "web"),
            ("NODE", "n1"),
            ("MEM", "64"),
        ];
        for (name, value) in expected {
            assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!env.contains_key("GONE"));
    }

    #[tokio::test]
    async fn what_is_missing_is_named_as_kubelet_does() {
        for (source, message) in [
            (serde_json::json!({"configMapKeyRef": {"name": "x", "key": "k"}}), "configmap \"x\" not found"),
            (
                serde_json::json!({"configMapKeyRef": {"name": "cm", "key": "k"}}),
                "couldn't find key k in ConfigMap ns/cm",
            ),
            (serde_json::json!({"secretKeyRef": {"name": "s", "key": "k"}}), "couldn't find key k in Secret ns/s"),
            (serde_json::json!({"fieldRef": {"fieldPath": "status.phase"}}), "unsupported fieldPath: status.phase"),
        ] {
            let error = env_of(serde_json::json!({"name": "c", "env": [{"name": "V", "valueFrom": source}]})).await;
            assert_eq!(error.unwrap_err(), message);
        }
    }

    #[tokio::test]
    async fn what_refers_to_itself_again_and_again_ends() {
        let vars = |count: usize| {
            let first = serde_json::json!({"name": "A0", "value": "x".repeat(1024)});
            let next = (1..count)
                .map(|i| serde_json::json!({"name": format!("A{i}"), "value": format!("$(A{0})$(A{0})", i - 1)}));
            std::iter::once(first).chain(next).collect::<Vec<_>>()
        };
        let error = env_of(serde_json::json!({"name": "c", "env": vars(100)})).await.unwrap_err();
        assert!(error.contains("environment: more than 4 MiB"), "{error}");
        let wide = "$(A6)".repeat(1000);
        let error = env_of(serde_json::json!({"name": "c", "env": vars(7).into_iter()
            .chain([serde_json::json!({"name": "B", "value": wide})]).collect::<Vec<_>>()}));
        assert!(error.await.unwrap_err().starts_with("variable B: more than 4 MiB"));
        let env = env_of(serde_json::json!({"name": "c", "env": vars(7)})).await.unwrap();
        assert_eq!(env["A6"].len(), 64 << 10);
        let words = vec!["$(A6)".to_owned(); 100];
        assert!(expand_all(&words, &env).unwrap_err().starts_with("command line: more than 4 MiB"));
        // the same object again and again
        let prefix = "P".repeat(1000);
        let many: Vec<_> = (0..4000)
            .map(|i| serde_json::json!({"prefix": format!("{prefix}{i}_"), "configMapRef": {"name": "cm"}}))
            .collect();
        let error = env_of(serde_json::json!({"name": "c", "envFrom": many})).await.unwrap_err();
        assert!(error.starts_with("environment: more than 4 MiB"), "{error}");
    }
}
