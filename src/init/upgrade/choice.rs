//! Which of the card's two systems is started: a file on the FAT partition that the firmware's `config.txt` includes.
//!
//! The file is one sector, always written as a whole and in its place, which a card does or does not: a power cut leaves the
//! old choice or the new one. `os_prefix` is the firmware's (every Raspberry Pi's knows it, other than `tryboot`, for which
//! the kernel has no driver): what stands in front of the names of kernel, initramfs, command line and device trees.

use std::fs;
use std::io::Write;
use std::path::Path;

use crate::files;
use crate::init::{Failure, mbr};

/// The file.
pub const FILE: &str = "choice.txt";
/// What the firmware reads.
const PREFIX: &str = "os_prefix=";
/// What it does not read, and only pikelet does.
const TRIAL: &str = "#trial=";
/// For the person who looks.
const HEADING: &str = "# Which system of this card is started, a/ or b/. Upgrades change it.";

/// One of the two systems of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// The one a fresh card has.
    A,
    /// The one an upgrade makes first.
    B,
}

impl Set {
    /// The other one.
    pub fn other(self) -> Self {
        if self == Self::A { Self::B } else { Self::A }
    }

    /// Its folder on the FAT partition.
    pub fn folder(self) -> &'static str {
        if self == Self::A { "a" } else { "b" }
    }

    fn of(folder: &str) -> Option<Self> {
        [Self::A, Self::B].into_iter().find(|set| set.folder() == folder)
    }

    /// The one whose kernel runs, by its command line.
    pub fn running(cmdline: &str) -> Option<Self> {
        cmdline.split_whitespace().find_map(|word| word.strip_prefix("pikelet.set=")).and_then(Self::of)
    }
}

/// What the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// What is started next.
    pub next: Set,
    /// The one that has yet to show that it works. While it is `next` as well it was not started so far.
    pub trial: Option<Set>,
}

impl Choice {
    /// The choice of the card whose FAT partition is mounted at `folder`.
    pub fn read(folder: &Path) -> Result<Self, Failure> {
        let path = folder.join(FILE);
        let text = fs::read_to_string(&path).map_err(|e| format!("reading {}: {e}", path.display()))?;
        Self::parse(&text).ok_or_else(|| format!("{}: it has no line {PREFIX}a/ or {PREFIX}b/", path.display()).into())
    }

    fn parse(text: &str) -> Option<Self> {
        // the last one counts, as for the firmware; an editor may have changed the ends of lines
        let last = |key: &str| text.lines().rev().find_map(|line| line.trim().strip_prefix(key));
        let next = Set::of(last(PREFIX)?.trim_end_matches('/'))?;
        Some(Self { next, trial: last(TRIAL).and_then(Set::of) })
    }

    /// The file's text, of a sector's size.
    fn text(self) -> String {
        let trial = self.trial.map(|set| format!("{TRIAL}{}\n", set.folder())).unwrap_or_default();
        let text = format!("{HEADING}\n{PREFIX}{}/\n{trial}", self.next.folder());
        format!("{text:\n<width$}", width = mbr::SECTOR as usize)
    }

    /// Writes it to the card, for good.
    pub fn write(self, folder: &Path) -> Result<(), Failure> {
        let path = folder.join(FILE);
        let write = || {
            // not truncated: the sector stays where it is
            let mut file = files::keep(&path, 0o700)?;
            file.write_all(self.text().as_bytes())?;
            file.set_len(mbr::SECTOR)?;
            file.sync_all()
        };
        Ok(write().map_err(|e| format!("writing {}: {e}", path.display()))?)
    }

    /// Before the start of a system on trial means anything: the other one is next. `None` when that is so already.
    pub fn taken_back(self) -> Option<Self> {
        self.trial.filter(|trial| *trial == self.next).map(|trial| Self { next: trial.other(), ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_one_sector_and_is_understood_again() {
        for next in [Set::A, Set::B] {
            for trial in [None, Some(Set::A), Some(Set::B)] {
                let choice = Choice { next, trial };
                assert_eq!(choice.text().len(), 512);
                assert_eq!(Choice::parse(&choice.text()), Some(choice));
                assert_eq!(Choice::parse(&choice.text().replace('\n', "\r\n")), Some(choice));
                // what the firmware reads of a line
                assert!(choice.text().lines().all(|line| line.len() < 80));
            }
        }
        assert_eq!(Choice::parse("os_prefix=c/\n"), None);
        assert_eq!(Choice::parse(""), None);
        // by a person
        assert_eq!(Choice::parse("os_prefix=b\n"), Some(Choice { next: Set::B, trial: None }));
    }

    #[test]
    fn a_trial_is_taken_back_once() {
        let armed = Choice { next: Set::B, trial: Some(Set::B) };
        let back = armed.taken_back().unwrap();
        assert_eq!(back, Choice { next: Set::A, trial: Some(Set::B) });
        assert_eq!(back.taken_back(), None);
        assert_eq!(Choice { next: Set::A, trial: None }.taken_back(), None);
    }

    #[test]
    fn a_file_is_overwritten_in_its_place() {
        let dir = std::env::temp_dir().join(format!("pikelet-choice-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(FILE), "x".repeat(2000)).unwrap();
        let choice = Choice { next: Set::B, trial: Some(Set::B) };
        choice.write(&dir).unwrap();
        assert_eq!(fs::metadata(dir.join(FILE)).unwrap().len(), 512);
        assert_eq!(Choice::read(&dir).unwrap(), choice);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_running_system_is_named_by_the_command_line() {
        assert_eq!(Set::running("quiet pikelet.set=b panic=10"), Some(Set::B));
        assert_eq!(Set::running("quiet"), None);
    }
}
