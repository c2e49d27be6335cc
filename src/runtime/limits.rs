//! From [`Resources`] to the files of both cgroup versions (kernel: cgroup-v1, cgroup-v2), which cgroups-rs writes.

use std::io;
use std::path::Path;

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::hugetlb::HugeTlbController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;

use super::controllers::{BASE, done};
use super::types::Resources;
use crate::files;

/// Least and most CPU shares the kernel takes on version 1.
const SHARES: (u64, u64) = (2, 262_144);
/// CFS period in microseconds where none is given: the kernel's own.
const PERIOD: u64 = 100_000;

/// One value for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Name of the file in the cgroup.
    pub file: String,
    /// Every kernel for containers has that file; others are there only with some hardware or kernel option.
    pub expected: bool,
    value: Value,
}

/// What is written; 0 or less of what cannot be 0, and less than 0 of the others, is no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    /// Shares or weight.
    Weight(u64),
    Period(u64),
    Quota(i64),
    /// Quota and period in one.
    Bandwidth(i64, u64),
    Memory(i64),
    Swap(i64),
    OomGroup,
    Pids(i64),
    /// Of pages of that size as the file's name says it.
    Pages(String, u64),
}

impl Setting {
    /// Writes it to the cgroup `dir`; `pages` limits its huge pages.
    pub fn write(&self, dir: &Path, unified: bool, pages: Option<&HugeTlbController>) -> io::Result<()> {
        let (at, cpu) = (|| dir.to_owned(), || CpuController::new(dir.to_owned(), BASE.into(), unified));
        let memory = || MemController::new(at(), BASE.into(), unified);
        let result = match &self.value {
            Value::Weight(weight) => cpu().set_shares(*weight),
            Value::Period(period) => cpu().set_cfs_period(*period),
            Value::Quota(quota) => cpu().set_cfs_quota(*quota),
            Value::Bandwidth(quota, period) => cpu().set_cfs_quota_and_period(Some(*quota), Some(*period)),
            Value::Memory(limit) => memory().set_limit(*limit),
            Value::Swap(limit) => memory().set_memswap_limit(*limit),
            // cgroups-rs sets it as an attribute only, and then does not tell that the kernel refused
            Value::OomGroup => return files::set(dir.join(&self.file), "1"),
            Value::Pids(most) => {
                let most = if *most <= 0 { MaxValue::Max } else { MaxValue::Value(*most) };
                PidController::new(at(), BASE.into(), unified).set_pid_max(most)
            }
            Value::Pages(size, limit) => match pages {
                Some(pages) => pages.set_limit_in_bytes(size, *limit),
                None => return Ok(()),
            },
        };
        done(result, &dir.join(&self.file))
    }
}

/// What limits the huge pages of the cgroup `dir`.
pub fn huge_pages(dir: &Path, unified: bool) -> HugeTlbController {
    HugeTlbController::new(dir.to_owned(), BASE.into(), unified)
}

/// What to write where, in this order. `files` are the hugetlb files of the cgroup.
pub fn settings(r: &Resources, files: &[String], unified: bool) -> Vec<Setting> {
    let mut out = Vec::new();
    let mut set = |file: &str, value, expected| out.push(Setting { file: file.into(), value, expected });
    if let Some(shares) = r.cpu_shares {
        let shares = shares.clamp(SHARES.0, SHARES.1);
        if unified {
            set("cpu.weight", Value::Weight(weight(shares)), true);
        } else {
            set("cpu.shares", Value::Weight(shares), true);
        }
    }
    if let Some(quota) = r.cpu_quota {
        let period = r.cpu_period.unwrap_or(PERIOD);
        if unified {
            set("cpu.max", Value::Bandwidth(quota, period), true);
        } else {
            set("cpu.cfs_period_us", Value::Period(period), true);
            set("cpu.cfs_quota_us", Value::Quota(if quota <= 0 { -1 } else { quota }), true);
        }
    }
    if let Some(memory) = r.memory_limit {
        set(if unified { "memory.max" } else { "memory.limit_in_bytes" }, Value::Memory(memory.max(-1)), true);
    }
    match (r.swap_limit, r.memory_limit) {
        (Some(swap), _) if unified => set("memory.swap.max", Value::Swap(swap.max(-1)), false),
        // version 1 counts memory and swap together, and takes no more memory than both
        (Some(swap), Some(memory)) if memory > 0 && swap >= 0 => {
            set("memory.memsw.limit_in_bytes", Value::Swap(memory.saturating_add(swap)), false);
        }
        _ => {}
    }
    if r.oom_group && unified {
        set("memory.oom.group", Value::OomGroup, false);
    }
    if let Some(pids) = r.pids_limit {
        set("pids.max", Value::Pids(pids), true);
    }
    for file in files {
        let Some(limits) = &r.hugepage_limits else { break };
        let Some((size, bytes)) = page_size(file, unified) else { continue };
        let limit = limits.get(&bytes).copied().unwrap_or(0);
        set(file, Value::Pages(size, u64::try_from(limit).unwrap_or(u64::MAX)), false);
    }
    out
}

/// CPU shares as a version 2 weight: least, default (1024, 100) and most are the same on both. The curve between them is
/// the one OCI runtimes have agreed on.
fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10_f64.powf(exponent).ceil() as u64
        }
    }
}

/// The page size that a file limits, such as `hugetlb.2MB.max`, as cgroups-rs names it (`2MB.rsvd` where those that are
/// reserved are counted) and in bytes; `None` when it limits nothing.
fn page_size(file: &str, unified: bool) -> Option<(String, u64)> {
    let limit = if unified { ".max" } else { ".limit_in_bytes" };
    let name = file.strip_prefix("hugetlb.")?.strip_suffix(limit)?;
    let size = name.strip_suffix(".rsvd").unwrap_or(name);
    let (number, shift) = [("KB", 10), ("MB", 20), ("GB", 30)]
        .iter()
        .find_map(|(unit, shift)| Some((size.strip_suffix(unit)?, shift)))?;
    Some((name.to_owned(), number.parse::<u64>().ok()? << shift))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::folder::Folder;

    /// What is in the files of a cgroup once all is set.
    fn written(r: &Resources, unified: bool) -> Vec<(String, String)> {
        let files = ["hugetlb.2MB.max", "hugetlb.1GB.rsvd.max", "hugetlb.2MB.current", "hugetlb.64KB.limit_in_bytes"];
        let cgroup = Folder::new();
        std::fs::write(cgroup.path().join("cpu.max"), "max 100000\n").unwrap();
        let pages = huge_pages(cgroup.path(), unified);
        let set = |setting: Setting| {
            setting.write(cgroup.path(), unified, Some(&pages)).unwrap();
            let text = std::fs::read_to_string(cgroup.path().join(&setting.file)).unwrap();
            (setting.file, text)
        };
        std::fs::write(cgroup.path().join("memory.oom.group"), "0").unwrap();
        settings(r, &files.map(str::to_owned), unified).into_iter().map(set).collect()
    }

    #[test]
    fn values_for_both_versions() {
        let r = Resources {
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            memory_limit: Some(64 << 20),
            pids_limit: Some(-1),
            swap_limit: Some(0),
            oom_group: true,
            hugepage_limits: Some([(2 << 20, 4 << 20)].into()),
        };
        let text =
            |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>();
        let v2 = [
            ("cpu.weight", "100"),
            ("cpu.max", "50000 100000"),
            ("memory.max", "67108864"),
            ("memory.swap.max", "0"),
            ("memory.oom.group", "1"),
            ("pids.max", "max"),
            ("hugetlb.2MB.max", "4194304"),
            ("hugetlb.1GB.rsvd.max", "0"),
        ];
        assert_eq!(written(&r, true), text(&v2));
        let v1 = [
            ("cpu.shares", "1024"),
            ("cpu.cfs_period_us", "100000"),
            ("cpu.cfs_quota_us", "50000"),
            ("memory.limit_in_bytes", "67108864"),
            ("memory.memsw.limit_in_bytes", "67108864"),
            ("pids.max", "max"),
            ("hugetlb.64KB.limit_in_bytes", "0"),
        ];
        assert_eq!(written(&r, false), text(&v1));
        assert!(settings(&Resources::default(), &[], true).is_empty());
        let unlimited =
            Resources { cpu_quota: Some(-1), memory_limit: Some(-1), swap_limit: Some(0), ..Default::default() };
        let v2 = [("cpu.max", "max 100000"), ("memory.max", "max"), ("memory.swap.max", "0")];
        assert_eq!(written(&unlimited, true), text(&v2));
        assert_eq!(written(&unlimited, false).len(), 3, "no swap limit without one of memory");
    }

    #[test]
    fn weights_are_those_of_other_runtimes() {
        let known = [(2, 1), (3, 2), (102, 17), (256, 35), (512, 59), (1024, 100), (2000, 170), (262_144, 10_000)];
        for (shares, expected) in known {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }
}
