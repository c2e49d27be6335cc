//! The files of configMap, secret, downwardAPI and projected volumes.

use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, Volume, VolumeProjection};

use super::ObjectSource;
use super::atomic::Files;
use crate::pod::env::field;

/// Mode of files where none is given.
const DEFAULT_MODE: i32 = 0o644;
/// Life of a token where none is given, in seconds.
const TOKEN_SECONDS: i64 = 3600;

/// The content of one volume.
pub struct Payload {
    /// Directory name of its kind.
    pub kind: &'static str,
    /// Kept in memory only.
    pub secret: bool,
    /// Its files.
    pub files: Files,
}

/// True for volumes whose content comes from the API.
pub fn is_projected(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// Adds the keys that `items` name, or all.
fn add(
    files: &mut Files,
    data: impl Iterator<Item = (String, Vec<u8>)>,
    items: Option<&Vec<KeyToPath>>,
    mode: i32,
    what: &str,
    optional: bool,
) -> Result<(), String> {
    let data: std::collections::BTreeMap<_, _> = data.collect();
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        files.extend(data.into_iter().map(|(k, v)| (k, (v, mode as u32))));
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(content) => {
                safe(&item.path)?;
                files.insert(item.path.clone(), (content.clone(), item.mode.unwrap_or(mode) as u32));
            }
            None if optional => {}
            None => return Err(format!("references non-existent {what} key: {}", item.key)),
        }
    }
    Ok(())
}

/// Refuses paths that would leave the volume.
fn safe(path: &str) -> Result<(), String> {
    if path.starts_with('/') || path.split('/').any(|p| p == ".." || p.is_empty()) || path.starts_with("..") {
        return Err(format!("path {path:?} must be relative and must not contain .."));
    }
    Ok(())
}

fn config_map_data(map: ConfigMap) -> impl Iterator<Item = (String, Vec<u8>)> {
    let text = map.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes()));
    text.chain(map.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0)))
}

fn secret_data(secret: Secret) -> impl Iterator<Item = (String, Vec<u8>)> {
    secret.data.into_iter().flatten().map(|(k, v)| (k, v.0))
}

fn downward(files: &mut Files, pod: &Pod, items: &[DownwardAPIVolumeFile], mode: i32) -> Result<(), String> {
    for item in items {
        safe(&item.path)?;
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(reference), _) => field(pod, &reference.field_path)?,
            (None, Some(reference)) => crate::pod::env::resource(pod, reference, None)?,
            (None, None) => String::new(),
        };
        files.insert(item.path.clone(), (text.into_bytes(), item.mode.unwrap_or(mode) as u32));
    }
    Ok(())
}

/// The content of a volume; `None` if it is of another kind.
pub async fn collect(pod: &Pod, volume: &Volume, objects: &dyn ObjectSource) -> Result<Option<Payload>, String> {
    let mut files = Files::new();
    if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let optional = source.optional.unwrap_or(false);
        config_map(&mut files, pod, &source.name, source.items.as_ref(), mode, optional, objects).await?;
        return Ok(Some(Payload { kind: "configmap", secret: false, files }));
    }
    if let Some(source) = &volume.secret {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let name = source.secret_name.as_deref().unwrap_or_default();
        secret(&mut files, pod, name, source.items.as_ref(), mode, source.optional.unwrap_or(false), objects).await?;
        return Ok(Some(Payload { kind: "secret", secret: true, files }));
    }
    if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        downward(&mut files, pod, source.items.as_deref().unwrap_or_default(), mode)?;
        return Ok(Some(Payload { kind: "downward-api", secret: false, files }));
    }
    if let Some(source) = &volume.projected {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        for part in source.sources.iter().flatten() {
            projection(&mut files, pod, part, mode, objects).await?;
        }
        return Ok(Some(Payload { kind: "projected", secret: true, files }));
    }
    Ok(None)
}

async fn projection(
    files: &mut Files,
    pod: &Pod,
    part: &VolumeProjection,
    mode: i32,
    objects: &dyn ObjectSource,
) -> Result<(), String> {
    if let Some(source) = &part.config_map {
        let optional = source.optional.unwrap_or(false);
        config_map(files, pod, &source.name, source.items.as_ref(), mode, optional, objects).await?;
    }
    if let Some(source) = &part.secret {
        let optional = source.optional.unwrap_or(false);
        secret(files, pod, &source.name, source.items.as_ref(), mode, optional, objects).await?;
    }
    if let Some(source) = &part.downward_api {
        downward(files, pod, source.items.as_deref().unwrap_or_default(), mode)?;
    }
    if let Some(source) = &part.service_account_token {
        safe(&source.path)?;
        let seconds = source.expiration_seconds.unwrap_or(TOKEN_SECONDS);
        let token = objects.token(pod, source.audience.clone(), seconds).await?;
        files.insert(source.path.clone(), (token.into_bytes(), mode as u32));
    }
    Ok(())
}

async fn config_map(
    files: &mut Files,
    pod: &Pod,
    name: &str,
    items: Option<&Vec<KeyToPath>>,
    mode: i32,
    optional: bool,
    objects: &dyn ObjectSource,
) -> Result<(), String> {
    match objects.config_map(namespace(pod), name).await? {
        Some(map) => add(files, config_map_data(map), items, mode, "config", optional),
        None if optional => Ok(()),
        None => Err(format!("configmap {name:?} not found")),
    }
}

async fn secret(
    files: &mut Files,
    pod: &Pod,
    name: &str,
    items: Option<&Vec<KeyToPath>>,
    mode: i32,
    optional: bool,
    objects: &dyn ObjectSource,
) -> Result<(), String> {
    match objects.secret(namespace(pod), name).await? {
        Some(found) => add(files, secret_data(found), items, mode, "secret", optional),
        None if optional => Ok(()),
        None => Err(format!("secret {name:?} not found")),
    }
}
