//! The cgroups of pods: made with their limits, emptied and removed, on v1 and v2.
//!
//! Kernel interface: `Documentation/admin-guide/cgroup-v1` and `cgroup-v2.rst`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cgroups_rs::fs::cgroup_builder::CgroupBuilder;
use cgroups_rs::fs::hierarchies;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::types::Resources;

/// Makes a cgroup in every hierarchy and sets its limits.
pub fn create(path: &str, limits: &Resources) -> Result<(), String> {
    let mut builder = CgroupBuilder::new(path.trim_start_matches('/'));
    if let Some(limit) = limits.memory_limit {
        builder = builder.memory().memory_hard_limit(limit).done();
    }
    let mut cpu = builder.cpu();
    if let Some(shares) = limits.cpu_shares {
        cpu = cpu.shares(shares);
    }
    if let (Some(quota), Some(period)) = (limits.cpu_quota, limits.cpu_period) {
        cpu = cpu.quota(quota).period(period);
    }
    cpu.done().build(hierarchies::auto()).map(drop).map_err(|e| format!("creating cgroup {path}: {e}"))
}

/// Mount points of every cgroup hierarchy.
fn roots() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .map(|l| l.split(' ').collect::<Vec<_>>())
        .filter(|f| f.len() > 2 && f[2].starts_with("cgroup"))
        .map(|f| PathBuf::from(f[1]))
        .collect()
}

fn in_every_hierarchy(path: &str) -> impl Iterator<Item = PathBuf> {
    let path = path.trim_start_matches('/').to_owned();
    roots().into_iter().map(move |r| r.join(&path)).filter(|p| p.is_dir())
}

fn pids_below(dir: &Path, found: &mut Vec<i32>) {
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    found.extend(procs.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            pids_below(&entry.path(), found);
        }
    }
}

/// Sends a signal to every process of a cgroup and those below it.
pub fn signal(path: &str, signal: Signal) {
    let mut pids = Vec::new();
    in_every_hierarchy(path).for_each(|dir| pids_below(&dir, &mut pids));
    pids.sort_unstable();
    pids.dedup();
    for pid in pids {
        // it may have ended just now
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

/// Removes a cgroup from every hierarchy, killing what is still in it. Safe to repeat.
pub fn remove(path: &str) -> Result<(), String> {
    let mut last = None;
    // a killed process leaves its cgroup a moment after the signal
    for attempt in 0..40 {
        last = None;
        for dir in in_every_hierarchy(path) {
            if let Err(error) = remove_tree(&dir)
                && error.kind() != io::ErrorKind::NotFound
            {
                last = Some(format!("removing cgroup {}: {error}", dir.display()));
            }
        }
        if last.is_none() {
            return Ok(());
        }
        if attempt % 10 == 0 {
            signal(path, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(if attempt < 10 { 2 } else { 25 }));
    }
    last.map_or(Ok(()), Err)
}

/// How often the kernel's OOM killer struck in a cgroup.
pub fn oom_kills(path: &str) -> u64 {
    in_every_hierarchy(path)
        .flat_map(|dir| [dir.join("memory.oom_control"), dir.join("memory.events")])
        .filter_map(|file| fs::read_to_string(file).ok())
        .flat_map(|text| {
            text.lines().filter_map(|l| l.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok()).collect::<Vec<_>>()
        })
        .sum()
}
