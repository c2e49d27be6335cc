//! The system's log: in memory, of bounded size, read by `kubectl get --raw /api/v1/nodes/NAME/proxy/logs/pikelet.log`.

use std::fs::{self, File};
use std::io::Write;
use std::sync::Mutex;

use crate::files;

/// The file; what was before is in the same with `.1` behind.
const FILE: &str = "/var/log/pikelet.log";
/// Bytes of a file.
const MAX: u64 = 512 << 10;

/// The open file and its size. There is one log, and whoever has something to say says it.
static LOG: Mutex<Option<(File, u64)>> = Mutex::new(None);

fn write(line: &str, log: &mut Option<(File, u64)>) -> std::io::Result<()> {
    if log.as_ref().is_none_or(|(_, size)| *size >= MAX) {
        if log.is_some() {
            fs::rename(FILE, format!("{FILE}.1"))?;
        }
        *log = Some((files::append(std::path::Path::new(FILE), 0o640)?, 0));
    }
    if let Some((file, size)) = log {
        file.write_all(line.as_bytes())?;
        *size += line.len() as u64;
    }
    Ok(())
}

/// A line of another process, as it is.
pub fn raw(line: &str) {
    let mut log = LOG.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // a full memory leaves no better place to complain
    let _ = write(&format!("{line}\n"), &mut log);
}

/// A line of the system.
pub fn line(text: &str) {
    let now = jiff::Timestamp::now();
    raw(&format!("{now:.6} init: {text}"));
}

/// Closes the file, so that what it lies on can be unmounted.
pub fn close() {
    LOG.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
}
