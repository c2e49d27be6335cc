//! Files and names that are there, whole, after the power failed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Makes the names in a directory last: what was created, renamed or removed there before.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Writes a file so that it is there whole or not at all; a file that says the same already is left alone. True when it
/// was written. The name itself lasts after [`sync_dir`]. One writer at a time for a path.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    if fs::metadata(path).is_ok_and(|m| m.len() == bytes.len() as u64) && fs::read(path)? == bytes {
        return Ok(false);
    }
    replace(path, bytes, true).map(|()| true)
}

/// Replaces a file in one step; `synced` so that what it says outlives a power cut. One writer at a time for a path.
pub fn replace(path: &Path, bytes: &[u8], synced: bool) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        if synced {
            file.sync_data()?;
        }
        fs::rename(&temporary, path)
    };
    // half a file takes room that a full disk needs
    write().inspect_err(|_| drop(fs::remove_file(&temporary)))
}
