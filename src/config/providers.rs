//! The kubelet's `CredentialProviderConfig` (v1): which programs know logins of which images.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, duration, mistake};
use crate::image::Provider;

/// How long a program may take, as with the kubelet.
const TIMEOUT: Duration = Duration::from_mins(1);

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    api_version: String,
    kind: String,
    providers: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Entry {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: String,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    value: String,
}

/// The providers of a file, programs in `bin_dir`; both are named or neither.
pub(super) fn read(file: Option<&PathBuf>, bin_dir: Option<&PathBuf>) -> Result<Vec<Provider>, ConfigError> {
    let (file, bin_dir) = match (file, bin_dir) {
        (Some(file), Some(bin_dir)) => (file, bin_dir),
        (None, None) => return Ok(Vec::new()),
        _ => {
            return Err(ConfigError(
                "imageCredentialProviderConfig and imageCredentialProviderBinDir go together".to_owned(),
            ));
        }
    };
    let bad = |message: String| ConfigError(format!("{}: {message}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| bad(e.to_string()))?;
    let found: File = serde_saphyr::from_str(&text).map_err(|e| bad(mistake::explain(&e)))?;
    let version = found.api_version.strip_prefix("kubelet.config.k8s.io/");
    if found.kind != "CredentialProviderConfig" || !version.is_some_and(known) {
        let (kind, version) = (&found.kind, &found.api_version);
        return Err(bad(format!("{kind} of {version}: it is CredentialProviderConfig of kubelet.config.k8s.io/v1")));
    }
    let mut providers: Vec<Provider> = Vec::new();
    for entry in found.providers {
        let provider = provider(entry, bin_dir).map_err(&bad)?;
        if providers.iter().any(|p| p.name == provider.name) {
            return Err(bad(format!("provider {:?} is there twice", provider.name)));
        }
        providers.push(provider);
    }
    Ok(providers)
}

fn known(version: &str) -> bool {
    matches!(version, "v1" | "v1beta1" | "v1alpha1")
}

fn provider(entry: Entry, bin_dir: &Path) -> Result<Provider, String> {
    let name = entry.name;
    if name.is_empty() || name.contains(['/', ' ']) || matches!(name.as_str(), "." | "..") {
        return Err(format!("provider {name:?}: its name is that of a program in the folder"));
    }
    if entry.match_images.is_empty() {
        return Err(format!("provider {name:?}: matchImages is empty"));
    }
    if !entry.api_version.strip_prefix("credentialprovider.kubelet.k8s.io/").is_some_and(known) {
        let version = entry.api_version;
        return Err(format!("provider {name:?}: apiVersion {version:?}: it is credentialprovider.kubelet.k8s.io/v1"));
    }
    let program = bin_dir.join(&name);
    if !program.is_file() {
        return Err(format!("provider {name:?}: there is no program {}", program.display()));
    }
    let duration = duration("defaultCacheDuration", &entry.default_cache_duration);
    Ok(Provider {
        program,
        args: entry.args,
        env: entry.env.into_iter().map(|v| (v.name, v.value)).collect(),
        match_images: entry.match_images,
        default_cache_duration: duration.map_err(|e| format!("provider {name:?}: {e}"))?,
        api_version: entry.api_version,
        timeout: TIMEOUT,
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelets_file_is_read_and_its_mistakes_are_named() {
        let dir = std::env::temp_dir().join(format!("pikelet-providers-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("ecr"), "").unwrap();
        let file = dir.join("providers.yaml");
        let of = |providers: &str| {
            let head = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n";
            std::fs::write(&file, format!("{head}{providers}")).unwrap();
            read(Some(&file), Some(&dir)).map_err(|e| e.to_string())
        };
        let version = "apiVersion: credentialprovider.kubelet.k8s.io/v1";
        let rest = format!("matchImages: [\"*.example\"], defaultCacheDuration: 12h, {version}");
        let found = of(&format!("- {{name: ecr, {rest}, args: [get], env: [{{name: A, value: b}}]}}")).unwrap();
        assert_eq!((found[0].default_cache_duration, found[0].args.len()), (Duration::from_hours(12), 1));
        assert_eq!((found[0].env[0].0.as_str(), found[0].program.clone()), ("A", dir.join("ecr")));
        assert!(of(&format!("- {{name: none, {rest}}}")).unwrap_err().contains("no program"));
        assert!(of(&format!("- {{name: ../ecr, {rest}}}")).unwrap_err().contains("name"));
        assert!(of(&format!("- {{name: ecr, {rest}}}\n- {{name: ecr, {rest}}}")).unwrap_err().contains("twice"));
        assert!(of("- {name: ecr, matchImage: []}").unwrap_err().contains("matchImages"));
        assert!(read(Some(&file), None).unwrap_err().to_string().contains("go together"));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
