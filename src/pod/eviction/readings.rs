//! What the machine has left, read in a few small files.

use std::path::Path;

use super::threshold::{Reading, Readings, Signal};
use crate::machine::usage::{file_system, memory, processes};

/// Reads every signal; `root` is the agent's folder, `images` the image store's.
pub fn read(root: &Path, images: &Path) -> Readings {
    let mut readings = Readings::new();
    let memory = memory();
    if memory.total > 0 {
        let available = memory.total.saturating_sub(memory.working_set);
        readings.insert(Signal::MemoryAvailable, Reading { available, capacity: memory.total });
    }
    let signals = [
        (root, Signal::NodefsAvailable, Signal::NodefsInodesFree),
        (images, Signal::ImagefsAvailable, Signal::ImagefsInodesFree),
    ];
    for (path, bytes, inodes) in signals {
        let Some(found) = file_system(path) else { continue };
        readings.insert(bytes, Reading { available: found.available, capacity: found.capacity });
        // some file systems make inodes as they need them, and count none
        if found.inodes > 0 {
            readings.insert(inodes, Reading { available: found.inodes_free, capacity: found.inodes });
        }
    }
    let (now, most) = processes();
    if most > 0 {
        readings.insert(Signal::PidAvailable, Reading { available: most.saturating_sub(now), capacity: most });
    }
    readings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_read() {
        let readings = read(Path::new("/"), Path::new("/tmp"));
        assert!(readings.values().all(|r| r.available > 0 && r.available <= r.capacity));
        assert!(readings.contains_key(&Signal::MemoryAvailable) && readings.contains_key(&Signal::PidAvailable));
    }
}
