//! Pod and container cgroups: version 1 hierarchies and version 2 alike. What is set in them is cgroups-rs's
//! ([`super::controllers`]).

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cgroups_rs::fs::cpuset::CpuSetController;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroup_tree;
use super::controllers::{self, BASE, done};
use super::limits::{huge_pages, settings};
use super::types::Resources;

use crate::files;

/// Most cgroups below that of a pod on version 2, and below that of each container of it, so that one does not take them all: a
/// nested systemd or kubelet has hundreds. The kernel has 65,535 with memory, for the whole machine.
pub const MOST_OF_POD: &str = "1000";
pub const MOST_OF_CONTAINER: &str = "800";
/// How deep they may be.
const DEPTH: &str = "100";
/// Controllers switched on for children on version 2.
const V2_CONTROLLERS: [&str; 6] = ["cpu", "memory", "pids", "cpuset", "io", "hugetlb"];
/// Tries to remove a busy cgroup; killed processes leave it a moment later.
pub const REMOVE_TRIES: u32 = 60;
/// Between two of them.
pub const REMOVE_PAUSE: Duration = Duration::from_millis(25);

/// The cgroup hierarchies of this machine.
#[derive(Debug, Clone)]
pub struct Hierarchies {
    /// Those with controllers: of version 1 each, or the one of version 2.
    mounts: Vec<PathBuf>,
    /// Those without beside version 1: named ones (systemd's), and version 2. Whoever stays in the root of one has all of the
    /// machine below itself there, and with a user and a cgroup namespace of its own may kill it (`cgroup.kill`).
    others: Vec<PathBuf>,
    unified: bool,
}

impl Hierarchies {
    /// Finds them among the mounts. cgroups-rs does not find version 2 beside version 1, nor one that is elsewhere than in
    /// `/sys/fs/cgroup`, and takes mounts that cannot be read for none.
    pub fn detect() -> io::Result<Self> {
        Self::parse(&fs::read_to_string("/proc/self/mountinfo")?)
            .ok_or_else(|| io::Error::new(ErrorKind::NotFound, "no cgroup file system is mounted"))
    }

    pub(super) fn parse(mountinfo: &str) -> Option<Self> {
        let (mut v1, mut others, mut v2) = (Vec::<PathBuf>::new(), Vec::<PathBuf>::new(), None);
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(point) = left.split(' ').nth(4) else { continue };
            let mut right = right.split(' ');
            let (kind, options) = (right.next(), right.nth(1).unwrap_or_default());
            match kind {
                Some("cgroup") => {
                    let named = options.split(',').any(|o| o.starts_with("name="));
                    let of = if named { &mut others } else { &mut v1 };
                    if !of.iter().any(|m| m == Path::new(point)) {
                        of.push(point.into());
                    }
                }
                Some("cgroup2") => v2 = v2.or(Some(PathBuf::from(point))),
                _ => {}
            }
        }
        if v1.is_empty() {
            Some(Self { mounts: vec![v2?], others, unified: true })
        } else {
            others.extend(v2);
            Some(Self { mounts: v1, others, unified: false })
        }
    }

    /// True with version 2.
    pub fn unified(&self) -> bool {
        self.unified
    }

    /// The controllers that can be used.
    pub fn controllers(&self) -> BTreeSet<String> {
        if self.unified {
            let text = self.mounts.iter().filter_map(|m| fs::read_to_string(m.join("cgroup.controllers")).ok());
            return text.flat_map(|t| t.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect();
        }
        let names = self.mounts.iter().filter_map(|m| m.file_name()?.to_str());
        names.flat_map(|n| n.split(',').map(str::to_owned)).collect()
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.mounts.iter().chain(&self.others)
    }

    /// The directories of the cgroup `path` in all hierarchies.
    pub fn dirs(&self, path: &str) -> impl Iterator<Item = PathBuf> {
        let path = path.trim_start_matches('/').to_owned();
        self.all().map(move |m| m.join(&path))
    }

    /// Moves the calling process to the cgroup `path` in the hierarchies without controllers, which libcontainer leaves alone.
    pub fn join_others(&self, path: &str) -> io::Result<()> {
        self.others.iter().try_for_each(|mount| {
            let dir = mount.join(path.trim_start_matches('/'));
            controllers::join(&dir).map_err(|e| at(&dir, &e))
        })
    }

    /// The directory of the cgroup `path` that has the files of a controller; `None` when it is not mounted.
    pub fn dir_of(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let of = |mount: &&PathBuf| self.has(mount, controller);
        self.mounts.iter().find(of).map(|m| m.join(path.trim_start_matches('/')))
    }

    fn has(&self, mount: &Path, controller: &str) -> bool {
        let name = mount.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        self.unified || name.split(',').any(|c| c == controller)
    }

    /// Creates `path` with its parents. On version 2 a cgroup whose children have controllers takes no process, so only
    /// the parents get theirs switched on. cgroups-rs would leave the mode to the umask, and not tell of a controller that
    /// is refused, or a cpuset that stays empty.
    pub fn create(&self, path: &str) -> io::Result<()> {
        for mount in self.all() {
            let mut parent = mount.clone();
            for part in path.split('/').filter(|p| !p.is_empty()) {
                let dir = parent.join(part);
                self.create_one(mount, &parent, &dir)?;
                parent = dir;
            }
        }
        Ok(())
    }

    /// Bounds how many cgroups the processes of `path` make below it, where the kernel can; cgroups-rs knows no such bound.
    pub fn bound(&self, path: &str, most: &str) {
        for (file, most) in [("cgroup.max.descendants", most), ("cgroup.max.depth", DEPTH)] {
            for file in self.dirs(path).map(|dir| dir.join(file)).filter(|file| file.exists()) {
                if let Err(e) = files::set(&file, most) {
                    tracing::warn!("{}: {e}", file.display());
                }
            }
        }
    }

    /// Creates the cgroup `name` in `parent`, which [`Hierarchies::create`] has made.
    pub fn create_in(&self, parent: &str, name: &str) -> io::Result<()> {
        let parents = self.all().zip(self.dirs(parent));
        parents.into_iter().try_for_each(|(mount, parent)| self.create_one(mount, &parent, &parent.join(name)))
    }

    fn create_one(&self, mount: &Path, parent: &Path, dir: &Path) -> io::Result<()> {
        if self.unified {
            delegate(parent)?;
        }
        match files::new_dir(dir, 0o755) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(at(dir, &e)),
            _ => {}
        }
        if !self.unified && self.has(mount, "cpuset") {
            inherit_cpuset(parent, dir);
        }
        Ok(())
    }

    /// Sets the limits of `path`. One the kernel has no file for is left out: with a warning, if it is a limit that
    /// every kernel for containers has.
    pub fn apply(&self, path: &str, resources: &Resources) -> io::Result<()> {
        let mut refused = Vec::new();
        let files = if resources.hugepage_limits.is_some() { self.files(path) } else { Vec::new() };
        let pages = self.dir_of("hugetlb", path).filter(|_| !files.is_empty());
        let pages = pages.map(|dir| huge_pages(&dir, self.unified));
        for setting in settings(resources, &files, self.unified) {
            let controller = setting.file.split('.').next().unwrap_or_default();
            let Some(dir) = self.dir_of(controller, path).filter(|dir| dir.join(&setting.file).exists()) else {
                if setting.expected {
                    tracing::warn!(
                        "cgroup {path}: no {}; this machine's kernel does not offer that limit",
                        setting.file
                    );
                }
                continue;
            };
            if setting.write(&dir, self.unified, pages.as_ref()).is_err() {
                refused.push((dir, setting));
            }
        }
        // some bound each other, such as memory and memory with swap, and which has to be first depends on what is there
        refused.into_iter().try_for_each(|(dir, setting)| {
            setting.write(&dir, self.unified, pages.as_ref()).map_err(|e| at(&dir.join(&setting.file), &e))
        })
    }

    /// Names of the hugetlb controller's files, which depend on the page sizes of the machine.
    fn files(&self, path: &str) -> Vec<String> {
        let entries =
            self.dir_of("hugetlb", path).and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.starts_with("hugetlb.")).collect()
    }

    /// All processes in `path` and below; cgroups-rs looks at `path` alone.
    pub fn processes(&self, path: &str) -> Vec<Pid> {
        let mut pids = Vec::new();
        for dir in self.dirs(path) {
            let visited = cgroup_tree::visit(&dir, &mut |cgroup| {
                let text = cgroup_tree::read(cgroup, "cgroup.procs").unwrap_or_default();
                // 0 stands for a process of another PID namespace, and kill(0) would hit the caller's own group.
                pids.extend(text.lines().filter_map(|l| l.parse().ok()).filter(|&p| p > 1).map(Pid::from_raw));
            });
            if let Err(e) = visited {
                tracing::warn!("looking for processes: {}", at(&dir, &e));
            }
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Sends `signal` to every process in `path` and below. cgroups-rs kills on version 2 alone, not beside version 1.
    pub fn signal_all(&self, path: &str, signal: Signal) {
        if signal == Signal::SIGKILL {
            // in one step, and also those that are being forked (Linux 5.14)
            let killed = self.dirs(path).filter(|dir| files::set(dir.join("cgroup.kill"), "1").is_ok()).count();
            if self.unified && killed == 1 {
                return;
            }
            // on version 1 a frozen process does not even end
            self.thaw_all(path);
        }
        for pid in self.processes(path) {
            // A process that ended meanwhile is what is wanted.
            let _ = kill(pid, signal);
        }
    }

    /// Kills every process of `path` and removes it with everything below. A missing cgroup is fine. cgroups-rs goes down by
    /// paths, which end before the cgroups a container can make do.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        let mut left = self.try_remove(path);
        for _ in 1..REMOVE_TRIES {
            if left.is_ok() {
                break;
            }
            std::thread::sleep(REMOVE_PAUSE);
            left = self.try_remove(path);
        }
        left
    }

    /// The same without waiting for what was killed to be gone: to be tried again every [`REMOVE_PAUSE`].
    pub fn try_remove(&self, path: &str) -> io::Result<()> {
        // mostly there is nothing in it any more, and the kernel knows
        if self.dirs(path).all(|dir| fs::remove_dir(dir).is_ok()) {
            return Ok(());
        }
        self.signal_all(path, Signal::SIGKILL);
        let mut left = Ok(());
        for dir in self.dirs(path) {
            if let Err(e) = cgroup_tree::remove(&dir) {
                left = Err(at(&dir, &e));
            }
        }
        left
    }

    /// How many processes of `path` the kernel's OOM killer has ended. cgroups-rs does not read it on version 2, and ends the
    /// program where it does not understand the file of version 1.
    pub fn oom_kills(&self, path: &str) -> u64 {
        let file = if self.unified { "memory.events" } else { "memory.oom_control" };
        self.dir_of("memory", path)
            .and_then(|dir| fs::read_to_string(dir.join(file)).ok())
            .and_then(|text| text.lines().find_map(|l| l.strip_prefix("oom_kill ")?.trim().parse().ok()))
            .unwrap_or(0)
    }
}

fn at(path: &Path, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("cgroup {}: {e}", path.display()))
}

/// Version 2: lets children of `dir` have controllers. Each alone, since one that is refused would refuse them all.
/// cgroups-rs writes all the machine has, each time, and swallows what is said to it.
fn delegate(dir: &Path) -> io::Result<()> {
    let words = |name| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let (available, present) = (words("cgroup.controllers"), words("cgroup.subtree_control"));
    let has = |list: &str, controller: &str| list.split_whitespace().any(|c| c == controller);
    for controller in V2_CONTROLLERS.into_iter().filter(|c| has(&available, c) && !has(&present, c)) {
        match files::set(dir.join("cgroup.subtree_control"), format!("+{controller}")) {
            Err(e) if matches!(e.kind(), ErrorKind::ResourceBusy | ErrorKind::Unsupported) => {
                let message = format!(
                    "cgroup {}: there are processes in it ({controller} for its children: {e}), so no pod can be below; \
                     choose another --cgroup-root, or move them",
                    dir.display()
                );
                return Err(io::Error::new(e.kind(), message));
            }
            Err(e) => tracing::warn!("cgroup {}: {controller} for its children: {e}", dir.display()),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Version 1: a new cpuset is empty and takes no process until it has its parent's values. Those below get them from the
/// kernel, cpusets(7).
fn inherit_cpuset(parent: &Path, dir: &Path) {
    if fs::read_to_string(dir.join("cpuset.mems")).is_ok_and(|own| !own.trim().is_empty()) {
        return;
    }
    if let Err(e) = files::set(dir.join("cgroup.clone_children"), "1") {
        tracing::warn!("{}: cgroup.clone_children: {e}", dir.display());
    }
    let cpuset = CpuSetController::new(dir.to_owned(), BASE.into(), false);
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let set = |value| if file == "cpuset.cpus" { cpuset.set_cpus(value) } else { cpuset.set_mems(value) };
        let Ok(own) = fs::read_to_string(dir.join(file)) else { continue };
        if own.trim().is_empty()
            && let Ok(value) = fs::read_to_string(parent.join(file))
            && let Err(e) = done(set(value.trim()), &dir.join(file))
        {
            tracing::warn!("{}: {e}", dir.join(file).display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_and_unified_machines() {
        let hybrid = "1 0 0:1 / /c/cpu rw - cgroup cgroup rw,cpu\n2 0 0:2 / /c/systemd rw - cgroup cgroup rw,name=systemd\n\
                      3 0 0:3 / /c/unified rw shared:1 - cgroup2 cgroup2 rw\n";
        let found = Hierarchies::parse(hybrid).unwrap();
        assert!(!found.unified());
        let dirs = ["/c/cpu/a/b", "/c/systemd/a/b", "/c/unified/a/b"].map(PathBuf::from);
        assert_eq!(found.dirs("/a/b").collect::<Vec<_>>(), dirs);
        assert_eq!(found.controllers(), ["cpu".to_owned()].into());
        let found = Hierarchies::parse("3 0 0:3 / /c rw - cgroup2 cgroup2 rw\n").unwrap();
        assert!(found.unified());
        assert!(Hierarchies::parse("").is_none());
    }
}
