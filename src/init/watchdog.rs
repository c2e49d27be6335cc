//! The hardware's watchdog: it restarts a board whose first process, or kernel, is stuck.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use super::{Failure, log};

/// After how many silent seconds the board restarts; the Raspberry Pi's can count to 15.
const LIMIT: i32 = 15;
/// How often it is told that all is well.
pub const EVERY: Duration = Duration::from_secs(5);

nix::ioctl_readwrite!(set_timeout, b'W', 6, i32);

/// An open watchdog. It goes on counting when this ends, also through a restart that hangs.
pub struct Watchdog(File);

impl Watchdog {
    /// Opens the watchdog, which then counts; `None` when the board has none, or it is not `wanted`.
    pub fn open(wanted: bool) -> Result<Option<Self>, Failure> {
        if !wanted {
            return Ok(None);
        }
        let device = "/dev/watchdog";
        let file = match OpenOptions::new().write(true).open(device) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("opening {device}: {error}").into()),
        };
        let mut seconds = LIMIT;
        // SAFETY: the kernel reads and writes one int.
        if let Err(error) = unsafe { set_timeout(file.as_raw_fd(), &raw mut seconds) } {
            log::line(&format!("watchdog: its own time limit stays, {LIMIT} s could not be set: {error}"));
        }
        Ok(Some(Self(file)))
    }

    /// Tells it that all is well.
    pub fn tell(&self) {
        if let Err(error) = (&self.0).write_all(b"1") {
            log::line(&format!("watchdog: {error}"));
        }
    }
}

/// Tells it for ever.
pub async fn keep(watchdog: Arc<Watchdog>) {
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        watchdog.tell();
    }
}
