//! The board itself: architecture, memory, temperature, power, clock.

use std::fs;
use std::path::Path;

use super::{Finding, bytes, read};
use crate::machine::architecture;
use crate::machine::usage::node_usage;

/// Less memory leaves no room for pods, in bytes.
const LEAST_MEMORY: u64 = 200 << 20;
/// With less than this a node runs a handful of small pods, in bytes: what is left of 512 MiB by the firmware.
const SMALL_MEMORY: u64 = 400 << 20;
/// Raspberry Pis slow down from 80 °C on.
const HOT: i64 = 80_000;
/// Seconds since the epoch of 2026: no clock of a running agent can be before it.
const OLDEST_NOW: i64 = 1_767_225_600;

/// The name of the board, if it has a device tree.
fn model() -> Option<String> {
    let text = read("/proc/device-tree/model");
    Some(text.trim_end_matches('\0').to_owned()).filter(|m| !m.is_empty())
}

/// How the memory controller is switched on.
pub fn memory_cgroup() -> String {
    let file = ["/boot/firmware/cmdline.txt", "/boot/cmdline.txt"].into_iter().find(|f| Path::new(f).exists());
    let file = file.unwrap_or("/boot/firmware/cmdline.txt");
    let options = "cgroup_enable=memory cgroup_memory=1";
    if model().is_some_and(|m| m.contains("Raspberry Pi")) {
        return format!("add `{options}` to the one line of {file}, and reboot");
    }
    format!(
        "boot the kernel with cgroup_enable=memory (on a Raspberry Pi: add `{options}` to the one line of {file}); a \
         kernel without CONFIG_MEMCG has to be replaced"
    )
}

fn machine() -> Finding {
    let board = model().map(|m| format!(" ({m})")).unwrap_or_default();
    let found = format!("{}{board}", architecture());
    match architecture() {
        "amd64" | "arm64" | "arm" => Finding::ok("architecture", found),
        _ => Finding::warning("architecture", found, "few images are made for it; those for amd64, arm64 and arm are"),
    }
}

fn page_size() -> Option<Finding> {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten()?;
    Some(if size == 4096 {
        Finding::ok("page size", "4 KiB")
    } else {
        Finding::warning(
            "page size",
            format!("{} KiB: programs built for pages of 4 KiB do not run", size >> 10),
            "on a Raspberry Pi 5 add `kernel=kernel8.img` to config.txt, and reboot",
        )
    })
}

fn memory(total: u64) -> Finding {
    let found = bytes(total);
    if total < LEAST_MEMORY {
        Finding::missing("memory", found, format!("a node needs {} at least", bytes(LEAST_MEMORY)))
    } else if total < SMALL_MEMORY {
        Finding::warning("memory", found, "give every pod a memory limit, and keep to a handful of small ones")
    } else {
        Finding::ok("memory", found)
    }
}

/// The hottest of the board's thermal zones, in thousandths of a degree.
fn hottest() -> Option<i64> {
    let zones = fs::read_dir("/sys/class/thermal").ok()?.flatten();
    zones.filter_map(|z| fs::read_to_string(z.path().join("temp")).ok()?.trim().parse().ok()).max()
}

fn temperature(millidegrees: i64) -> Finding {
    let found = format!("{:.1} °C", millidegrees as f64 / 1000.0);
    if millidegrees < HOT {
        return Finding::ok("temperature", found);
    }
    Finding::warning("temperature", format!("{found}: the board slows down"), "cool it: a heat sink, or a fan")
}

/// Of the Raspberry Pi's firmware: `get_throttled`, in hexadecimal.
fn power(throttled: &str) -> Option<Finding> {
    let bits = u32::from_str_radix(throttled.trim().trim_start_matches("0x"), 16).ok()?;
    let told = [
        (0, "under-voltage now"),
        (16, "under-voltage since boot"),
        (2, "throttled now"),
        (18, "throttled since boot"),
    ];
    let found: Vec<&str> = told.into_iter().filter(|(bit, _)| bits >> bit & 1 == 1).map(|(_, text)| text).collect();
    if found.is_empty() {
        return Some(Finding::ok("power", "no under-voltage since boot"));
    }
    let mend = "use the board's own power supply and a short, thick cable: cards are damaged by under-voltage";
    Some(Finding::warning("power", found.join(", "), mend))
}

/// What the kernel's own driver of that sensor (`rpi_volt`) tells: its alarm.
fn voltage_alarm() -> Option<Finding> {
    let sensors = fs::read_dir("/sys/class/hwmon").ok()?.flatten().map(|e| e.path());
    let mut own = sensors.filter(|p| fs::read_to_string(p.join("name")).is_ok_and(|n| n.trim() == "rpi_volt"));
    let alarm = fs::read_to_string(own.next()?.join("in0_lcrit_alarm")).ok()?;
    power(if alarm.trim() == "1" { "0x1" } else { "0x0" })
}

/// `now` in seconds since the epoch.
fn clock(now: i64) -> Finding {
    let time = jiff::Timestamp::from_second(now).map(|t| t.to_string()).unwrap_or_default();
    if now >= OLDEST_NOW {
        return Finding::ok("clock", time);
    }
    let mend =
        "set it (date -s), and let systemd-timesyncd or chrony keep it: certificates are not valid before their time";
    Finding::missing("clock", time, mend)
}

fn time_sync(synchronized: bool, own_clock: bool) -> Finding {
    let mend = "timedatectl set-ntp true, or install chrony";
    match (synchronized, own_clock) {
        (true, _) => Finding::ok("time sync", "the clock is kept by a time server"),
        (false, true) => Finding::warning("time sync", "the clock is kept by no time server", mend),
        (false, false) => Finding::warning(
            "time sync",
            "the clock is kept by no time server, and this board has no clock of its own: after a boot it is wrong",
            mend,
        ),
    }
}

/// The board.
pub fn check() -> Vec<Finding> {
    let mut findings = vec![machine()];
    findings.extend(page_size());
    findings.push(memory(node_usage().total));
    findings.extend(hottest().map(temperature));
    let firmware = read("/sys/devices/platform/soc/soc:firmware/get_throttled");
    findings.extend(power(&firmware).or_else(voltage_alarm));
    findings.push(clock(jiff::Timestamp::now().as_second()));
    let own_clock = fs::read_dir("/sys/class/rtc").is_ok_and(|mut d| d.next().is_some());
    findings.push(time_sync(super::system::clock_synchronized(), own_clock));
    findings
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn boards_that_are_too_small_too_hot_or_of_another_time() {
        let states = [100, 300, 430].map(|mib| memory(mib << 20).state);
        assert_eq!(states, [State::Missing, State::Warning, State::Ok]);
        assert_eq!((temperature(79_900).state, temperature(80_000).state), (State::Ok, State::Warning));
        assert_eq!((clock(0).state, clock(OLDEST_NOW).state), (State::Missing, State::Ok));
        assert_eq!(time_sync(true, false).state, State::Ok);
        assert!(time_sync(false, false).found.contains("no clock of its own"));
    }

    #[test]
    fn the_firmware_tells_of_bad_power() {
        assert_eq!(power("0\n").unwrap().state, State::Ok);
        assert_eq!(power("0x50005\n").unwrap().found, {
            "under-voltage now, under-voltage since boot, throttled now, throttled since boot"
        });
        assert_eq!(power("50000").unwrap().found, "under-voltage since boot, throttled since boot");
        assert!(power("").is_none());
    }
}
