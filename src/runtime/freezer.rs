//! Cgroups whose processes stand still for a moment, by both versions (kernel: cgroup-v1 freezer, cgroup-v2 cgroup.freeze),
//! through cgroups-rs but for what is below them, and for whether those of version 2 do stand still: it tells what was asked.

use std::fs;
use std::io;
use std::path::PathBuf;

use cgroups_rs::FreezerState;
use cgroups_rs::fs::freezer::FreezerController;

use super::cgroup::Hierarchies;
use super::cgroup_tree;
use super::controllers::{BASE, done};

impl Hierarchies {
    /// Begins to stop all processes of `path` and below. They do nothing more of their own once they are
    /// [`Hierarchies::frozen`].
    pub fn freeze(&self, path: &str) -> io::Result<()> {
        match self.freezer(path) {
            Some((freezer, file)) => done(freezer.freeze(), &file),
            None => Err(io::Error::other("no freezer cgroup is mounted")),
        }
    }

    /// Lets them go on. Asked of one that is not frozen it does nothing.
    pub fn thaw(&self, path: &str) {
        let Some((freezer, file)) = self.freezer(path) else { return };
        if matches!(freezer.state(), Ok(FreezerState::Frozen | FreezerState::Freezing))
            && let Err(e) = done(freezer.thaw(), &file)
        {
            tracing::warn!("{}: {e}; processes stand still", file.display());
        }
    }

    /// The same, on version 1 for all below as well: a container may freeze cgroups of its own, where not even SIGKILL is heard.
    pub fn thaw_all(&self, path: &str) {
        if self.unified() {
            return self.thaw(path);
        }
        let Some(dir) = self.dir_of("freezer", path) else { return };
        let thawed = |done: io::Result<()>| {
            if let Err(e) = done {
                tracing::warn!("{}: {e}; processes may stand still", dir.display());
            }
        };
        let visited = cgroup_tree::visit(&dir, &mut |cgroup| {
            if cgroup_tree::read(cgroup, "freezer.state").is_ok_and(|state| state.trim() != "THAWED") {
                thawed(cgroup_tree::write(cgroup, "freezer.state", "THAWED"));
            }
        });
        thawed(visited);
    }

    /// Whether all of them stand still, or there are none.
    pub fn frozen(&self, path: &str) -> bool {
        let Some((freezer, file)) = self.freezer(path) else { return true };
        if self.unified() {
            let events = fs::read_to_string(file.with_file_name("cgroup.events"));
            return events.map_or(true, |text| text.lines().any(|l| l == "frozen 1"));
        }
        // where it cannot be read it is gone, and they with it
        matches!(freezer.state(), Ok(FreezerState::Frozen) | Err(_))
    }

    /// Whether none of them runs a program: all stand still, or are held in a stop (by a signal, or a tracer that holds them
    /// there for ever: version 1 does not count those). Held ones stand still as well before they run their program again.
    pub fn still(&self, path: &str) -> bool {
        if self.frozen(path) {
            return true;
        }
        let Some(dir) = self.dir_of("freezer", path).filter(|_| !self.unified()) else { return false };
        let mut held = true;
        let visited = cgroup_tree::visit(&dir, &mut |cgroup| {
            held &= cgroup_tree::read(cgroup, "tasks").is_ok_and(|tasks| tasks.lines().all(is_held));
        });
        visited.is_ok() && held
    }

    fn freezer(&self, path: &str) -> Option<(FreezerController, PathBuf)> {
        let file = if self.unified() { "cgroup.freeze" } else { "freezer.state" };
        let dir = self.dir_of("freezer", path)?;
        Some((FreezerController::new(dir.clone(), BASE.into(), self.unified()), dir.join(file)))
    }
}

/// Whether a thread is stopped, or gone (proc(5), `/proc/pid/stat`).
fn is_held(thread: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{thread}/stat"));
    // its name may have anything in it
    let state = stat.map(|text| text.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()));
    state.map_or(true, |state| matches!(state, Some('t' | 'T' | 'Z' | 'X')))
}
