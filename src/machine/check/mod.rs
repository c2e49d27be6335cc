//! Is this machine fit to be a node? Everything a node needs: what was found, and how to mend it.
//!
//! Where root may try a thing it is tried, in namespaces that go with the attempt; others read what the kernel tells.

mod board;
mod cgroups;
mod kernel;
mod network;
mod storage;
mod system;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;

use kernel::Kernel;

/// How it stands with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// A node works without, but not as well.
    Warning,
    /// A node needs it.
    Missing,
    /// Only root can tell.
    Unknown,
}

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What a person can do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Finding {
    fn new(check: &str, state: State, found: impl Into<String>, mend: Option<String>) -> Self {
        Self { check: check.to_owned(), state, found: found.into(), mend }
    }

    fn ok(check: &str, found: impl Into<String>) -> Self {
        Self::new(check, State::Ok, found, None)
    }

    fn warning(check: &str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::new(check, State::Warning, found, Some(mend.into()))
    }

    fn missing(check: &str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::new(check, State::Missing, found, Some(mend.into()))
    }

    fn unknown(check: &str, found: impl Into<String>) -> Self {
        Self::new(check, State::Unknown, found, Some("only root can try it: run this again with sudo".to_owned()))
    }
}

/// What the agent of this machine is going to use.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where its data will lie.
    pub root_dir: PathBuf,
    /// Name of its Node.
    pub node_name: String,
    /// Where its socket will be.
    pub state_dir: PathBuf,
    /// Where the kubelet API will listen.
    pub address: IpAddr,
    /// Port of the kubelet API.
    pub port: u16,
    /// Port of `/healthz` on loopback, 0 for none.
    pub healthz_port: u16,
}

/// Looks at everything. Leaves nothing behind on the machine.
pub fn check(plan: &Plan) -> Vec<Finding> {
    let root = nix::unistd::geteuid().is_root();
    let kernel = Kernel::read();
    let mut findings = vec![system::user(root)];
    findings.extend(board::check(Path::new("/")));
    findings.extend(kernel::check(&kernel));
    findings.extend(cgroups::check(&kernel));
    findings.extend(storage::check(&plan.root_dir, root, &kernel));
    findings.extend(network::check(plan, root, &kernel));
    findings.extend(system::check(&plan.node_name));
    findings
}

/// True when nothing a node needs is missing.
pub fn fit(findings: &[Finding]) -> bool {
    findings.iter().all(|f| f.state != State::Missing)
}

/// The text of a file of the kernel; empty when there is none.
fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Bytes for a person: `512 MiB`.
fn bytes(count: u64) -> String {
    match count {
        0..0x4000_0000 => format!("{} MiB", count >> 20),
        _ => format!("{:.1} GiB", count as f64 / f64::from(1 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_missing_makes_a_machine_unfit() {
        let mut findings = vec![Finding::ok("a", "b"), Finding::warning("a", "b", "c"), Finding::unknown("a", "b")];
        assert!(fit(&findings));
        findings.push(Finding::missing("a", "b", "c"));
        assert!(!fit(&findings));
        assert_eq!((bytes(512 << 20), bytes(3 << 29)), ("512 MiB".into(), "1.5 GiB".into()));
    }
}
