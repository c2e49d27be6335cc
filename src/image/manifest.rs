//! Manifests, indexes and image configurations (OCI Image Format Specification).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::platform::{Platform, nullable};

/// A reference to a blob.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// `sha256:...`.
    pub digest: String,
    /// Bytes.
    #[serde(default)]
    pub size: u64,
    /// Platform of an index entry.
    pub platform: Option<Platform>,
    /// Of an index entry: what it is, where it is no image.
    #[serde(default)]
    pub artifact_type: Option<String>,
}

/// A manifest or an index.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// What it is, where it says so.
    pub media_type: Option<String>,
    /// Image configuration; a manifest has one.
    pub config: Option<Descriptor>,
    /// Layers, lowest first.
    #[serde(default, deserialize_with = "nullable")]
    pub layers: Vec<Descriptor>,
    /// Entries; an index has them.
    #[serde(default)]
    pub manifests: Option<Vec<Descriptor>>,
    /// What it is, where it is no image.
    #[serde(default)]
    pub artifact_type: Option<String>,
    /// Layers of schema 1.
    #[serde(default)]
    fs_layers: Option<Value>,
}

impl Manifest {
    /// Reads a manifest or an index; refuses what could be taken for either (CVE-2021-41190), and what is neither.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let read: Self = serde_json::from_slice(text).map_err(|e| format!("manifest: {e}"))?;
        if read.fs_layers.is_some() {
            return Err(
                "it is a manifest of schema 1, which nobody makes any more: push the image again with a current \
                docker, skopeo or crane"
                    .to_owned(),
            );
        }
        let said = read.media_type.as_deref().unwrap_or_default();
        let says_index = said.ends_with("image.index.v1+json") || said.ends_with("manifest.list.v2+json");
        let says_manifest = said.ends_with("manifest.v1+json") || said.ends_with("manifest.v2+json");
        let (index, manifest) = (read.manifests.is_some(), read.config.is_some() || !read.layers.is_empty());
        if (index || says_index) && manifest || index && says_manifest {
            return Err("it is an index and a manifest in one: refused, as it could be taken for either".to_owned());
        }
        Ok(Self {
            manifests: if says_index { Some(read.manifests.unwrap_or_default()) } else { read.manifests },
            ..read
        })
    }

    /// What kind of thing it is of which somebody thought that it were an image.
    pub fn kind(&self) -> String {
        if self.config.is_none() && self.artifact_type.is_none() {
            return "the manifest has no image configuration".to_owned();
        }
        let config = self.config.as_ref().map(|config| config.media_type.as_str());
        let kind = self.artifact_type.as_deref().or(config).filter(|kind| !kind.is_empty()).unwrap_or("unknown");
        format!("it is an artifact of type {kind}, not a container image")
    }
}

/// The part of an image configuration this store needs.
#[derive(Debug, Deserialize)]
pub struct ImageConfig {
    /// For which processor and system it is.
    #[serde(flatten)]
    pub platform: Platform,
    /// Process defaults.
    #[serde(default)]
    pub config: Option<ProcessConfig>,
    /// Layers by the digest of their uncompressed form.
    pub rootfs: RootFs,
}

/// `rootfs` of an image configuration.
#[derive(Debug, Deserialize)]
pub struct RootFs {
    /// Lowest first.
    #[serde(default, deserialize_with = "nullable")]
    pub diff_ids: Vec<String>,
}

/// `config` of an image configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ProcessConfig {
    /// Entry point.
    pub entrypoint: Option<Vec<String>>,
    /// Arguments.
    pub cmd: Option<Vec<String>>,
    /// `NAME=value`.
    pub env: Option<Vec<String>>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// User.
    pub user: Option<String>,
    /// Stop signal.
    pub stop_signal: Option<String>,
    /// Paths of its volumes.
    pub volumes: Option<BTreeMap<String, Value>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_image_is_called_by_its_name() {
        let parse = |text: &str| Manifest::parse(text.as_bytes());
        let config = r#"{"digest": "sha256:0", "mediaType": "application/vnd.cncf.helm.config.v1+json"}"#;
        let both = format!(r#"{{"config": {config}, "layers": [], "manifests": []}}"#);
        for confused in [
            both.as_str(),
            r#"{"mediaType": "application/vnd.oci.image.manifest.v1+json", "manifests": []}"#,
            r#"{"mediaType": "application/vnd.oci.image.index.v1+json", "layers": [{"digest": "sha256:0"}]}"#,
        ] {
            assert!(parse(confused).unwrap_err().contains("in one: refused"), "{confused}");
        }
        let old = r#"{"schemaVersion": 1, "name": "a/b", "fsLayers": [{"blobSum": "sha256:0"}], "history": []}"#;
        assert!(parse(old).unwrap_err().contains("schema 1"));
        let chart = parse(&format!(r#"{{"config": {config}, "layers": null, "manifests": null}}"#)).unwrap();
        assert!(chart.kind().contains("helm") && chart.manifests.is_none());
        let empty = parse(r#"{"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": null}"#).unwrap();
        assert_eq!(empty.manifests.map(|m| m.len()), Some(0));
    }
}
