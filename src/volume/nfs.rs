//! NFS, by the kernel's own client, which knows version 4 without help.
//!
//! A server that is away is waited for in the kernel, where nothing ends a thread but the end of its process. So each mount
//! is made by a process of its own (`pikelet mount-nfs`), which is killed when it takes too long or its pod goes.

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use k8s_openapi::api::core::v1::NFSVolumeSource;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::Semaphore;

use super::mounts;
use super::under_way::{Gate, Outcome};

/// How long a server may take to answer a mount.
const ANSWER: Duration = Duration::from_mins(2);
/// Mounts of one server that are made at a time: those of others do not wait for one that is away.
const PER_SERVER: usize = 4;
/// Most bytes of what the mounting process says.
const MESSAGE: u64 = 4096;
/// Versions of the protocol the kernel speaks without a helper program, the newest first.
const VERSIONS: [&str; 3] = ["4.2", "4.1", "4.0"];

/// What mounts exports.
#[derive(Debug)]
pub(super) struct Mounter {
    program: PathBuf,
    servers: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl Default for Mounter {
    fn default() -> Self {
        Self::of("/proc/self/exe".into())
    }
}

impl Mounter {
    /// One that runs `program` with the arguments `mount-nfs SERVER PATH PLACE ro|rw OPTIONS...`.
    pub fn of(program: PathBuf) -> Self {
        Self { program, servers: Mutex::default() }
    }

    fn turn(&self, server: &str) -> Arc<Semaphore> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.retain(|_, turns| turns.strong_count() > 0);
        if let Some(turns) = servers.get(server).and_then(Weak::upgrade) {
            return turns;
        }
        let turns = Arc::new(Semaphore::new(PER_SERVER));
        servers.insert(server.to_owned(), Arc::downgrade(&turns));
        turns
    }

    /// Mounts an export on `place` unless something is mounted there. No mount is under way any more when this returns.
    pub async fn mount(
        &self,
        source: &NFSVolumeSource,
        options: &[String],
        place: PathBuf,
        read_only: bool,
        gate: Arc<Gate>,
    ) -> Outcome {
        let _pass = gate.enter()?;
        mounts::make_dir(&place, 0o700)?;
        if mounts::is_mount_point(&place)? {
            return Ok(place);
        }
        let what = format!("mounting NFS {}:{}", source.server, source.path);
        // a mistake in the options needs no process
        nfs_options(options).map_err(|e| format!("{what}: {e}"))?;
        let turns = self.turn(&source.server);
        let _turn = tokio::select! {
            turn = turns.acquire() => turn.map_err(|e| format!("{what}: {e}"))?,
            () = gate.closed() => return Err(format!("{what}: its pod goes")),
        };
        let mut command = Command::new(&self.program);
        command.arg("mount-nfs").args([&source.server, &source.path]).arg(&place);
        command.arg(if read_only { "ro" } else { "rw" }).args(options);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).env_clear().kill_on_drop(true);
        let mut child = command.spawn().map_err(|e| format!("{what}: starting a process for it: {e}"))?;
        let output = child.stdout.take();
        let ended = async {
            let mut said = Vec::new();
            if let Some(output) = output {
                output.take(MESSAGE).read_to_end(&mut said).await?;
            }
            Ok::<_, std::io::Error>((child.wait().await?, said))
        };
        let ended = tokio::select! {
            ended = ended => Some(ended),
            () = tokio::time::sleep(ANSWER) => None,
            () = gate.closed() => None,
        };
        let Some(ended) = ended else {
            // while it is not gone it may still mount: then the pod's teardown waits
            child.kill().await.map_err(|e| format!("{what}: ending it: {e}"))?;
            return Err(format!("{what}: no answer within {} s, or its pod goes", ANSWER.as_secs()));
        };
        match ended {
            Ok((status, _)) if status.success() => Ok(place),
            Ok((status, said)) if said.is_empty() => Err(format!("{what}: its process ended with {status}")),
            Ok((_, said)) => Err(format!("{what}: {}", String::from_utf8_lossy(&said).trim())),
            Err(e) => Err(format!("{what}: {e}")),
        }
    }
}

/// Runs `pikelet mount-nfs`: mounts, or says on standard output why not. Ends when the agent does.
pub fn main(args: &[OsString]) -> ExitCode {
    // an agent that ended before this is not noticed, and its pods' folders are looked at when they are removed
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    match mount_export(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn mount_export(args: &[OsString]) -> Result<(), String> {
    let text: Option<Vec<String>> = args.iter().map(|arg| arg.to_str().map(str::to_owned)).collect();
    let Some([server, path, place, access, options @ ..]) = text.as_deref() else {
        return Err("started by the agent, not by hand".to_owned());
    };
    let (versions, others) = nfs_options(options)?;
    let address = (server.trim_matches(['[', ']']), 2049).to_socket_addrs();
    let address = address.map_err(|e| format!("resolving the server's name: {e}"))?.next();
    let address = address.ok_or("the server's name has no address")?.ip();
    let (export, flags) =
        (format!("{server}:{path}"), if access == "ro" { MsFlags::MS_RDONLY } else { MsFlags::empty() });
    let mut last = Errno::EPROTONOSUPPORT;
    for version in versions {
        let data = format!("vers={version},addr={address}{others}");
        match mount(Some(export.as_str()), Path::new(place), Some("nfs4"), flags, Some(data.as_str())) {
            Ok(()) => return Ok(()),
            Err(e @ (Errno::EPROTONOSUPPORT | Errno::EINVAL)) => last = e,
            Err(Errno::ENODEV) => return Err("this kernel has no NFS client (nfsv4): load or build it".to_owned()),
            Err(e) => return Err(e.to_string()),
        }
    }
    Err(format!("{last} (version 4 of the protocol is needed)"))
}

/// The versions to try, and the other options as the kernel reads them, each behind a comma.
fn nfs_options(options: &[String]) -> Result<(Vec<String>, String), String> {
    let (mut versions, mut others) = (VERSIONS.map(str::to_owned).to_vec(), String::new());
    for option in options.iter().flat_map(|o| o.split(',')).map(str::trim).filter(|o| !o.is_empty()) {
        match option.split_once('=') {
            Some(("vers" | "nfsvers", version)) if version.starts_with('4') => versions = vec![version.to_owned()],
            Some(("vers" | "nfsvers", version)) => {
                return Err(format!("version {version} needs helper programs on the node; use version 4"));
            }
            _ => others.extend([",", option]),
        }
    }
    Ok((versions, others))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_options_of_nfs() {
        let of = |list: &[&str]| nfs_options(&list.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&[]).unwrap(), (VERSIONS.map(str::to_owned).to_vec(), String::new()));
        assert_eq!(of(&["nfsvers=4.1", "hard,timeo=600"]).unwrap(), (vec!["4.1".into()], ",hard,timeo=600".into()));
        assert!(of(&["vers=3"]).unwrap_err().contains("version 4"));
    }
}
