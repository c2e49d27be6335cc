//! Devices of the board that pods may ask for as resources (`devices:` of the settings), and which of them are there.
//!
//! A resource is given in units. As a rule one unit is all its devices together, and `count` containers may have one at
//! a time: GPIO, a camera and what it needs. With `perDevice` each device is a unit: serial lines, of which a container
//! gets one for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use glob::Pattern;
use serde::{Deserialize, Serialize};

/// Most containers that may share a device.
const MOST: u32 = 1000;

/// One entry of `devices`, checked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "Written", rename_all = "camelCase")]
pub struct DeviceResource {
    /// The resource, such as `pikelet.io/gpio`.
    pub name: String,
    /// Paths below `/dev`, with `*`, `?` and `[...]`.
    paths: Vec<String>,
    /// Units there are of each device, or of all together.
    count: u32,
    /// What of `r`, `w` and `m` (mknod) a container may do.
    pub permissions: String,
    /// Each device is given on its own.
    per_device: bool,
}

/// An entry as a person writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Written {
    name: String,
    paths: Vec<String>,
    #[serde(default = "one")]
    count: u32,
    #[serde(default = "read_and_write")]
    permissions: String,
    #[serde(default)]
    per_device: bool,
}

const fn one() -> u32 {
    1
}

fn read_and_write() -> String {
    "rw".to_owned()
}

/// Kubernetes' rule for the names of extended resources: a domain that is not its own, and a name.
fn is_resource_name(name: &str) -> bool {
    let Some((domain, rest)) = name.split_once('/') else { return false };
    let ends = |part: &str| {
        let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        alphanumeric(part.chars().next()) && alphanumeric(part.chars().last())
    };
    let label =
        |part: &str| ends(part) && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    let own = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io") || domain.starts_with("requests.");
    let named = rest.len() <= 63 && rest.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    !own && domain.len() <= 253 && domain.split('.').all(label) && named && ends(rest)
}

impl TryFrom<Written> for DeviceResource {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { name, paths, count, permissions, per_device } = written;
        if !is_resource_name(&name) {
            return Err(format!(
                "devices: name {name:?}: it is a domain that is not Kubernetes' own, and a name, such as pikelet.io/gpio"
            ));
        }
        let wrong = |what: String| Err(format!("devices: {name}: {what}"));
        if paths.is_empty() {
            return wrong("paths is empty: name a device such as /dev/gpiochip*".to_owned());
        }
        for path in &paths {
            let inside =
                path.strip_prefix("/dev/").is_some_and(|rest| !rest.split('/').any(|p| matches!(p, "" | "." | "..")));
            if !inside {
                return wrong(format!("path {path}: it is one below /dev, such as /dev/gpiochip*"));
            }
            if let Err(error) = Pattern::new(path) {
                return wrong(format!("path {path:?}: {error}"));
            }
        }
        if count == 0 || count > MOST {
            return wrong(format!("count {count}: it is how many containers may share it, 1 to {MOST}"));
        }
        let letters: BTreeSet<char> = permissions.chars().collect();
        if letters.is_empty() || letters.len() != permissions.len() || !letters.iter().all(|c| "rwm".contains(*c)) {
            return wrong(format!("permissions {permissions:?}: they are of r (read), w (write) and m (mknod)"));
        }
        Ok(Self { name, paths, count, permissions, per_device })
    }
}

/// Whether it is a device, or a link to one.
fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.file_type().is_char_device() || m.file_type().is_block_device())
}

/// The devices a pattern stands for, in their order.
fn matching(pattern: &str) -> Vec<PathBuf> {
    // it was parsed before
    glob::glob(pattern).into_iter().flatten().flatten().filter(|path| is_device(path)).collect()
}

impl DeviceResource {
    /// The units that are there now, by names that stay the same.
    pub fn units(&self) -> BTreeSet<String> {
        let numbers = 0..self.count;
        if self.per_device {
            let devices = self.paths.iter().flat_map(|p| matching(p));
            return devices.flat_map(|d| numbers.clone().map(move |n| format!("{}#{n}", d.display()))).collect();
        }
        // one that lacks a part would not work
        if self.paths.iter().any(|p| matching(p).is_empty()) {
            return BTreeSet::new();
        }
        numbers.map(|n| n.to_string()).collect()
    }

    /// The devices of a unit. Error: what is not there, for the person who looks at the pod.
    pub fn devices(&self, unit: &str) -> Result<Vec<PathBuf>, String> {
        if self.per_device {
            let path = Path::new(unit.rsplit_once('#').map_or(unit, |(path, _)| path));
            return if is_device(path) {
                Ok(vec![path.to_owned()])
            } else {
                Err(format!("device {} of {} is not there any more", path.display(), self.name))
            };
        }
        let found: Vec<_> = self.paths.iter().map(|p| (p, matching(p))).collect();
        if let Some((path, _)) = found.iter().find(|(_, devices)| devices.is_empty()) {
            return Err(format!("device {path} of {} is not there any more", self.name));
        }
        let all: BTreeSet<PathBuf> = found.into_iter().flat_map(|(_, devices)| devices).collect();
        Ok(all.into_iter().collect())
    }
}

/// Capacity and allocatable of each resource, in units.
pub type Counts = BTreeMap<String, (u64, u64)>;

/// The resources of this machine.
#[derive(Debug, Default)]
pub struct Devices {
    resources: BTreeMap<String, DeviceResource>,
    /// Units that were there at some time since the start.
    known: Mutex<BTreeMap<String, BTreeSet<String>>>,
}

impl Devices {
    /// Of these settings; their names differ.
    pub fn new(resources: &[DeviceResource]) -> Self {
        Self { resources: resources.iter().map(|r| (r.name.clone(), r.clone())).collect(), known: Mutex::default() }
    }

    /// True when there are none to look for.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// The resource of that name.
    pub fn get(&self, name: &str) -> Option<&DeviceResource> {
        self.resources.get(name)
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.resources.keys().map(String::as_str)
    }

    /// Looks what is there. A device that goes away takes its units from what is allocatable; they stay capacity.
    pub fn counts(&self) -> Counts {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |resource: &DeviceResource| {
            let now = resource.units();
            let known = known.entry(resource.name.clone()).or_default();
            let all = if resource.per_device { 0 } else { resource.count as usize };
            known.extend(now.iter().cloned());
            (known.len().max(all) as u64, now.len() as u64)
        };
        let mut count = count;
        self.resources.values().map(|r| (r.name.clone(), count(r))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn parse(text: &str) -> Result<DeviceResource, String> {
        serde_saphyr::from_str(text).map_err(|e| e.to_string())
    }

    /// Links in /dev, which only root can make; each is removed when it is dropped.
    struct Link(PathBuf);

    impl Link {
        fn new(name: &str, to: &str) -> Option<Self> {
            let path = Path::new("/dev").join(format!("pikelet-{}-{name}", std::process::id()));
            symlink(to, &path).ok().map(|()| Self(path))
        }
    }

    impl Drop for Link {
        fn drop(&mut self) {
            fs::remove_file(&self.0).unwrap();
        }
    }

    #[test]
    fn settings_are_checked() {
        let good = parse("{name: pikelet.io/gpio, paths: [/dev/gpiochip*, /dev/gpiomem], count: 4, permissions: rwm}");
        let good = good.unwrap();
        assert_eq!((good.count, good.permissions.as_str(), good.per_device), (4, "rwm", false));
        let least = parse("{name: squat.ai/serial, paths: [/dev/ttyUSB*], perDevice: true}").unwrap();
        assert_eq!((least.count, least.permissions.as_str(), least.per_device), (1, "rw", true));
        for (text, part) in [
            ("{name: gpio, paths: [/dev/x]}", "name \"gpio\""),
            ("{name: a.kubernetes.io/gpio, paths: [/dev/x]}", "such as pikelet.io/gpio"),
            ("{name: -a/b, paths: [/dev/x]}", "name \"-a/b\""),
            ("{name: a/b, paths: []}", "paths is empty"),
            ("{name: a/b, paths: [/etc/passwd]}", "path /etc/passwd: it is one below /dev"),
            ("{name: a/b, paths: [/dev/../etc]}", "below /dev"),
            ("{name: a/b, paths: ['/dev/[x']}", "/dev/[x"),
            ("{name: a/b, paths: [/dev/x], count: 0}", "count 0"),
            ("{name: a/b, paths: [/dev/x], permissions: rx}", "permissions \"rx\""),
            ("{name: a/b, paths: [/dev/x], permissions: rr}", "permissions \"rr\""),
            ("{name: a/b, paths: [/dev/x], permission: r}", "permission"),
            ("{name: a/b}", "paths"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn devices_together_are_there_when_all_are() {
        let resource = parse("{name: a/b, paths: [/dev/nul?, /dev/zero], count: 2}").unwrap();
        assert_eq!(resource.units(), ["0".to_owned(), "1".to_owned()].into());
        assert_eq!(resource.devices("1").unwrap(), [Path::new("/dev/null"), Path::new("/dev/zero")]);
        // /dev/pts is a folder
        let lacking = parse("{name: a/b, paths: [/dev/null, /dev/pts], count: 2}").unwrap();
        assert!(lacking.units().is_empty());
        assert!(lacking.devices("0").unwrap_err().contains("/dev/pts of a/b is not there"));
        assert_eq!(Devices::new(&[lacking, resource]).counts().into_values().collect::<Vec<_>>(), [(2, 2)]);
    }

    #[test]
    fn devices_come_and_go() {
        let Some(one) = Link::new("0", "null") else { return eprintln!("skipped: needs root") };
        let resource =
            parse(&format!("{{name: a/b, paths: ['/dev/pikelet-{}-*'], perDevice: true}}", std::process::id()));
        let devices = Devices::new(&[resource.unwrap()]);
        let count = || devices.counts()["a/b"];
        assert_eq!(count(), (1, 1));
        let two = Link::new("1", "zero").unwrap();
        assert_eq!(count(), (2, 2));
        let unit = format!("{}#0", one.0.display());
        assert_eq!(devices.get("a/b").unwrap().devices(&unit).unwrap(), std::slice::from_ref(&one.0));
        drop(one);
        assert_eq!(count(), (2, 1));
        assert!(devices.get("a/b").unwrap().devices(&unit).unwrap_err().contains("not there any more"));
        drop(two);
        assert_eq!(count(), (2, 0));
    }
}
