//! Manifests, indexes and image configurations, and the choice of the right platform (OCI Image Format Specification).

use serde::Deserialize;

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
}

/// Platform of an index entry.
#[derive(Debug, Clone, Deserialize)]
pub struct Platform {
    /// Go name of the architecture.
    pub architecture: String,
    /// Go name of the operating system.
    pub os: String,
    /// Such as `v7`.
    #[serde(default)]
    pub variant: String,
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
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// Entries; an index has them.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
}

/// The part of an image configuration this store needs.
#[derive(Debug, Deserialize)]
pub struct ImageConfig {
    /// Go name of the architecture.
    #[serde(default)]
    pub architecture: String,
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
}

/// Platforms a machine can run, best first: (architecture, variant; empty matches any).
fn acceptable(arch: &str) -> &'static [(&'static str, &'static str)] {
    match arch {
        "x86_64" => &[("amd64", ""), ("386", "")],
        "aarch64" => &[("arm64", "v8"), ("arm64", "")],
        "arm" if cfg!(target_feature = "v7") => &[("arm", "v7"), ("arm", "v6"), ("arm", "v5")],
        "arm" => &[("arm", "v6"), ("arm", "v5")],
        _ => &[],
    }
}

/// True if a machine (`std::env::consts::ARCH`) can run programs for an architecture by its Go name.
pub fn runs(arch: &str, architecture: &str) -> bool {
    acceptable(arch).iter().any(|(a, _)| *a == architecture)
}

/// The entry of an index for a machine (`std::env::consts::ARCH`); the error names what there is.
pub fn choose<'a>(entries: &'a [Descriptor], arch: &str) -> Result<&'a Descriptor, String> {
    for (architecture, variant) in acceptable(arch) {
        let found = entries.iter().find(|e| {
            e.platform.as_ref().is_some_and(|p| {
                p.os == "linux" && p.architecture == *architecture && (variant.is_empty() || p.variant == *variant)
            })
        });
        if let Some(found) = found {
            return Ok(found);
        }
    }
    let names: Vec<_> = entries
        .iter()
        .filter_map(|e| e.platform.as_ref())
        .map(|p| format!("{}/{}{}{}", p.os, p.architecture, if p.variant.is_empty() { "" } else { "/" }, p.variant))
        .collect();
    Err(format!("no match for this machine ({arch}) in the index; it has: {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(architecture: &str, variant: &str) -> Descriptor {
        let platform = Platform { architecture: architecture.into(), os: "linux".into(), variant: variant.into() };
        let digest = format!("{architecture}{variant}");
        Descriptor { media_type: String::new(), digest, size: 0, platform: Some(platform) }
    }

    #[test]
    fn the_best_platform_is_taken() {
        let entries = [entry("arm", "v5"), entry("arm", "v6"), entry("arm64", "v8"), entry("amd64", "")];
        assert_eq!(choose(&entries, "x86_64").unwrap().digest, "amd64");
        assert_eq!(choose(&entries, "aarch64").unwrap().digest, "arm64v8");
        assert_eq!(choose(&entries, "arm").unwrap().digest, "armv6");
        let error = choose(&entries, "riscv64").unwrap_err();
        assert!(error.contains("linux/arm/v6"), "{error}");
    }
}
