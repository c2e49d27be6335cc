//! What the whole machine uses, read when asked (proc(5), statvfs(3)).

use std::fs;
use std::path::Path;

use nix::sys::statvfs::{Statvfs, statvfs};

/// Kernel ticks per second of `/proc/stat`; the same on every architecture Linux has today.
const TICKS: u64 = 100;

/// CPU and memory of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct NodeUsage {
    /// CPU time of all processors since boot, in nanoseconds.
    pub cpu: u64,
    /// Memory that is not free, in bytes.
    pub memory: u64,
    /// The same without inactive page cache, in bytes.
    pub working_set: u64,
    /// Anonymous memory in bytes.
    pub rss: u64,
    /// Page cache in bytes.
    pub cache: u64,
    /// Memory in bytes.
    pub total: u64,
    /// Used swap in bytes.
    pub swap: u64,
    /// Bytes in memory that are on their way to a disk.
    pub unwritten: u64,
    /// Boot time in seconds since the epoch.
    pub booted: u64,
}

/// A file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileSystem {
    /// Size in bytes.
    pub capacity: u64,
    /// Bytes an ordinary user may still write.
    pub available: u64,
    /// Used bytes.
    pub used: u64,
    /// All inodes.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

/// Reads CPU and memory.
pub fn node_usage() -> NodeUsage {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let cpu: Vec<u64> = stat
        .lines()
        .find_map(|l| l.strip_prefix("cpu "))
        .map(|l| l.split_whitespace().filter_map(|n| n.parse().ok()).collect())
        .unwrap_or_default();
    // user, nice, system, (idle, iowait,) irq, softirq, steal; guests are in user already
    let busy: u64 = cpu.iter().take(8).enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, n)| n).sum();
    let booted = stat.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or_default();
    NodeUsage { cpu: busy * (1_000_000_000 / TICKS), booted, ..memory() }
}

/// The same without CPU time and boot time.
pub fn memory() -> NodeUsage {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let of = |key: &str| {
        let line = memory.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
        line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default() * 1024
    };
    let used = of("MemTotal").saturating_sub(of("MemFree"));
    NodeUsage {
        memory: used,
        working_set: used.saturating_sub(of("Inactive(file)")),
        rss: of("AnonPages"),
        cache: of("Cached"),
        total: of("MemTotal"),
        swap: of("SwapTotal").saturating_sub(of("SwapFree")),
        unwritten: of("Dirty") + of("Writeback"),
        ..NodeUsage::default()
    }
}

/// Processes and threads on this machine, and how many there may be.
pub fn processes() -> (u64, u64) {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let limit = |file: &str| read(file).trim().parse::<u64>().ok();
    let now = read("/proc/loadavg").split(['/', ' ']).nth(4).and_then(|n| n.parse().ok());
    let most = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"].into_iter().filter_map(limit).min();
    (now.unwrap_or_default(), most.unwrap_or_default())
}

/// Since boot: page faults, those that read from a disk, processes the OOM killer has ended.
pub fn events() -> [u64; 3] {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    ["pgfault ", "pgmajfault ", "oom_kill "].map(|key| {
        let value = text.lines().find_map(|l| l.strip_prefix(key)?.trim().parse().ok());
        value.unwrap_or_default()
    })
}

/// Bytes written since boot to the disk that holds `path`; `None` where the kernel counts none (a file system of
/// several disks, or of none).
pub fn written(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    let device = fs::metadata(path).ok()?.dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    // kernel: block/stat; sectors of 512 bytes
    stat.split_whitespace().nth(6)?.parse::<u64>().ok().map(|sectors| sectors * 512)
}

/// Bytes of one of the blocks a file system counts in: `unsigned long` in C, which has 32 bits on 32-bit boards.
#[allow(clippy::useless_conversion)]
pub fn block_size(found: &Statvfs) -> u64 {
    u64::from(found.fragment_size())
}

/// Reads the file system that holds `path`.
pub fn file_system(path: &Path) -> Option<FileSystem> {
    let found = statvfs(path).ok()?;
    let unit = block_size(&found);
    Some(FileSystem {
        capacity: found.blocks() * unit,
        available: found.blocks_available() * unit,
        used: found.blocks().saturating_sub(found.blocks_free()) * unit,
        inodes: found.files(),
        inodes_free: found.files_free(),
    })
}

/// Counters of the machine's own interfaces, as [`crate::runtime::interfaces`] reads them.
pub fn interfaces_text() -> String {
    fs::read_to_string("/proc/self/net/dev").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_alive() {
        let usage = node_usage();
        assert!(usage.cpu > 0 && usage.total > usage.working_set && usage.booted > 1_000_000_000);
        assert!(events()[0] > 0);
        assert!(file_system(Path::new("/")).unwrap().capacity > 0);
    }
}
