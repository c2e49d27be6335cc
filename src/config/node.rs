//! The settings about the Node object: labels, taints, devices.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Taint;

use super::{ConfigError, wrong};
use crate::machine::devices::DeviceResource;

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

/// Each resource once.
pub(super) fn devices(written: Vec<DeviceResource>) -> Result<Vec<DeviceResource>, ConfigError> {
    let mut names = BTreeSet::new();
    match written.iter().find(|d| !names.insert(d.name.clone())) {
        Some(twice) => wrong(format!("devices: {} is there twice: put all its paths into one entry", twice.name)),
        None => Ok(written),
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn mistakes_in_devices_are_named() {
        let bad =
            parse("port: 1\ndevices:\n- name: a/b\n  paths: [/dev/x]\n- name: pikelet.io/i2c\n  paths: [/etc/x]\n");
        let bad = bad.unwrap_err();
        assert!(bad.contains("devices: pikelet.io/i2c: path \"/etc/x\"") && bad.contains("line 5"), "{bad}");
        let bad = parse("devices:\n- name: a/b\n  path: /dev/x\n").unwrap_err();
        assert_eq!(bad, "line 3: there is no setting \"path\": did you mean \"paths\"?");
        let twice = parse("devices: [{name: a/b, paths: [/dev/x]}, {name: a/b, paths: [/dev/y]}]").unwrap();
        let twice = devices(twice.devices).unwrap_err().to_string();
        assert!(twice.contains("a/b is there twice"), "{twice}");
    }
}
