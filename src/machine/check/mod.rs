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

pub use board::OLDEST_NOW;
use kernel::Kernel;
pub use system::clock_synchronized;

use crate::machine::usage::node_usage;
use crate::runtime::Hierarchies;

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
    /// A finding; `mend` is what a person can do.
    pub fn new(check: &str, state: State, found: impl Into<String>, mend: Option<String>) -> Self {
        Self { check: check.to_owned(), state, found: found.into(), mend }
    }

    /// As it should be.
    pub fn ok(check: &str, found: impl Into<String>) -> Self {
        Self::new(check, State::Ok, found, None)
    }

    /// A node works without.
    pub fn warning(check: &str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::new(check, State::Warning, found, Some(mend.into()))
    }

    /// A node needs it.
    pub fn missing(check: &str, found: impl Into<String>, mend: impl Into<String>) -> Self {
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
    /// The bridge of the pods.
    pub bridge: String,
    /// The resolv.conf pods follow; `None`: the one that is found.
    pub resolv_conf: Option<PathBuf>,
}

/// Looks at everything. Leaves nothing behind on the machine.
pub fn check(plan: &Plan) -> Vec<Finding> {
    let root = nix::unistd::geteuid().is_root();
    let kernel = Kernel::read(Path::new("/"));
    let mut findings = vec![system::user(root)];
    findings.extend(board::check(Path::new("/")));
    findings.extend(kernel::check(&kernel));
    findings.extend(cgroups::check(&kernel));
    findings.extend(storage::check(&plan.root_dir, root, &kernel));
    findings.extend(network::check(plan, root, &kernel));
    findings.extend(system::check(&plan.node_name));
    findings
}

/// What is wrong for as long as the machine is up, a line for each, with what mends it: for whoever looks at the Node.
/// Tries nothing.
pub fn lasting() -> Vec<String> {
    let root = Path::new("/");
    let controllers = Hierarchies::detect().map(|h| (h.controllers(), h.unified())).ok();
    let memory = controllers.and_then(|(usable, unified)| cgroups::memory(&usable, unified, &read("/proc/cgroups")));
    let findings = [
        memory,
        network::vxlan(&Kernel::read(root)),
        board::page_bytes().map(board::page_size),
        Some(board::memory(node_usage().total)),
    ];
    lines(findings.into_iter().flatten())
}

/// Of what is not as it should be.
fn lines(findings: impl Iterator<Item = Finding>) -> Vec<String> {
    let bad = findings.filter(|f| matches!(f.state, State::Warning | State::Missing));
    bad.map(|Finding { check, found, mend, .. }| format!("{check}: {found}; {}", mend.unwrap_or_default())).collect()
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
    fn what_lasts_is_one_line_each() {
        let off = "memory\t0\t1\t0\n";
        let usable = ["cpu".to_owned()].into();
        let kernel = Kernel::of("CONFIG_VXLAN=m\n", "kernel/net/bridge/bridge.ko:\n");
        let (memory, vxlan) = (cgroups::memory(&usable, true, off), network::vxlan(&kernel));
        let findings = [memory, vxlan, Some(board::page_size(16384)), Some(board::memory(300 << 20))];
        let said = lines(findings.into_iter().flatten());
        let parts = [
            ("cgroup memory: not usable", "cgroup_enable=memory cgroup_memory=1"),
            ("vxlan: the module is not installed", "install the kernel's package of modules"),
            ("page size: 16 KiB", "kernel=kernel8.img"),
            ("memory: 300 MiB", "memory limit"),
        ];
        assert_eq!(said.len(), parts.len(), "{said:?}");
        for (line, (start, mend)) in said.iter().zip(parts) {
            assert!(line.starts_with(start) && line.contains(mend), "{line}");
        }
        assert!(lines([Finding::ok("a", "b"), Finding::unknown("c", "d")].into_iter()).is_empty());
    }

    #[test]
    fn one_thing_missing_makes_a_machine_unfit() {
        let mut findings = vec![Finding::ok("a", "b"), Finding::warning("a", "b", "c"), Finding::unknown("a", "b")];
        assert!(fit(&findings));
        findings.push(Finding::missing("a", "b", "c"));
        assert!(!fit(&findings));
        assert_eq!((bytes(512 << 20), bytes(3 << 29)), ("512 MiB".into(), "1.5 GiB".into()));
    }
}
