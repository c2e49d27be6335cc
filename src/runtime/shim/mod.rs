//! The shim: one small single-threaded process per pod that holds its namespaces and runs its containers.
//!
//! It calls libcontainer in its own process (which forks, so there must be no threads), is the subreaper of every
//! container, copies their output to CRI log files and records each exit where an agent that comes back can read it.

mod container;
mod namespaces;
mod server;

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use super::cgroup;
use super::types::SandboxSpec;

/// File names in a sandbox's directory.
pub(super) mod files {
    /// The [`super::SandboxSpec`] and the cgroup root.
    pub const SANDBOX: &str = "sandbox.json";
    /// Where the shim listens.
    pub const SOCKET: &str = "shim.sock";
    /// The shim's pid and start time.
    pub const PID: &str = "shim.pid";
    /// Bundles and records, one directory per container.
    pub const CONTAINERS: &str = "containers";
    /// A container's record.
    pub const INFO: &str = "info.json";
    /// libcontainer's own state.
    pub const LIBCONTAINER: &str = "libcontainer";
}

/// What `sandbox.json` holds.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(super) struct SandboxFile {
    pub spec: SandboxSpec,
    /// Absolute cgroup path of the pod.
    pub cgroup: String,
    pub created_at: i64,
}

/// Entry of `pikelet shim <sandbox directory>`. The first line on standard output is `ready` or what went wrong.
pub fn main(args: &[OsString]) -> ExitCode {
    let Some(dir) = args.first().map(PathBuf::from) else {
        eprintln!("pikelet shim: internal command; it needs the sandbox directory");
        return ExitCode::from(2);
    };
    match prepare(dir) {
        Ok(mut server) => {
            println!("ready");
            namespaces::close_stdio();
            server.run();
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn prepare(dir: PathBuf) -> Result<server::Server, String> {
    let file = dir.join(files::SANDBOX);
    let text = fs::read(&file).map_err(|e| format!("reading {}: {e}", file.display()))?;
    let sandbox: SandboxFile = serde_json::from_slice(&text).map_err(|e| format!("reading {}: {e}", file.display()))?;
    cgroup::create(&sandbox.cgroup, &sandbox.spec.resources)?;
    let pid_holder = namespaces::enter(&sandbox.spec)?;
    let server = server::Server::bind(dir, sandbox, pid_holder)?;
    Ok(server)
}
