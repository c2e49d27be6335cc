//! The FAT partition while the board runs: read-only, but for moments, and then one writer at a time.

use std::fs::File;

use nix::fcntl::{Flock, FlockArg};

use super::{BOOT, Failure, mounts};

/// Does work for which the FAT partition is writable. Whoever else wants to write, in this process or another, waits.
pub fn writable<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let folder = File::open(BOOT).map_err(|e| format!("opening {BOOT}: {e}"))?;
    let lock = Flock::lock(folder, FlockArg::LockExclusive).map_err(|(_, e)| format!("waiting for {BOOT}: {e}"))?;
    mounts::remount(BOOT, true, mounts::SAFE)?;
    let done = work();
    let closed = mounts::remount(BOOT, false, mounts::SAFE);
    drop(lock);
    let done = done?;
    closed.map(|()| done)
}
