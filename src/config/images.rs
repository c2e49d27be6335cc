//! The settings of the image store: registries, pulls at once, garbage collection.

use std::path::{Path, PathBuf};

use super::{ConfigError, Settings, duration, mistake, providers, wrong};
use crate::image::{GcPolicy, Registries, StoreConfig, Verification, node_config_files};

/// Where a `registries.yaml` is looked for when none is named: the first there is counts.
const REGISTRIES: [&str; 2] = ["/etc/pikelet/registries.yaml", "/etc/rancher/k3s/registries.yaml"];

fn registries(named: Option<&Path>) -> Result<Registries, ConfigError> {
    let path = match named {
        Some(path) => path,
        None => match REGISTRIES.iter().map(Path::new).find(|p| p.exists()) {
            Some(path) => path,
            None => return Ok(Registries::default()),
        },
    };
    let bad = |message: String| ConfigError(format!("{}: {message}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    let lines = text.lines().map(str::trim);
    if lines.filter(|l| !l.is_empty() && !l.starts_with('#')).all(|l| l == "---") {
        return Ok(Registries::default());
    }
    let found: Registries = serde_saphyr::from_str(&text).map_err(|e| bad(mistake::explain(&e)))?;
    found.check().map_err(bad)?;
    Ok(found)
}

/// The kubelet's rule, but for the default: one image at a time makes a board wait for nothing.
fn parallel(serialize: Option<bool>, most: Option<i32>) -> Result<Option<usize>, ConfigError> {
    match (serialize, most) {
        (_, Some(n)) if n < 1 => wrong(format!("maxParallelImagePulls {n}: at least 1 is needed")),
        (Some(true), Some(n)) if n > 1 => {
            wrong(format!("maxParallelImagePulls {n}: more than 1 needs serializeImagePulls: false"))
        }
        (Some(true), _) => Ok(Some(1)),
        (_, most) => Ok(most.and_then(|n| usize::try_from(n).ok())),
    }
}

/// Settings of the store below `root_dir`.
pub(super) fn store(root_dir: &Path, flags: &Settings, file: &Settings) -> Result<StoreConfig, ConfigError> {
    let mut hosts = file.registries.clone();
    for host in file.insecure_registries.iter().chain(&flags.insecure_registries) {
        hosts.entry(host.clone()).or_default().insecure = true;
    }
    let named: Option<&PathBuf> = flags.private_registry.as_ref().or(file.private_registry.as_ref());
    let import_dir = flags.image_import_dir.as_ref().or(file.image_import_dir.as_ref());
    Ok(StoreConfig {
        dir: root_dir.join("images"),
        registries: hosts,
        private: registries(named.map(PathBuf::as_path))?,
        only_mirrors: flags
            .disable_default_registry_endpoint
            .or(file.disable_default_registry_endpoint)
            .unwrap_or(false),
        node_logins: node_config_files(root_dir),
        providers: providers::read(
            flags.image_credential_provider_config.as_ref().or(file.image_credential_provider_config.as_ref()),
            flags.image_credential_provider_bin_dir.as_ref().or(file.image_credential_provider_bin_dir.as_ref()),
        )?,
        max_parallel_pulls: parallel(
            flags.serialize_image_pulls.or(file.serialize_image_pulls),
            flags.max_parallel_image_pulls.or(file.max_parallel_image_pulls),
        )?,
        verification: Verification::parse(
            flags
                .image_pull_credentials_verification_policy
                .as_ref()
                .or(file.image_pull_credentials_verification_policy.as_ref())
                .map(String::as_str),
            match flags.preloaded_images_verification_allowlist.as_slice() {
                [] => &file.preloaded_images_verification_allowlist,
                list => list,
            },
        )
        .map_err(ConfigError)?,
        import_dir: Some(import_dir.cloned().unwrap_or_else(|| root_dir.join("images-import"))),
        keep_blobs: flags.keep_blobs.or(file.keep_blobs).unwrap_or(false),
        max_unpack_ratio: match flags.max_image_unpack_ratio.or(file.max_image_unpack_ratio) {
            Some(0) => return wrong("maxImageUnpackRatio 0: nothing could be unpacked".to_owned()),
            ratio => ratio,
        },
    })
}

/// When images are removed by themselves.
pub(super) fn collection(flags: &Settings, file: &Settings) -> Result<GcPolicy, ConfigError> {
    let default = GcPolicy::default();
    let percent = |name: &str, flag: Option<u8>, file: Option<u8>, default: u8| match flag.or(file).unwrap_or(default) {
        n @ 0..=100 => Ok(n),
        n => wrong(format!("{name} {n}: it is a percentage, 0 to 100")),
    };
    let high = percent(
        "imageGCHighThresholdPercent",
        flags.image_gc_high_threshold,
        file.image_gc_high_threshold,
        default.high_percent,
    )?;
    let low = percent(
        "imageGCLowThresholdPercent",
        flags.image_gc_low_threshold,
        file.image_gc_low_threshold,
        default.low_percent,
    )?;
    if low >= high {
        return wrong(format!(
            "imageGCLowThresholdPercent {low}: it is less than imageGCHighThresholdPercent, which is {high}"
        ));
    }
    let time = |name: &str, text: Option<&String>, default| text.map_or(Ok(default), |text| duration(name, text));
    let minimum = flags.image_minimum_gc_age.as_ref().or(file.image_minimum_gc_age.as_ref());
    let min_age = time("imageMinimumGCAge", minimum, default.min_age)?;
    let max_age = time("imageMaximumGCAge", file.image_maximum_gc_age.as_ref(), default.max_age)?;
    if !max_age.is_zero() && max_age <= min_age {
        return wrong("imageMaximumGCAge: it is 0, or more than imageMinimumGCAge".to_owned());
    }
    Ok(GcPolicy { high_percent: high, low_percent: low, min_age, max_age })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn parse(text: &str) -> Settings {
        serde_saphyr::from_str(text).unwrap()
    }

    #[test]
    fn pulls_at_once_are_spelled_as_the_kubelet_does() {
        let of = |text: &str| store(Path::new("/r"), &Settings::default(), &parse(text)).map(|s| s.max_parallel_pulls);
        assert_eq!(of("serializeImagePulls: true").unwrap(), Some(1));
        assert_eq!(of("maxParallelImagePulls: 5").unwrap(), Some(5));
        assert_eq!(of("port: 1").unwrap(), None);
        assert!(of("serializeImagePulls: true\nmaxParallelImagePulls: 2").unwrap_err().to_string().contains("false"));
        assert!(of("maxParallelImagePulls: 0").is_err());
    }

    #[test]
    fn who_may_use_what_is_here_is_spelled_as_the_kubelet_does() {
        let of = |text: &str| store(Path::new("/r"), &Settings::default(), &parse(text)).map(|s| s.verification);
        assert_eq!(of("port: 1").unwrap(), Verification::NeverVerifyPreloadedImages);
        assert_eq!(of("imagePullCredentialsVerificationPolicy: AlwaysVerify").unwrap(), Verification::AlwaysVerify);
        let listed = of("imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages\n\
                         preloadedImagesVerificationAllowlist: [\"r.example/*\"]");
        assert_eq!(listed.unwrap(), Verification::NeverVerifyAllowlistedImages(vec!["r.example/*".into()]));
        assert!(of("preloadedImagesVerificationAllowlist: [r]").unwrap_err().to_string().contains("needs"));
    }

    #[test]
    fn archives_blobs_and_limits_are_set() {
        let of = |text: &str| store(Path::new("/r"), &Settings::default(), &parse(text));
        let default = of("port: 1").unwrap();
        assert_eq!((default.import_dir, default.keep_blobs), (Some("/r/images-import".into()), false));
        let set = of("imageImportDir: /i\nkeepBlobs: true\nmaxImageUnpackRatio: 500").unwrap();
        assert_eq!((set.import_dir, set.keep_blobs, set.max_unpack_ratio), (Some("/i".into()), true, Some(500)));
        assert!(!default.only_mirrors && of("disable-default-registry-endpoint: true").unwrap().only_mirrors);
        assert!(of("maxImageUnpackRatio: 0").unwrap_err().to_string().contains("maxImageUnpackRatio"));
    }

    #[test]
    fn garbage_collection_is_spelled_as_the_kubelet_does() {
        let of = |text: &str| collection(&Settings::default(), &parse(text));
        let policy = of("imageGCHighThresholdPercent: 70\nimageGCLowThresholdPercent: 60\nimageMinimumGCAge: 1m0s\n\
                         imageMaximumGCAge: 24h0m0s")
        .unwrap();
        assert_eq!((policy.high_percent, policy.low_percent), (70, 60));
        assert_eq!((policy.min_age, policy.max_age), (Duration::from_mins(1), Duration::from_hours(24)));
        assert!(of("imageGCHighThresholdPercent: 70").unwrap_err().to_string().contains("less than"));
        assert!(of("imageMaximumGCAge: 1m").is_err());
        assert_eq!(of("port: 1").unwrap(), GcPolicy::default());
    }

    #[test]
    fn a_registries_file_is_read_and_its_mistakes_are_named() {
        let path = std::env::temp_dir().join(format!("pikelet-registries-{}.yaml", std::process::id()));
        let of = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let flags = Settings { private_registry: Some(path.clone()), ..Settings::default() };
            store(Path::new("/r"), &flags, &Settings::default())
        };
        let found = of("mirrors:\n  r.example:\n    endpoint:\n      - http://10.0.0.1:5000\n").unwrap().private;
        assert_eq!(found.mirrors["r.example"].endpoint, ["http://10.0.0.1:5000"]);
        assert_eq!(of("---\n# nothing yet\n").unwrap().private, Registries::default());
        let error = of("mirrors:\n  r.example:\n    endpoints: []\n").unwrap_err().to_string();
        assert!(error.contains("\"endpoints\"") && error.contains("\"endpoint\""), "{error}");
        for text in ["configs: {r: {auth: \"u:hunter2\"}}", "configs: {r: {auth: {username:u,password:hunter2}}}"] {
            let error = of(text).unwrap_err().to_string();
            assert!(!error.contains("hunter2") && error.contains("line 1"), "{error}");
        }
        assert!(of("mirrors: {r: {endpoint: [\"ftp://x\"]}}").unwrap_err().to_string().contains("http or https"));
        std::fs::remove_file(&path).unwrap();
        assert!(of_missing(&path).contains("No such file"));
    }

    fn of_missing(path: &Path) -> String {
        registries(Some(path)).unwrap_err().to_string()
    }
}
