//! Which board this is, from its device tree: model, serial number, system on a chip; and the Node's labels of it.
//!
//! Rules: the Devicetree Specification's `model` and `compatible` (most to least specific), the serial number as firmware
//! of Raspberry Pis and others hands it on. Machines without a device tree have none of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Most characters of a label's value.
const LABEL: usize = 63;

/// What a board says of itself; empty where it does not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Board {
    /// Such as `Raspberry Pi 4 Model B Rev 1.4`.
    pub model: String,
    /// Such as `10000000a1b2c3d4`.
    pub serial: String,
    /// Such as `raspberrypi,4-model-b` and then `brcm,bcm2711`.
    pub compatible: Vec<String>,
}

/// The strings of a property, each with a byte 0 behind it.
fn strings(root: &Path, property: &str) -> Vec<String> {
    let bytes = fs::read(root.join("proc/device-tree").join(property)).unwrap_or_default();
    let texts = bytes.split(|b| *b == 0).map(|text| String::from_utf8_lossy(text).trim().to_owned());
    texts.filter(|text| !text.is_empty()).collect()
}

/// A text as the value of a label: what must not be in one becomes `-`; `None` when nothing is left.
fn label(text: &str) -> Option<String> {
    let mut value = String::new();
    for c in text.chars() {
        let c = if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' };
        if c != '-' || !value.ends_with('-') {
            value.push(c);
        }
    }
    value.truncate(LABEL);
    let value = value.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    (!value.is_empty()).then(|| value.to_owned())
}

impl Board {
    /// Reads the device tree; `root` is where `/proc` lies.
    pub fn read(root: &Path) -> Self {
        let first = |property| strings(root, property).into_iter().next().unwrap_or_default();
        Self { model: first("model"), serial: first("serial-number"), compatible: strings(root, "compatible") }
    }

    /// The labels a Node has of its board. A node may set all of these itself (`NodeRestriction` keeps nodes from others
    /// of `kubernetes.io` only).
    pub fn labels(&self) -> BTreeMap<String, String> {
        // without the maker's name, as people call it
        let soc = self.compatible.last().filter(|_| self.compatible.len() > 1);
        let soc = soc.and_then(|s| s.rsplit(',').next()).unwrap_or_default();
        let labels = [
            ("node.kubernetes.io/instance-type", self.compatible.first().map_or("", String::as_str)),
            ("pikelet.io/board", &self.model),
            ("pikelet.io/serial", &self.serial),
            ("pikelet.io/soc", soc),
        ];
        labels.into_iter().filter_map(|(key, value)| Some((key.to_owned(), label(value)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::folder::Folder;
    use super::*;

    #[test]
    fn a_raspberry_pi_4_is_known_by_its_device_tree() {
        let root = Folder::raspberry_pi_4();
        let board = Board::read(root.path());
        assert_eq!(board.model, "Raspberry Pi 4 Model B Rev 1.4");
        let labels: Vec<(String, String)> = board.labels().into_iter().collect();
        let want = [
            ("node.kubernetes.io/instance-type", "raspberrypi-4-model-b"),
            ("pikelet.io/board", "Raspberry-Pi-4-Model-B-Rev-1.4"),
            ("pikelet.io/serial", "10000000a1b2c3d4"),
            ("pikelet.io/soc", "bcm2711"),
        ];
        assert_eq!(labels, want.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }

    #[test]
    fn machines_without_a_device_tree_get_no_labels() {
        let root = Folder::new();
        assert_eq!(Board::read(root.path()), Board::default());
        assert!(Board::default().labels().is_empty());
    }

    #[test]
    fn any_text_makes_a_label_the_api_server_takes() {
        assert_eq!(label("  (Orange) Pi / Zero+ ").as_deref(), Some("Orange-Pi-Zero"));
        assert_eq!(label("ACME\u{e9}\u{e9}-Board_").as_deref(), Some("ACME-Board"));
        assert_eq!(label(&"x".repeat(80)).map(|v| v.len()), Some(63));
        assert_eq!(label(&format!("{}--tail", "x".repeat(62))).as_deref(), Some("x".repeat(62).as_str()));
        assert_eq!(label("--"), None);
    }
}
