//! What configMap, secret, downwardAPI and projected volumes hold.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Pod, ServiceAccountTokenProjection, Volume, VolumeProjection,
};

use super::atomic::{Entry, Payload};
use super::{Volumes, fields, fs_group};

/// A token that was handed out, with its times in unix seconds.
#[derive(Debug, Clone)]
pub(super) struct Token {
    value: String,
    issued: i64,
    expires: i64,
}

impl Token {
    /// Still in the first 80 % of its life and younger than a day.
    fn is_fresh(&self, now: i64) -> bool {
        now < self.issued + (self.expires - self.issued) * 4 / 5 && now < self.issued + 86_400
    }
}

const DEFAULT_MODE: i32 = 0o644;
/// Most that the files of one volume come to, in bytes: many of the largest objects (1 MiB each). One object at many paths
/// would else take any amount of the agent's memory and of the node's disk.
const MOST: usize = 64 << 20;

impl Volumes {
    /// The files a volume of a projected kind holds now.
    pub(super) async fn payload(&self, pod: &Pod, volume: &Volume) -> Result<Payload, String> {
        if let Some(source) = &volume.config_map {
            let data = self.config_map_data(pod, &source.name, source.optional).await?;
            return select(data, source.items.as_deref(), source.default_mode, source.optional, "config");
        }
        if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let data = self.secret_data(pod, name, source.optional).await?;
            return select(data, source.items.as_deref(), source.default_mode, source.optional, "secret");
        }
        if let Some(source) = &volume.downward_api {
            return downward(pod, source.items.as_deref().unwrap_or_default(), source.default_mode, &self.allocatable);
        }
        let mut payload = Payload::new();
        if let Some(source) = &volume.projected {
            for (index, part) in source.sources.iter().flatten().enumerate() {
                let place = format!("{}.{index}", volume.name);
                payload.extend(self.part(pod, volume, &place, part, source.default_mode).await?);
                if payload.values().map(|entry| entry.data.len()).sum::<usize>() > MOST {
                    return Err(too_large());
                }
            }
        }
        Ok(payload)
    }

    async fn part(
        &self,
        pod: &Pod,
        volume: &Volume,
        place: &str,
        part: &VolumeProjection,
        mode: Option<i32>,
    ) -> Result<Payload, String> {
        if let Some(source) = &part.config_map {
            let data = self.config_map_data(pod, &source.name, source.optional).await?;
            return select(data, source.items.as_deref(), mode, source.optional, "config");
        }
        if let Some(source) = &part.secret {
            let data = self.secret_data(pod, &source.name, source.optional).await?;
            return select(data, source.items.as_deref(), mode, source.optional, "secret");
        }
        if let Some(source) = &part.downward_api {
            return downward(pod, source.items.as_deref().unwrap_or_default(), mode, &self.allocatable);
        }
        if let Some(source) = &part.service_account_token {
            let data = self.token(pod, volume, source).await?.into_bytes();
            return Ok(Payload::from([(source.path.clone(), own(pod, data, mode)?)]));
        }
        if let Some(source) = &part.cluster_trust_bundle {
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            let anchors = self.objects.trust_bundle(source, uid, place).await?;
            return Ok(Payload::from([(source.path.clone(), own(pod, anchors.into_bytes(), mode)?)]));
        }
        if let Some(source) = &part.pod_certificate {
            let found = self.objects.pod_certificate(source, pod, place)?;
            let both = format!("{}{}", found.key, found.chain);
            let files = [
                (&source.credential_bundle_path, both),
                (&source.key_path, found.key),
                (&source.certificate_chain_path, found.chain),
            ];
            let named =
                files.into_iter().filter_map(|(path, text)| Some((path.clone().filter(|p| !p.is_empty())?, text)));
            return named.map(|(path, text)| Ok((path, own(pod, text.into_bytes(), mode)?))).collect();
        }
        Err("this agent projects configMap, secret, downwardAPI, serviceAccountToken, clusterTrustBundle and podCertificate only".into())
    }

    async fn config_map_data(&self, pod: &Pod, name: &str, optional: Option<bool>) -> Result<Data, String> {
        let Some(map) = self.objects.config_map(namespace(pod), name).await? else {
            return missing(optional, || format!("configmap {name:?} not found"));
        };
        let text = map.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes()));
        let binary = map.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0));
        Ok(text.chain(binary).collect())
    }

    async fn secret_data(&self, pod: &Pod, name: &str, optional: Option<bool>) -> Result<Data, String> {
        match self.objects.secret(namespace(pod), name).await? {
            Some(secret) => Ok(secret.data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect()),
            None => missing(optional, || format!("secret {name:?} not found")),
        }
    }

    async fn token(
        &self,
        pod: &Pod,
        volume: &Volume,
        source: &ServiceAccountTokenProjection,
    ) -> Result<String, String> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let key = (uid.clone(), volume.name.clone(), source.path.clone());
        let now = jiff::Timestamp::now().as_second();
        let known = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(token) = known.as_ref().filter(|t| t.is_fresh(now)) {
            return Ok(token.value.clone());
        }
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).filter(|a| !a.is_empty());
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let audience = source.audience.clone().filter(|a| !a.is_empty());
        let seconds = source.expiration_seconds.unwrap_or(3600);
        let account = account.unwrap_or("default");
        match self.objects.token(namespace(pod), account, name, &uid, audience, seconds).await {
            Ok((value, expires)) => {
                let token = Token { value: value.clone(), issued: now, expires };
                self.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(key, token);
                Ok(value)
            }
            Err(error) => match known.filter(|t| now < t.expires) {
                Some(token) => {
                    tracing::warn!(pod = name, volume = %volume.name, %error, "keeping the old service account token");
                    Ok(token.value)
                }
                None => Err(format!("failed to fetch token: {error}")),
            },
        }
    }
}

type Data = BTreeMap<String, Vec<u8>>;

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

fn missing(optional: Option<bool>, message: impl FnOnce() -> String) -> Result<Data, String> {
    if optional == Some(true) { Ok(Data::new()) } else { Err(message()) }
}

fn too_large() -> String {
    format!("its files come to more than {} MiB, the most that one volume of this kind may hold", MOST >> 20)
}

/// What is left of the room for a volume's files once `size` is taken of it.
fn take(room: usize, size: usize) -> Result<usize, String> {
    room.checked_sub(size).ok_or_else(too_large)
}

fn entry(data: Vec<u8>, own: Option<i32>, default: Option<i32>) -> Result<Entry, String> {
    let mode = own.or(default).unwrap_or(DEFAULT_MODE);
    let mode = u32::try_from(mode).ok().filter(|m| *m <= 0o777).ok_or_else(|| format!("invalid file mode {mode:o}"))?;
    Ok(Entry { data, mode, owner: None })
}

/// A file with what a pod is known by: where it runs as one user, or has a group, only for those.
fn own(pod: &Pod, data: Vec<u8>, mode: Option<i32>) -> Result<Entry, String> {
    let owner = run_as(pod);
    let mode = if owner.is_some() || fs_group(pod).is_some() { Some(0o600) } else { mode };
    Ok(Entry { owner, ..entry(data, None, mode)? })
}

/// The user all containers of the pod run as; `None` where one names none, or another.
fn run_as(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let contexts = containers.map(|c| c.security_context.as_ref());
    let more = spec.ephemeral_containers.iter().flatten().map(|c| c.security_context.as_ref());
    let mut users = contexts.chain(more).map(|s| s.and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

/// All keys, or those the items name at the paths they name.
fn select(
    data: Data,
    items: Option<&[KeyToPath]>,
    mode: Option<i32>,
    optional: Option<bool>,
    what: &str,
) -> Result<Payload, String> {
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        return data.into_iter().map(|(key, value)| Ok((key, entry(value, None, mode)?))).collect();
    };
    let (mut payload, mut room) = (Payload::new(), MOST);
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                room = take(room, value.len())?;
                payload.insert(item.path.clone(), entry(value.clone(), item.mode, mode)?);
            }
            None if optional == Some(true) => {}
            None => return Err(format!("references non-existent {what} key: {}", item.key)),
        }
    }
    Ok(payload)
}

fn downward(
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    mode: Option<i32>,
    allocatable: &fields::Allocatable,
) -> Result<Payload, String> {
    let (mut payload, mut room) = (Payload::new(), MOST);
    for item in items {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => fields::metadata_field(pod, &field.field_path)
                .ok_or_else(|| format!("unsupported fieldPath: {}", field.field_path))?,
            (None, Some(selector)) => fields::resource_field(pod, selector, None, allocatable)?,
            (None, None) => return Err(format!("item {:?} names neither a field nor a resource", item.path)),
        };
        room = take(room, value.len())?;
        payload.insert(item.path.clone(), entry(value.into_bytes(), item.mode, mode)?);
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_object_at_many_paths_is_bounded() {
        let items = |count: usize| -> Vec<KeyToPath> {
            (0..count).map(|i| KeyToPath { key: "k".into(), path: i.to_string(), mode: None }).collect()
        };
        let data = || Data::from([("k".to_owned(), vec![0; 1 << 20])]);
        assert_eq!(select(data(), Some(&items(64)), None, None, "config").unwrap().len(), 64);
        assert!(select(data(), Some(&items(100_000)), None, None, "config").unwrap_err().contains("64 MiB"));
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "annotations": {"a": "x".repeat(200_000)}}}))
        .unwrap();
        let item = |i: usize| -> DownwardAPIVolumeFile {
            let field = serde_json::json!({"path": i.to_string(), "fieldRef": {"fieldPath": "metadata.annotations"}});
            serde_json::from_value(field).unwrap()
        };
        let allocatable = fields::Allocatable::default();
        let few: Vec<_> = (0..10).map(item).collect();
        assert_eq!(downward(&pod, &few, None, &allocatable).unwrap().len(), 10);
        let many: Vec<_> = (0..1000).map(item).collect();
        assert!(downward(&pod, &many, None, &allocatable).unwrap_err().contains("64 MiB"));
    }
}
