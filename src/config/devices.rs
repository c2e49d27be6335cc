//! The settings about the devices of the Node.

use std::collections::BTreeSet;

use super::{ConfigError, wrong};
use crate::machine::devices::DeviceResource;

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
        assert!(bad.contains("devices: pikelet.io/i2c: path /etc/x:") && bad.contains("line 5"), "{bad}");
        let bad = parse("devices:\n- name: a/b\n  path: /dev/x\n").unwrap_err();
        assert_eq!(bad, "line 3: there is no setting \"path\": did you mean \"paths\"?");
        let twice = parse("devices: [{name: a/b, paths: [/dev/x]}, {name: a/b, paths: [/dev/y]}]").unwrap();
        let twice = devices(twice.devices).unwrap_err().to_string();
        assert!(twice.contains("a/b is there twice"), "{twice}");
    }
}
