//! Values that are written as text: labels, taints, durations.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;

use super::{ConfigError, wrong};

/// Labels written `key=value`.
pub(super) fn labels(written: &[String]) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut labels = BTreeMap::new();
    for label in written {
        let Some((key, value)) = label.split_once('=').filter(|(k, _)| !k.is_empty()) else {
            return wrong(format!("node label {label:?}: it is written key=value"));
        };
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(labels)
}

/// A taint written `key[=value]:effect`.
pub(super) fn taint(written: &str) -> Result<Taint, ConfigError> {
    let (left, effect) = written.rsplit_once(':').unwrap_or((written, ""));
    let (key, value) = left.split_once('=').unwrap_or((left, ""));
    if key.is_empty() || !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        return wrong(format!(
            "taint {written:?}: it is written key[=value]:effect, and the effect is NoSchedule, PreferNoSchedule or NoExecute"
        ));
    }
    let value = Some(value.to_owned()).filter(|v| !v.is_empty());
    Ok(Taint { key: key.to_owned(), value, effect: effect.to_owned(), ..Taint::default() })
}

/// A duration as Go writes it, such as `4h0m0s` or `90s`.
pub(crate) fn duration(name: &str, written: &str) -> Result<Duration, ConfigError> {
    let parsed =
        written.parse::<jiff::SignedDuration>().ok().or((written == "0").then_some(jiff::SignedDuration::ZERO));
    parsed
        .and_then(|d| Duration::try_from(d).ok())
        .ok_or_else(|| ConfigError(format!("{name} {written:?}: it is a duration such as 4h or 90s")))
}
