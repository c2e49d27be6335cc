//! The clock of a board that has none of its own: it begins in 1970, or where the system left it. What the agent wrote before
//! is not younger than now.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::check::{OLDEST_NOW, clock_synchronized};

use crate::files;

/// The time a clock may be behind what was known before without being wrong, in seconds: systems that keep their own floor
/// write it down once an hour.
const BEHIND: i64 = 3600;
/// Files and folders the agent writes anyway; the first only for this, at a graceful end.
const WRITTEN: [&str; 6] =
    ["time", "pki/kubelet-client-current.pem", "images/index.json", "objects", "pods", "containers"];

/// A time this machine has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Floor {
    at: Timestamp,
    /// What was written then.
    file: PathBuf,
}

impl Floor {
    /// The newest that what lies in `root` tells of; to be asked before anything is written there.
    pub fn of(root: &Path) -> Option<Self> {
        let written = WRITTEN.iter().map(|name| root.join(name)).filter_map(|file| {
            let at = Timestamp::try_from(fs::metadata(&file).ok()?.modified().ok()?).ok()?;
            Some(Self { at, file })
        });
        written.max_by_key(|floor| floor.at)
    }

    /// Why `now` cannot be the time; `None`: it may be. A clock that a time server keeps is believed.
    fn speaks_against(&self, now: Timestamp, synchronized: bool) -> Option<String> {
        let believed = synchronized && now.as_second() >= OLDEST_NOW;
        (!believed && now.as_second() + BEHIND < self.at.as_second()).then(|| {
            format!(
                "this machine has seen {:.0} before ({} is of then; if that was wrong, `touch` it)",
                self.at,
                self.file.display()
            )
        })
    }

    /// Why the clock is wrong now; `None`: it may be right.
    pub fn contradiction(&self) -> Option<String> {
        self.speaks_against(Timestamp::now(), clock_synchronized())
    }
}

/// Keeps the time for the next boot, unless it is wrong.
pub fn remember(root: &Path) -> std::io::Result<()> {
    if Floor::of(root).is_some_and(|floor| floor.contradiction().is_some()) {
        return Ok(());
    }
    // its time is all there is to it
    files::create(&root.join("time"), 0o600)?.set_modified(Timestamp::now().into())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn the_clock_is_not_behind_what_was_written() {
        let dir = std::env::temp_dir().join(format!("pikelet-clock-{}", std::process::id()));
        fs::create_dir_all(dir.join("pods")).unwrap();
        let old = Timestamp::now() - jiff::SignedDuration::from_hours(48);
        File::open(dir.join("pods")).unwrap().set_modified(old.into()).unwrap();
        let floor = Floor::of(&dir).unwrap();
        assert_eq!((floor.at.as_second(), &floor.file), (old.as_second(), &dir.join("pods")));
        remember(&dir).unwrap();
        let floor = Floor::of(&dir).unwrap();
        assert!(floor.at > old && floor.file.ends_with("time") && floor.contradiction().is_none());
        let against = |seconds, synchronized| {
            floor.speaks_against(floor.at - jiff::SignedDuration::from_secs(seconds), synchronized)
        };
        assert!(against(BEHIND, false).is_none() && against(BEHIND + 1, true).is_none());
        assert!(against(BEHIND + 1, false).unwrap().contains("has seen"));
        assert!(floor.speaks_against(Timestamp::UNIX_EPOCH, true).is_some());
        fs::remove_dir_all(&dir).unwrap();
    }
}
