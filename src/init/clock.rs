//! The clock of a board that has none: never earlier than what is known, then set by time servers (SNTP).
#![allow(unsafe_code)]

use std::path::Path;
use std::time::Duration;

use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, clock_gettime, clock_settime};
use rsntp::SntpClient;
use tokio::sync::watch;

use super::{Failure, ext4, log};

/// Asked when neither the settings nor DHCP name any.
pub const DEFAULT: [&str; 2] = ["0.pool.ntp.org", "1.pool.ntp.org"];
/// Waits after a failure: they double, from the first to the last.
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LAST_WAIT: Duration = Duration::from_mins(10);
/// How often the time is asked for once it is known.
const EVERY: Duration = Duration::from_hours(1);
/// Smaller differences are left alone: no lease or certificate is as fine.
const NOTICED: f64 = 0.1;

/// The time when the image was made, in seconds since 1970: the file's only line.
const MADE: &str = "/etc/pikelet/made";

/// When the image was made; 0 where that is not known.
pub(super) fn made() -> u64 {
    std::fs::read_to_string(MADE).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0)
}

/// Sets a clock that is behind what must have passed: the making of the image, and the last write to the card.
pub fn floor(data: &Path) -> Result<(), Failure> {
    let written = ext4::Superblock::read(data).map_or(0, |s| s.written);
    let floor = i64::try_from(written.max(made()))?;
    if clock_gettime(ClockId::CLOCK_REALTIME)?.num_seconds() < floor {
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::seconds(floor))?;
    }
    Ok(())
}

/// Asks one server and sets the clock; by how many seconds it was wrong.
fn ask(server: &str) -> Result<f64, String> {
    let answer = SntpClient::new().synchronize(server).map_err(|e| format!("{server}: {e}"))?;
    let offset = answer.clock_offset().as_secs_f64();
    if offset.abs() >= NOTICED {
        let now = clock_gettime(ClockId::CLOCK_REALTIME).map_err(|e| e.to_string())?;
        let right = moved(now, offset, made()).ok_or_else(|| format!("{server}: its time is before this image's"))?;
        clock_settime(ClockId::CLOCK_REALTIME, right).map_err(|e| format!("setting the clock: {e}"))?;
    }
    believed().map_err(|e| format!("telling the kernel that its clock is right: {e}"))?;
    Ok(offset)
}

/// The time by an offset in seconds; `None` when that was before the image was `made`.
fn moved(now: TimeSpec, offset: f64, made: u64) -> Option<TimeSpec> {
    let by = TimeSpec::from_duration(Duration::try_from_secs_f64(offset.abs()).ok()?);
    let right = if offset < 0.0 { now - by } else { now + by };
    (u64::try_from(right.num_seconds()).ok()? >= made).then_some(right)
}

/// Tells the kernel that its clock is kept: it doubts that when it has heard nothing for hours, or the clock was set.
fn believed() -> nix::Result<()> {
    // SAFETY: the structure is plain numbers, for which zero is a value: the status, and both errors, become 0.
    let mut state: nix::libc::timex = unsafe { std::mem::zeroed() };
    state.modes = nix::libc::ADJ_STATUS | nix::libc::ADJ_MAXERROR | nix::libc::ADJ_ESTERROR;
    // SAFETY: the kernel reads and writes one timex, and state is one.
    nix::errno::Errno::result(unsafe { nix::libc::adjtimex(&raw mut state) }).map(drop)
}

/// Keeps the clock right for ever; `told` hears how it is, `true` with it once it is right.
pub async fn keep(mut servers: watch::Receiver<Vec<String>>, told: impl Fn(String, bool)) {
    let mut wait = FIRST_WAIT;
    let mut right = false;
    loop {
        let asked = servers.borrow_and_update().clone();
        let mut errors = Vec::new();
        let mut good = None;
        for server in asked {
            let name = server.clone();
            match tokio::task::spawn_blocking(move || ask(&server)).await {
                Ok(Ok(offset)) => good = Some((name, offset)),
                Ok(Err(error)) => errors.push(error),
                Err(error) => errors.push(error.to_string()),
            }
            if good.is_some() {
                break;
            }
        }
        if let Some((server, offset)) = good {
            log::line(&format!("clock: was wrong by {offset:.3} s by {server}"));
            (right, wait) = (true, EVERY);
            told(format!("set by {server}"), true);
        } else {
            if !errors.is_empty() {
                log::line(&format!("clock: {}", errors.join("; ")));
                told(format!("not set: {}", errors.join("; ")), false);
            }
            wait = if right { FIRST_WAIT } else { (wait * 2).min(LAST_WAIT) };
            right = false;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = servers.changed() => {
                if changed.is_err() { return }
                wait = FIRST_WAIT;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_s_time_is_not_before_the_image_s() {
        let now = TimeSpec::seconds(1_000_000);
        assert_eq!(moved(now, 0.5, 999_999), Some(TimeSpec::new(1_000_000, 500_000_000)));
        assert_eq!(moved(now, -0.5, 999_999), Some(TimeSpec::new(999_999, 500_000_000)));
        assert_eq!(moved(now, -2.0, 999_999), None);
        assert_eq!(moved(now, -2e6, 0), None);
        assert_eq!(moved(now, f64::NAN, 0), None);
    }
}
