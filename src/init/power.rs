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

/// Takes away every mount below these folders; then the kernel has written all there is to write.
pub(super) fn unmount(folders: &[&str]) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for place in below(&mounts, folders) {
        if let Err(error) = umount2(place, MntFlags::empty()) {
            console::say(&format!("pikelet: {place} is still in use: {error}"));
        }
    }
    nix::unistd::sync();
}

/// The mounts that `mountinfo` has below these folders, each before what it is mounted on.
fn below<'a>(mountinfo: &'a str, folders: &[&str]) -> Vec<&'a str> {
    let places = mountinfo.lines().filter_map(|l| l.split(' ').nth(4));
    let mut places: Vec<&str> = places.filter(|p| folders.iter().any(|f| Path::new(p).starts_with(f))).collect();
    // a path is longer than those it is in; the kernel's order is of no use, as mounts are moved
    places.sort_unstable_by(|a, b| b.cmp(a));
    places
}

/// Ends all programs, leaves the card as it should be, then restarts the board or turns it off.
pub fn off(mode: RebootMode, watchdog: Option<&Watchdog>) -> ! {
    end_all(watchdog);
    log::close();
    unmount(&["/var", BOOT]);
    end(mode)
}

/// Restarts the board, or turns it off, as it is.
pub(super) fn end(mode: RebootMode) -> ! {
    let off = [RebootMode::RB_POWER_OFF, RebootMode::RB_HALT_SYSTEM].contains(&mode);
    console::say(if off { "pikelet: off" } else { "pikelet: restarting" });
    match reboot(mode) {
        Ok(never) => match never {},
        Err(error) => console::say(&format!("pikelet: the kernel does not restart: {error}: pull the plug")),
    }
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_on_another_goes_first() {
        let mountinfo = "21 1 0:5 / / rw - overlay root rw\n20 21 0:4 / /oldroot/dev rw - devtmpfs dev rw\n\
            22 21 0:6 / /oldroot rw - overlay root rw\n23 20 0:7 / /oldroot/dev/pts rw - devpts pts rw\n\
            24 21 0:8 / /oldroots rw - tmpfs x rw\n25 22 0:9 / /oldroot/var rw - ext4 a rw\n\
            26 25 0:9 / /oldroot/var rw - ext4 b rw\n";
        let places = ["/oldroot/var", "/oldroot/var", "/oldroot/dev/pts", "/oldroot/dev", "/oldroot"];
        assert_eq!(below(mountinfo, &["/oldroot"]), places);
        assert_eq!(below(mountinfo, &["/oldroots", "/boot"]), ["/oldroots"]);
    }
}
