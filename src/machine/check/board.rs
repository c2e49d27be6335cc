//! The board itself: architecture, memory, temperature, power, clock.

use std::fs;
use std::path::Path;

use super::{Finding, bytes};
use crate::machine::architecture;
use crate::machine::board::Board;
use crate::machine::health::{HOT, Readings};
use crate::machine::usage::node_usage;

/// Less memory leaves no room for pods, in bytes.
const LEAST_MEMORY: u64 = 200 << 20;
/// With less than this a node runs a handful of small pods, in bytes: what is left of 512 MiB by the firmware.
const SMALL_MEMORY: u64 = 400 << 20;
/// Seconds since the epoch of 2026: no clock of a running agent can be before it.
pub const OLDEST_NOW: i64 = 1_767_225_600;

/// How the memory controller is switched on.
pub fn memory_cgroup(root: &Path) -> String {
    let there = |file: &&str| root.join(file.trim_start_matches('/')).exists();
    let file = ["/boot/firmware/cmdline.txt", "/boot/cmdline.txt"].into_iter().find(there);
    let file = file.unwrap_or("/boot/firmware/cmdline.txt");
    let options = "cgroup_enable=memory cgroup_memory=1";
    if Board::read(root).model.contains("Raspberry Pi") {
        return format!("add `{options}` to the one line of {file}, and reboot");
    }
    format!(
        "boot the kernel with cgroup_enable=memory (on a Raspberry Pi: add `{options}` to the one line of {file}); a \
         kernel without CONFIG_MEMCG has to be replaced"
    )
}

fn machine(board: &Board) -> Finding {
    let model = if board.model.is_empty() { String::new() } else { format!(" ({})", board.model) };
    let found = format!("{}{model}", architecture());
    match architecture() {
        "amd64" | "arm64" | "arm" => Finding::ok("architecture", found),
        _ => Finding::warning("architecture", found, "few images are made for it; those for amd64, arm64 and arm are"),
    }
}

/// Bytes in a page of this kernel's.
#[allow(clippy::useless_conversion)]
pub fn page_bytes() -> Option<i64> {
    // a long in C, which has 32 bits on 32-bit boards
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().map(i64::from)
}

pub fn page_size(size: i64) -> Finding {
    if size == 4096 {
        return Finding::ok("page size", "4 KiB");
    }
    Finding::warning(
        "page size",
        format!("{} KiB: programs built for pages of 4 KiB do not run", size >> 10),
        "on a Raspberry Pi 5 add `kernel=kernel8.img` to config.txt, and reboot",
    )
}

pub fn memory(total: u64) -> Finding {
    let found = bytes(total);
    if total < LEAST_MEMORY {
        Finding::missing("memory", found, format!("a node needs {} at least", bytes(LEAST_MEMORY)))
    } else if total < SMALL_MEMORY {
        Finding::warning("memory", found, "give every pod a memory limit, and keep to a handful of small ones")
    } else {
        Finding::ok("memory", found)
    }
}

fn temperature(millidegrees: i64) -> Finding {
    let found = format!("{:.1} °C", millidegrees as f64 / 1000.0);
    if millidegrees < HOT {
        return Finding::ok("temperature", found);
    }
    Finding::warning("temperature", format!("{found}: the board slows down"), "cool it: a heat sink, or a fan")
}

/// `bits` are the Raspberry Pi firmware's `get_throttled`.
fn power(bits: u32) -> Finding {
    let told = [
        (0, "under-voltage now"),
        (16, "under-voltage since boot"),
        (2, "throttled now"),
        (18, "throttled since boot"),
    ];
    let found: Vec<&str> = told.into_iter().filter(|(bit, _)| bits >> bit & 1 == 1).map(|(_, text)| text).collect();
    if found.is_empty() {
        return Finding::ok("power", "no under-voltage since boot");
    }
    let mend = "use the board's own power supply and a short, thick cable: cards are damaged by under-voltage";
    Finding::warning("power", found.join(", "), mend)
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

/// The board; `root` is where `/proc` and `/sys` lie.
pub fn check(root: &Path) -> Vec<Finding> {
    let mut findings = vec![machine(&Board::read(root))];
    findings.extend(page_bytes().map(page_size));
    findings.push(memory(node_usage().total));
    let readings = Readings::read(root);
    findings.extend(readings.hottest().map(temperature));
    // the kernel's own sensor knows of the present only
    findings.extend(readings.firmware.or(readings.alarm.map(u32::from)).map(power));
    findings.push(clock(jiff::Timestamp::now().as_second()));
    let own_clock = fs::read_dir("/sys/class/rtc").is_ok_and(|mut d| d.next().is_some());
    findings.push(time_sync(super::system::clock_synchronized(), own_clock));
    findings
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use crate::machine::folder::Folder;

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
        assert_eq!(power(0).state, State::Ok);
        assert_eq!(power(0x50005).found, {
            "under-voltage now, under-voltage since boot, throttled now, throttled since boot"
        });
        assert_eq!(power(0x50000).found, "under-voltage since boot, throttled since boot");
    }

    #[test]
    fn a_raspberry_pi_is_looked_at() {
        let root = Folder::raspberry_pi_4();
        let of = |check: &str| super::check(root.path()).into_iter().find(|f| f.check == check).unwrap();
        assert!(of("architecture").found.ends_with("(Raspberry Pi 4 Model B Rev 1.4)"));
        assert_eq!((of("temperature").found.as_str(), of("power").state), ("48.7 °C", State::Ok));
        root.put("sys/class/thermal/thermal_zone0/temp", "82345\n");
        assert_eq!(of("temperature").state, State::Warning);
        root.remove("sys/bus");
        assert_eq!(of("power").state, State::Ok);
        root.put("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n");
        assert_eq!(of("power").found, "under-voltage now");
    }

    #[test]
    fn the_memory_controller_is_switched_on_in_the_file_that_is_there() {
        let root = Folder::raspberry_pi_4();
        assert!(memory_cgroup(root.path()).contains("line of /boot/firmware/cmdline.txt, and reboot"));
        root.put("boot/cmdline.txt", "");
        assert!(memory_cgroup(root.path()).contains("line of /boot/cmdline.txt, and reboot"));
        assert!(memory_cgroup(Folder::new().path()).contains("CONFIG_MEMCG"), "no Raspberry Pi");
    }

    #[test]
    fn pages_that_programs_are_not_built_for() {
        assert_eq!(page_size(4096).state, State::Ok);
        let large = page_size(16384);
        assert!(large.state == State::Warning && large.found.contains("16 KiB"), "{large:?}");
        assert!(large.mend.unwrap().contains("kernel=kernel8.img"));
    }
}
