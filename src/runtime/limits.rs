//! From [`Resources`] to the files of both cgroup versions (kernel: cgroup-v1, cgroup-v2).

use super::types::Resources;

/// Least and most CPU shares the kernel takes on version 1.
const SHARES: (u64, u64) = (2, 262_144);
/// CFS period in microseconds where none is given: the kernel's own.
const PERIOD: u64 = 100_000;

/// One value for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Name of the file in the cgroup.
    pub file: String,
    /// What is written to it.
    pub value: String,
    /// Every kernel for containers has that file; others are there only with some hardware or kernel option.
    pub expected: bool,
}

/// What to write where, in this order. `files` are the hugetlb files of the cgroup.
pub fn settings(r: &Resources, files: &[String], unified: bool) -> Vec<Setting> {
    let mut out = Vec::new();
    let mut set = |file: &str, value: String, expected| out.push(Setting { file: file.into(), value, expected });
    let or_max = |v: i64, positive: bool| if v < i64::from(positive) { "max".to_owned() } else { v.to_string() };
    if let Some(shares) = r.cpu_shares {
        let shares = shares.clamp(SHARES.0, SHARES.1);
        if unified {
            set("cpu.weight", weight(shares).to_string(), true);
        } else {
            set("cpu.shares", shares.to_string(), true);
        }
    }
    if let Some(quota) = r.cpu_quota {
        let period = r.cpu_period.unwrap_or(PERIOD);
        if unified {
            set("cpu.max", format!("{} {period}", or_max(quota, true)), true);
        } else {
            set("cpu.cfs_period_us", period.to_string(), true);
            set("cpu.cfs_quota_us", if quota <= 0 { "-1".into() } else { quota.to_string() }, true);
        }
    }
    if let Some(memory) = r.memory_limit {
        if unified {
            set("memory.max", or_max(memory, false), true);
        } else {
            set("memory.limit_in_bytes", memory.max(-1).to_string(), true);
        }
    }
    match (r.swap_limit, r.memory_limit) {
        (Some(swap), _) if unified => set("memory.swap.max", or_max(swap, false), false),
        // version 1 counts memory and swap together, and takes no more memory than both
        (Some(swap), Some(memory)) if memory > 0 && swap >= 0 => {
            set("memory.memsw.limit_in_bytes", memory.saturating_add(swap).to_string(), false);
        }
        _ => {}
    }
    if r.oom_group && unified {
        set("memory.oom.group", "1".into(), false);
    }
    if let Some(pids) = r.pids_limit {
        set("pids.max", or_max(pids, true), true);
    }
    for file in files {
        let Some(limits) = &r.hugepage_limits else { break };
        let Some(size) = page_size(file, unified) else { continue };
        set(file, limits.get(&size).copied().unwrap_or(0).to_string(), false);
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

/// The page size in bytes that a file limits, such as `hugetlb.2MB.max`; `None` when it limits nothing.
fn page_size(file: &str, unified: bool) -> Option<u64> {
    let size = file.strip_prefix("hugetlb.")?;
    let (size, what) = size.split_once('.')?;
    let limits: [&str; 2] = if unified { ["max", "rsvd.max"] } else { ["limit_in_bytes", "rsvd.limit_in_bytes"] };
    if !limits.contains(&what) {
        return None;
    }
    let (number, shift) = [("KB", 10), ("MB", 20), ("GB", 30)]
        .iter()
        .find_map(|(unit, shift)| Some((size.strip_suffix(unit)?, shift)))?;
    Some(number.parse::<u64>().ok()? << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(r: &Resources, unified: bool) -> Vec<(String, String)> {
        let files = ["hugetlb.2MB.max", "hugetlb.1GB.rsvd.max", "hugetlb.2MB.current", "hugetlb.64KB.limit_in_bytes"];
        settings(r, &files.map(str::to_owned), unified).into_iter().map(|s| (s.file, s.value)).collect()
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
