//! The settings that spare a card: what containers write, and their logs, on disk or in memory.

use super::{ConfigError, Settings, wrong};
use crate::machine::usage;
use crate::quantity;

/// Where something lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the disk or card.
    Disk,
    /// In memory (tmpfs): gone at the next boot.
    Memory,
}

/// Where what containers write lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    /// What they write to their root file systems.
    pub containers: Place,
    /// Their logs.
    pub logs: Place,
    /// Most bytes that each of them may hold in memory.
    pub size: u64,
}

fn place(name: &str, written: Option<&String>) -> Result<Place, ConfigError> {
    match written.map(String::as_str) {
        None | Some("disk") => Ok(Place::Disk),
        Some("memory") => Ok(Place::Memory),
        Some(other) => wrong(format!("{name} {other:?}: it is disk or memory")),
    }
}

pub(super) fn storage(flags: &Settings, file: &Settings) -> Result<Storage, ConfigError> {
    let size = match flags.memory_storage_size.as_ref().or(file.memory_storage_size.as_ref()) {
        None => usage::memory().total / 8,
        Some(text) => match quantity::whole(text).and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0) {
            Some(size) => size,
            None => return wrong(format!("memoryStorageSize {text:?}: it is a quantity such as 64Mi")),
        },
    };
    Ok(Storage {
        containers: place("containerStorage", flags.container_storage.as_ref().or(file.container_storage.as_ref()))?,
        logs: place("logStorage", flags.log_storage.as_ref().or(file.log_storage.as_ref()))?,
        size,
    })
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn of(text: &str) -> Result<Storage, String> {
        storage(&Settings::default(), &parse(text).unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn disk_unless_memory_is_asked_for() {
        let default = of("").unwrap();
        assert_eq!((default.containers, default.logs), (Place::Disk, Place::Disk));
        assert!(default.size > 16 << 20);
        let all = of("containerStorage: memory\nlogStorage: memory\nmemoryStorageSize: 32Mi\n").unwrap();
        assert_eq!(all, Storage { containers: Place::Memory, logs: Place::Memory, size: 32 << 20 });
        assert!(of("logStorage: ram").unwrap_err().contains("logStorage \"ram\": it is disk or memory"));
        assert!(of("memoryStorageSize: \"0\"").unwrap_err().contains("such as 64Mi"));
    }
}
