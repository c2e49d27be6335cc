//! What pods and containers use, read from their cgroups when asked (kernel: cgroup-v1, cgroup-v2; proc(5)).
//!
//! It goes through cgroups-rs but for CPU time and memory of version 1: of the one it reads eight files for a number, and takes
//! a cgroup that is gone for one that did nothing; for the other it reads files by the way that it does not always understand
//! (`memory.numa_stat`), and then ends the program.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;

use super::cgroup::Hierarchies;
use super::controllers::BASE;

/// Limits at and above this are none: version 1 writes "unlimited" as the largest page-aligned number.
pub(super) const NO_LIMIT: u64 = 1 << 62;

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

pub(super) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Lines of a name and a number, as `memory.stat` has them.
pub(super) fn fields(text: &str) -> HashMap<&str, u64> {
    text.lines().filter_map(|l| l.split_once(' ')).filter_map(|(k, v)| Some((k, number(v)?))).collect()
}

/// What the memory controller says of a cgroup; nothing where there is none.
#[derive(Debug, Default)]
struct Memory {
    current: u64,
    limit: Option<u64>,
    swap: u64,
    /// Of its `memory.stat`, by the names of version 2.
    inactive_file: u64,
    anon: u64,
    file: u64,
    pgfault: u64,
    pgmajfault: u64,
}

impl Memory {
    fn v1(dir: &Path) -> Self {
        let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
        let of = |file: &str| number(&read(file)).unwrap_or_default();
        let stat = read("memory.stat");
        let stat = fields(&stat);
        let total = |name: &str| stat.get(name).copied().unwrap_or_default();
        Self {
            current: of("memory.usage_in_bytes"),
            limit: number(&read("memory.limit_in_bytes")).filter(|limit| *limit < NO_LIMIT),
            swap: total("total_swap"),
            inactive_file: total("total_inactive_file"),
            anon: total("total_rss"),
            file: total("total_cache"),
            pgfault: total("total_pgfault"),
            pgmajfault: total("total_pgmajfault"),
        }
    }

    fn v2(dir: &Path) -> Self {
        let found = MemController::new(dir.to_owned(), BASE.into(), true).memory_stat();
        let of = |name: &str| found.stat.raw.get(name).copied().unwrap_or_default();
        Self {
            current: found.usage_in_bytes,
            limit: u64::try_from(found.limit_in_bytes).ok().filter(|limit| *limit < NO_LIMIT),
            // it is `memory.swap.current` that is in the field of this name
            swap: found.swappiness,
            inactive_file: of("inactive_file"),
            anon: of("anon"),
            file: of("file"),
            pgfault: of("pgfault"),
            pgmajfault: of("pgmajfault"),
        }
    }
}

impl Hierarchies {
    /// Figures of the cgroup `path`; `None` when there is none.
    pub fn usage(&self, path: &str) -> Option<Usage> {
        let (cpu, memory): (u64, fn(&Path) -> Memory) = if self.unified() {
            let stat = CpuController::new(self.dir_of("cpu", path)?, BASE.into(), true).cpu().stat;
            let micros = stat.lines().find_map(|line| number(line.strip_prefix("usage_usec ")?))?;
            (micros * 1000, Memory::v2)
        } else {
            let file = self.dir_of("cpuacct", path)?.join("cpuacct.usage");
            (number(&fs::read_to_string(file).ok()?)?, Memory::v1)
        };
        let memory = self.dir_of("memory", path).map(|dir| memory(&dir)).unwrap_or_default();
        let pids = self.dir_of("pids", path).map(|dir| PidController::new(dir, BASE.into(), self.unified()));
        Some(Usage {
            cpu,
            memory: memory.current,
            working_set: memory.current.saturating_sub(memory.inactive_file),
            rss: memory.anon,
            cache: memory.file,
            swap: memory.swap,
            memory_limit: memory.limit,
            page_faults: memory.pgfault,
            major_page_faults: memory.pgmajfault,
            processes: pids.and_then(|pids| pids.get_pid_current().ok()).unwrap_or_default(),
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
    use crate::machine::folder::Folder;

    /// What is read of a cgroup with these files.
    fn read(version: &str, files: &[(&str, &str)]) -> Option<Usage> {
        let folder = Folder::new();
        let mount = |name: &str, kind: &str| format!("1 0 0:1 / {}/{name} rw - {kind} x rw\n", folder.path().display());
        let mounts = match version {
            "1" => ["cpuacct", "memory", "pids"].map(|name| mount(name, "cgroup")).concat(),
            _ => mount("unified", "cgroup2"),
        };
        for (file, text) in files {
            let dir = if version == "1" { file.split('.').next().unwrap() } else { "unified" };
            let cgroup = folder.path().join(dir).join("pod");
            fs::create_dir_all(&cgroup).unwrap();
            fs::write(cgroup.join(file), text).unwrap();
        }
        Hierarchies::parse(&mounts).unwrap().usage("/pod")
    }

    #[test]
    fn figures_of_both_versions() {
        let v1 = [
            ("cpuacct.usage", "7000\n"),
            ("memory.usage_in_bytes", "900\n"),
            ("memory.limit_in_bytes", "4096\n"),
            (
                "memory.stat",
                "cache 1\ntotal_cache 300\ntotal_rss 200\ntotal_inactive_file 100\ntotal_swap 5\ntotal_pgfault 6\ntotal_pgmajfault 2\n",
            ),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            // what cgroups-rs would not survive
            ("memory.numa_stat", "total=0\n"),
            ("pids.current", "4\n"),
        ];
        let v2 = [
            ("cpu.stat", "usage_usec 7\nuser_usec 4\n"),
            ("memory.current", "900\n"),
            ("memory.max", "4096\n"),
            ("memory.swap.current", "5\n"),
            ("memory.stat", "anon 200\nfile 300\ninactive_file 100\npgfault 6\npgmajfault 2\n"),
            ("memory.events", "low 0\noom 4\noom_kill 3\n"),
            ("pids.current", "4\n"),
        ];
        let expected = Usage {
            cpu: 7000,
            memory: 900,
            working_set: 800,
            rss: 200,
            cache: 300,
            swap: 5,
            memory_limit: Some(4096),
            page_faults: 6,
            major_page_faults: 2,
            processes: 4,
            oom_kills: 3,
        };
        assert_eq!(read("1", &v1), Some(expected));
        assert_eq!(read("2", &v2), Some(expected));
        let unlimited = |files: &[(&'static str, &'static str)], limit| {
            let with = files
                .iter()
                .map(|(f, t)| if f.contains(".max") || f.contains("limit") { (*f, limit) } else { (*f, *t) });
            with.collect::<Vec<_>>()
        };
        assert_eq!(read("1", &unlimited(&v1, "9223372036854771712\n")).unwrap().memory_limit, None);
        assert_eq!(read("2", &unlimited(&v2, "max\n")).unwrap().memory_limit, None);
        assert_eq!(read("1", &[]), None, "there is none");
        assert_eq!(read("2", &[]), None, "there is none");
        assert_eq!(read("2", &v2[..1]), Some(Usage { cpu: 7000, ..Usage::default() }), "no other controller");
    }

    #[test]
    fn interfaces_are_read() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes\n    \
                    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 866 11 1 2 0 0 0 0 796 10 3 4 0 0 0 0\n";
        let eth0 = Interface { name: "eth0".into(), received: [866, 11, 1, 2], sent: [796, 10, 3, 4] };
        assert_eq!(interfaces(text), [eth0]);
    }
}
