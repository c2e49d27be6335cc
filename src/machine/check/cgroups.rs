//! Control groups: their version, and the controllers pods are limited with.

use std::collections::BTreeSet;
use std::path::Path;

use super::kernel::Kernel;
use super::{Finding, board, read};
use crate::runtime::Hierarchies;

/// Each controller, its option, and what pods lack without it; those with `true` a node needs.
const CONTROLLERS: [(&str, &str, &str, bool); 4] = [
    ("cpu", "CGROUP_SCHED", "CPU requests and limits of pods have no effect", true),
    ("memory", "MEMCG", "memory limits of pods have no effect: one pod can take it all", true),
    ("pids", "CGROUP_PIDS", "one pod can take all process ids", true),
    ("cpuset", "CPUSETS", "pods cannot be kept to certain CPUs", false),
];

/// What is known of a controller that cannot be used; `table` is `/proc/cgroups`.
fn mend(name: &str, option: &str, unified: bool, table: &str) -> String {
    let mut rows = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|r| r.first() == Some(&name));
    let enabled = row.and_then(|r| r.get(3).map(|e| *e == "1"));
    match enabled {
        Some(true) if !unified => {
            format!("it is not mounted: mount -t cgroup -o {name} cgroup /sys/fs/cgroup/{name}")
        }
        _ if name == "memory" && enabled != Some(true) => board::memory_cgroup(Path::new("/")),
        Some(false) => format!("take cgroup_disable={name} off the kernel's command line"),
        _ => format!("use a kernel with CONFIG_{option}"),
    }
}

fn controllers(usable: &BTreeSet<String>, unified: bool, table: &str) -> Vec<Finding> {
    let finding = |(name, option, without, needed): (&str, &str, &str, bool)| {
        let check = format!("cgroup {name}");
        let mend = || mend(name, option, unified, table);
        match (usable.contains(name), needed) {
            (true, _) => Finding::ok(&check, "usable"),
            (false, true) => Finding::missing(&check, format!("not usable: {without}"), mend()),
            (false, false) => Finding::warning(&check, format!("not usable: {without}"), mend()),
        }
    };
    CONTROLLERS.into_iter().map(finding).collect()
}

/// The memory controller; `table` is `/proc/cgroups`.
pub fn memory(usable: &BTreeSet<String>, unified: bool, table: &str) -> Option<Finding> {
    controllers(usable, unified, table).into_iter().find(|f| f.check == "cgroup memory")
}

/// Control groups as the agent will find them.
pub fn check(kernel: &Kernel) -> Vec<Finding> {
    let hierarchies = match Hierarchies::detect() {
        Ok(found) => found,
        Err(error) => {
            let mend = "mount -t cgroup2 none /sys/fs/cgroup (systemd does it at boot)";
            return vec![Finding::missing("cgroups", error.to_string(), mend)];
        }
    };
    let unified = hierarchies.unified();
    let version = if unified {
        Finding::ok("cgroups", "version 2")
    } else {
        Finding::warning(
            "cgroups",
            "version 1: it works, but kernels and systemd give it up",
            "add systemd.unified_cgroup_hierarchy=1 to the kernel's command line",
        )
    };
    let mut findings = vec![version];
    findings.extend(controllers(&hierarchies.controllers(), unified, &read("/proc/cgroups")));
    if kernel.option("CFS_BANDWIDTH") == Some(false) {
        let mend = "use a kernel with CONFIG_CFS_BANDWIDTH";
        findings.push(Finding::warning("cpu limits", "not in this kernel: pods are not held to limits.cpu", mend));
    }
    let writable = nix::unistd::access(Path::new("/sys/fs/cgroup"), nix::unistd::AccessFlags::W_OK);
    if writable == Err(nix::errno::Errno::EROFS) {
        let mend = "the agent runs in a container: give it the cgroups of the host, writable";
        findings.push(Finding::missing("cgroup tree", "/sys/fs/cgroup is read-only", mend));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn what_is_off_is_told_from_what_is_not_mounted() {
        let usable = ["cpu", "pids"].map(str::to_owned).into();
        let off = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t3\t1\t1\nmemory\t0\t1\t0\n";
        let found = controllers(&usable, true, off);
        let states: Vec<_> = found.iter().map(|f| (f.check.as_str(), f.state)).collect();
        let want = [State::Ok, State::Missing, State::Ok, State::Warning];
        assert_eq!(
            states,
            ["cgroup cpu", "cgroup memory", "cgroup pids", "cgroup cpuset"].into_iter().zip(want).collect::<Vec<_>>()
        );
        assert!(found[1].mend.as_ref().unwrap().contains("cgroup_enable=memory cgroup_memory=1"));
        assert!(mend("memory", "MEMCG", false, "memory 4 10 1\n").contains("mount -t cgroup -o memory"));
        assert!(mend("pids", "CGROUP_PIDS", true, "pids 4 10 0\n").contains("cgroup_disable=pids"));
        assert!(mend("pids", "CGROUP_PIDS", true, "").contains("CONFIG_CGROUP_PIDS"));
    }
}
