//! The files of a sandbox directory, written by agent and shim, read by both.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::libc;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::types::{ContainerInfo, SandboxInfo, SandboxSpec};

use crate::files::{self, Durability};

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
        below(&self.cgroup_root, &self.spec.cgroup)
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

fn below(root: &str, cgroup: &str) -> String {
    format!("{}/{}", root.trim_matches('/'), cgroup.trim_matches('/'))
}

/// The pod cgroup of the sandbox directory `dir`, of any version; `None` when nothing says which it is. An error says
/// nothing of the sandbox.
pub fn pod_cgroup(dir: &Path) -> io::Result<Option<String>> {
    match read_json::<Value>(&dir.join(SANDBOX)) {
        Ok(file) => {
            let parts = file["cgroup_root"].as_str().zip(file["spec"]["cgroup"].as_str());
            Ok(parts.map(|(root, cgroup)| below(root, cgroup)))
        }
        Err(e) if unusable(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether a document that gave this error will never be readable: it is missing, cut off, or of another version. Other
/// errors (too many open files, a disk that fails) say nothing of what is in it.
pub fn unusable(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotADirectory, NotFound, UnexpectedEof};
    matches!(error.kind(), InvalidData | NotADirectory | NotFound | UnexpectedEof)
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

/// What a shim said of its sandbox, with what it left out of a long answer.
pub fn completed(dir: &Path, mut said: SandboxInfo) -> io::Result<SandboxInfo> {
    for container in said.containers.iter_mut().filter(|c| c.spec.args.is_empty()) {
        let kept: ContainerInfo = read_json(&container_dir(dir, &container.spec.id).join(INFO))?;
        container.spec = kept.spec;
    }
    Ok(said)
}

/// Replaces a file with a JSON document in one step.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    files::write(path, &serde_json::to_vec(value)?, 0o600, Durability::Volatile)
}

/// Reads a JSON document.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Start time of a living process in clock ticks since boot; `None` for a dead one or a zombie.
fn start_time(pid: i32) -> io::Result<Option<u64>> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        stat => stat?,
    };
    let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let living = fields.next().is_some_and(|state| state != "Z" && state != "X");
    Ok(fields.nth(18).filter(|_| living).and_then(|ticks| ticks.parse().ok()))
}

/// Records the calling process as the shim of `dir`.
pub fn write_pid(dir: &Path) -> io::Result<()> {
    let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    let started = start_time(pid)?.ok_or_else(|| io::Error::other("no start time in /proc/self/stat"))?;
    files::write(&dir.join(PID_FILE), format!("{pid} {started}").as_bytes(), 0o600, Durability::Volatile)
}

/// The shim of `dir` if it is alive (a process of another start time is someone else). An error says nothing of it.
pub fn living_shim(dir: &Path) -> io::Result<Option<i32>> {
    let text = match fs::read_to_string(dir.join(PID_FILE)) {
        Err(e) if unusable(&e) => return Ok(None),
        text => text?,
    };
    let numbers = text.split_once(' ').and_then(|(pid, at)| Some((pid.parse().ok()?, at.trim().parse::<u64>().ok()?)));
    let Some((pid, started)) = numbers else { return Ok(None) };
    Ok((start_time(pid)? == Some(started)).then_some(pid))
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
        assert_eq!(living_shim(&dir).unwrap(), Some(std::process::id() as i32));
        fs::write(dir.join(PID_FILE), format!("{} 1", std::process::id())).unwrap();
        assert_eq!(living_shim(&dir).unwrap(), None);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_file_of_another_version_still_names_its_cgroup() {
        let folder = crate::machine::folder::Folder::new();
        let dir = folder.path();
        assert_eq!(pod_cgroup(dir).unwrap(), None);
        fs::write(dir.join(SANDBOX), r#"{"cgroup_root": "/k/", "spec": {"cgroup": "besteffort/p", "id": 7}}"#).unwrap();
        assert!(SandboxFile::read(dir).is_err_and(|e| unusable(&e)));
        assert_eq!(pod_cgroup(dir).unwrap().as_deref(), Some("k/besteffort/p"));
        fs::write(dir.join(SANDBOX), r#"{"cgroup_root": "#).unwrap();
        assert!(SandboxFile::read(dir).is_err_and(|e| unusable(&e)));
        assert_eq!(pod_cgroup(dir).unwrap(), None);
        // what cannot be read now is no reason to forget it
        assert!(!unusable(&io::Error::from_raw_os_error(libc::EMFILE)));
        assert!(!unusable(&io::Error::from_raw_os_error(libc::EIO)));
    }
}
