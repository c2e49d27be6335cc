//! Device nodes of containers: those of the host that a privileged one gets, those a container was given, and the rules
//! for using them.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use serde_json::{Value, json};

use super::spec::Surroundings;
use super::types::{ContainerSpec, DeviceGrant};

/// One device node a container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Path on the host and in the container.
    pub path: PathBuf,
    /// `b` or `c`.
    pub kind: char,
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
}

/// Device nodes of the host except those every container has of its own.
pub fn host_devices(dir: &Path) -> Vec<Device> {
    let own = ["pts", "shm", "mqueue", "fd", "console", "ptmx", "null", "zero", "full", "random", "urandom", "tty"];
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        if dir == Path::new("/dev") && own.iter().any(|n| entry.file_name() == *n) {
            continue;
        }
        if kind.is_dir() {
            found.extend(host_devices(&path));
            continue;
        }
        found.extend(entry.metadata().ok().and_then(|meta| device(path, &meta)));
    }
    found
}

fn device(path: PathBuf, meta: &fs::Metadata) -> Option<Device> {
    let kind = match meta.file_type() {
        t if t.is_block_device() => 'b',
        t if t.is_char_device() => 'c',
        _ => return None,
    };
    let (major, minor) = (major(meta.rdev()), minor(meta.rdev()));
    Some(Device { path, kind, major, minor, mode: meta.mode() & 0o777, uid: meta.uid(), gid: meta.gid() })
}

/// The devices the container was given. They belong to its user there, who could not open them otherwise.
pub fn granted(spec: &ContainerSpec) -> Result<Vec<(Device, String)>, String> {
    let find = |(grant, destination): (&DeviceGrant, &PathBuf)| {
        // a link's target, by the link's name
        let meta = fs::metadata(&grant.path).map_err(|e| format!("device {}: {e}", grant.path.display()))?;
        let device = device(destination.clone(), &meta);
        let device = device.ok_or_else(|| format!("{} is no device any more", grant.path.display()))?;
        let owned =
            if spec.user.uid == 0 { device } else { Device { uid: spec.user.uid, gid: spec.user.gid, ..device } };
        Ok((owned, grant.permissions.clone()))
    };
    let volumes = spec.volume_devices.iter().map(|v| (&v.grant, &v.destination));
    spec.devices.iter().map(|grant| (grant, &grant.path)).chain(volumes).map(find).collect()
}

/// The device nodes of a container beside its own, and the rules for using them.
pub fn access(spec: &ContainerSpec, around: &Surroundings) -> (Value, Value) {
    let granted = around.granted.iter().map(|(device, _)| device);
    let others = around.devices.iter().filter(|d| !around.granted.iter().any(|(g, _)| g.path == d.path));
    // what a volume brings is there already
    let mounted = |d: &Device| spec.mounts.iter().any(|m| d.path.starts_with(&m.destination));
    let node = |d: &Device| {
        json!({ "path": d.path, "type": d.kind.to_string(), "major": d.major, "minor": d.minor,
                "fileMode": d.mode, "uid": d.uid, "gid": d.gid })
    };
    let mut rules = vec![json!({ "allow": spec.privileged, "access": "rwm" })];
    if !spec.privileged {
        rules.extend(around.granted.iter().map(|(d, access)| {
            json!({ "allow": true, "type": d.kind.to_string(), "major": d.major, "minor": d.minor, "access": access })
        }));
    }
    (granted.chain(others).filter(|d| !mounted(d)).map(node).collect(), rules.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granted_devices_have_a_node_and_a_rule() {
        let device =
            |path: &str, minor| Device { path: path.into(), kind: 'c', major: 10, minor, mode: 0o600, uid: 7, gid: 8 };
        let around = Surroundings {
            granted: vec![(device("/dev/fuse", 229), "r".into())],
            devices: vec![device("/dev/fuse", 229), device("/dev/hwrng", 183)],
            ..Surroundings::default()
        };
        let plain = Surroundings { devices: Vec::new(), ..around.clone() };
        let (nodes, found) = access(&ContainerSpec::default(), &plain);
        assert_eq!(nodes.as_array().unwrap().len(), 1);
        let wanted = json!([{ "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 10, "minor": 229, "access": "r" }]);
        assert_eq!(found, wanted);
        let (nodes, found) = access(&ContainerSpec { privileged: true, ..ContainerSpec::default() }, &around);
        assert_eq!(nodes.as_array().unwrap().len(), 2);
        assert_eq!(found, json!([{ "allow": true, "access": "rwm" }]));
    }
}
