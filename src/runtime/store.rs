//! The files of a sandbox directory, written by agent and shim, read by both.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::types::{ContainerInfo, SandboxSpec};

/// Listening socket of the shim.
pub const SOCKET: &str = "shim.sock";
/// `<pid> <start time>` of the shim.
pub const PID_FILE: &str = "shim.pid";
/// What the shim has to say.
pub const LOG: &str = "shim.log";
/// Link to the pod's user namespace, where it has one; good while the shim lives.
pub const USER_NAMESPACE: &str = "user-namespace";
const SANDBOX: &str = "sandbox.json";
const CONTAINERS: &str = "containers";
const INFO: &str = "info.json";

/// `sandbox.json`: what a shim starts from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxFile {
    /// What the sandbox is made from.
    pub spec: SandboxSpec,
    /// Parent cgroup of all sandboxes.
    pub cgroup_root: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
}

impl SandboxFile {
    /// The pod cgroup from the hierarchies' roots.
    pub fn pod_cgroup(&self) -> String {
        format!("{}/{}", self.cgroup_root.trim_matches('/'), self.spec.cgroup.trim_matches('/'))
    }

    /// The cgroup of one container.
    pub fn container_cgroup(&self, container: &str) -> String {
        format!("{}/{container}", self.pod_cgroup())
    }

    /// Reads it from the sandbox directory `dir`.
    pub fn read(dir: &Path) -> io::Result<Self> {
        read_json(&dir.join(SANDBOX))
    }

    /// Writes it to the sandbox directory `dir`.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        write_json(&dir.join(SANDBOX), self)
    }
}

/// Directory (OCI bundle) of a container.
pub fn container_dir(dir: &Path, container: &str) -> PathBuf {
    dir.join(CONTAINERS).join(container)
}

/// Writes a container's state.
pub fn write_info(dir: &Path, info: &ContainerInfo) -> io::Result<()> {
    write_json(&container_dir(dir, &info.spec.id).join(INFO), info)
}

/// Ids of the containers with a directory.
pub fn container_ids(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join(CONTAINERS)).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// The state of all containers, in order of creation; unreadable ones are left out.
pub fn read_infos(dir: &Path) -> Vec<ContainerInfo> {
    let read = |id: String| read_json::<ContainerInfo>(&container_dir(dir, &id).join(INFO)).ok();
    let mut infos: Vec<_> = container_ids(dir).into_iter().filter_map(read).collect();
    infos.sort_by_key(|i| i.created_at);
    infos
}

/// Replaces a file with a JSON document in one step.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    crate::durable::replace(path, &serde_json::to_vec(value)?, false)
}

/// Reads a JSON document.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Start time of a living process in clock ticks since boot; `None` for a dead one or a zombie.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

/// Records the calling process as the shim of `dir`.
pub fn write_pid(dir: &Path) -> io::Result<()> {
    let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    let started = start_time(pid).ok_or_else(|| io::Error::other("no start time in /proc/self/stat"))?;
    fs::write(dir.join(PID_FILE), format!("{pid} {started}"))
}

/// The shim of `dir` if it is alive (a process of another start time is someone else).
pub fn living_shim(dir: &Path) -> Option<i32> {
    let text = fs::read_to_string(dir.join(PID_FILE)).ok()?;
    let (pid, started) = text.split_once(' ')?;
    let pid = pid.parse().ok()?;
    (start_time(pid)? == started.trim().parse::<u64>().ok()?).then_some(pid)
}

/// Now, in nanoseconds since the epoch.
pub fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_alive() {
        let dir = std::env::temp_dir().join(format!("pikelet-store-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        write_pid(&dir).unwrap();
        assert_eq!(living_shim(&dir), Some(std::process::id() as i32));
        fs::write(dir.join(PID_FILE), format!("{} 1", std::process::id())).unwrap();
        assert_eq!(living_shim(&dir), None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
