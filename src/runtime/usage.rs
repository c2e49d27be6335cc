//! What pods and containers use, read from their cgroups when asked (kernel: cgroup-v1, cgroup-v2; proc(5)).

use std::collections::HashMap;
use std::fs;

use super::cgroup::Hierarchies;

/// Limits at and above this are none: version 1 writes "unlimited" as the largest page-aligned number.
const NO_LIMIT: u64 = 1 << 62;

/// Figures of one cgroup; bytes and nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time since the cgroup was made, in nanoseconds.
    pub cpu: u64,
    /// Memory with page cache.
    pub memory: u64,
    /// Memory without inactive page cache: what an eviction looks at.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Page cache.
    pub cache: u64,
    /// Swap.
    pub swap: u64,
    /// Memory limit, if there is one.
    pub memory_limit: Option<u64>,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that read from a disk.
    pub major_page_faults: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Processes the OOM killer has ended.
    pub oom_kills: u64,
}

/// Counters of one network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Such as `eth0`.
    pub name: String,
    /// Bytes, packets, errors and dropped packets received.
    pub received: [u64; 4],
    /// Bytes, packets, errors and dropped packets sent.
    pub sent: [u64; 4],
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

fn fields(text: &str) -> HashMap<&str, u64> {
    text.lines().filter_map(|l| l.split_once(' ')).filter_map(|(k, v)| Some((k, number(v)?))).collect()
}

impl Hierarchies {
    /// Figures of the cgroup `path`; `None` when there is none.
    pub fn usage(&self, path: &str) -> Option<Usage> {
        let read = |file: &str| {
            let controller = file.split('.').next().unwrap_or_default();
            fs::read_to_string(self.dir_of(controller, path)?.join(file)).ok()
        };
        let stat = read("memory.stat").unwrap_or_default();
        let stat = fields(&stat);
        let of = |v1: &str, v2: &str| stat.get(if self.unified() { v2 } else { v1 }).copied().unwrap_or_default();
        let (cpu, memory, limit) = if self.unified() {
            let cpu = read("cpu.stat")?;
            let cpu = fields(&cpu).get("usage_usec").copied()? * 1000;
            (cpu, read("memory.current"), read("memory.max"))
        } else {
            (number(&read("cpuacct.usage")?)?, read("memory.usage_in_bytes"), read("memory.limit_in_bytes"))
        };
        let memory = memory.and_then(|t| number(&t)).unwrap_or_default();
        let swap = if self.unified() {
            read("memory.swap.current").and_then(|t| number(&t)).unwrap_or_default()
        } else {
            of("total_swap", "")
        };
        Some(Usage {
            cpu,
            memory,
            working_set: memory.saturating_sub(of("total_inactive_file", "inactive_file")),
            rss: of("total_rss", "anon"),
            cache: of("total_cache", "file"),
            swap,
            memory_limit: limit.and_then(|t| number(&t)).filter(|l| *l < NO_LIMIT),
            page_faults: of("total_pgfault", "pgfault"),
            major_page_faults: of("total_pgmajfault", "pgmajfault"),
            processes: read("pids.current").and_then(|t| number(&t)).unwrap_or_default(),
            oom_kills: self.oom_kills(path),
        })
    }
}

/// The interfaces of `/proc/<pid>/net/dev` but `lo`.
pub fn interfaces(text: &str) -> Vec<Interface> {
    let line = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let n: Vec<u64> = counters.split_whitespace().filter_map(number).collect();
        let counters = |at: usize| Some([*n.get(at)?, *n.get(at + 1)?, *n.get(at + 2)?, *n.get(at + 3)?]);
        Some(Interface { name: name.trim().to_owned(), received: counters(0)?, sent: counters(8)? })
    };
    text.lines().skip(2).filter_map(line).filter(|i| i.name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes\n    \
                    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 866 11 1 2 0 0 0 0 796 10 3 4 0 0 0 0\n";
        let eth0 = Interface { name: "eth0".into(), received: [866, 11, 1, 2], sent: [796, 10, 3, 4] };
        assert_eq!(interfaces(text), [eth0]);
    }
}
