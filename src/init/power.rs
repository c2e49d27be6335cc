//! The end of the board's day: processes, card, power.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::watchdog::{self, Watchdog};
use super::{BOOT, console, log};

/// How long programs have to end; as long as a pod has by default.
const GRACE: Duration = Duration::from_secs(30);

/// Collects children that have ended, until there is none left or the time is over.
fn reap(limit: Duration, watchdog: Option<&Watchdog>) -> bool {
    let until = Instant::now() + limit;
    let mut told = None::<Instant>;
    loop {
        // it counts less than programs may take
        if told.is_none_or(|told| told.elapsed() >= watchdog::EVERY) {
            told = Some(Instant::now());
            if let Some(watchdog) = watchdog {
                watchdog.tell();
            }
        }
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return true,
            Ok(WaitStatus::StillAlive) if Instant::now() >= until => return false,
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(20)),
            _ => {}
        }
    }
}

/// Ends every process but this one: asked first, then forced.
fn end_all(watchdog: Option<&Watchdog>) {
    for (signal, limit) in [(Signal::SIGTERM, GRACE), (Signal::SIGKILL, Duration::from_secs(5))] {
        // what has ended needs no signal
        let _ = kill(Pid::from_raw(-1), signal);
        if reap(limit, watchdog) {
            return;
        }
    }
}

/// Takes away every mount on the card, the last one first; then the kernel has written all there is to write.
fn unmount() {
    log::close();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let places: Vec<&str> = mounts.lines().filter_map(|l| l.split(' ').nth(4)).collect();
    for place in places.iter().rev().filter(|p| ["/var", BOOT].iter().any(|card| Path::new(p).starts_with(card))) {
        if let Err(error) = umount2(*place, MntFlags::empty()) {
            console::say(&format!("pikelet: {place} is still in use: {error}"));
        }
    }
    nix::unistd::sync();
}

/// Ends all programs, leaves the card as it should be, then restarts the board or turns it off.
pub fn off(mode: RebootMode, watchdog: Option<&Watchdog>) -> ! {
    end_all(watchdog);
    unmount();
    console::say(if mode == RebootMode::RB_POWER_OFF { "pikelet: off" } else { "pikelet: restarting" });
    match reboot(mode) {
        Ok(never) => match never {},
        Err(error) => console::say(&format!("pikelet: the kernel does not restart: {error}: pull the plug")),
    }
    loop {
        std::thread::park();
    }
}
