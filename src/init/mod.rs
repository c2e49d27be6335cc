//! The first process of the images' systems: what a board needs beside the agent, in one program and with no other.
//!
//! It runs twice. `early.rs` runs from the initramfs: kernel modules, the card and its data partition, then a root in
//! memory, from which it starts itself again. `system.rs` is the rest of the board's life: network, clock, watchdog, the
//! agent, console, reboot. Rules that need no board are in files of their own (`mbr.rs`, `settings.rs`, `dhcp/message.rs`).

mod agent;
mod boot;
mod card;
mod clock;
mod console;
pub(crate) mod debian;
mod dhcp;
mod early;
mod ext4;
pub mod fat;
pub mod image;
mod log;
mod mbr;
mod modules;
mod mounts;
mod network;
mod power;
mod report;
mod secrets;
pub mod settings;
mod status;
mod system;
pub mod upgrade;
mod watchdog;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

/// Where the FAT partition is mounted.
const BOOT: &str = "/boot";
/// The system's own volatile files.
const RUN: &str = "/run/pikelet-init";
/// The argument the second run has.
const SYSTEM: &str = "system";
/// How long a person has to read why the board does not start.
const TO_READ: Duration = Duration::from_mins(1);

/// Anything that goes wrong, for a person to read.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The argument with which it tells how Debian's system is.
const WATCH: &str = "watch";

/// Runs as the last program of Debian's system; returns only when it is not that.
pub fn shutdown(args: &[OsString]) -> ExitCode {
    if std::process::id() == 1 {
        debian::off::main(args.first().map(OsString::as_os_str));
    }
    eprintln!("pikelet: /shutdown is the last program of the images for cards: shutdown -h now turns the board off");
    ExitCode::from(2)
}

/// Runs as the first process; returns only when it is not that.
pub fn main(args: &[OsString]) -> ExitCode {
    if std::process::id() != 1 {
        if args.first().is_some_and(|a| a == WATCH) {
            return debian::watch::main();
        }
        eprintln!("pikelet init: it is the first process of the images for cards, and is not started by hand");
        return ExitCode::from(2);
    }
    // the kernel gives the first process one, but says nowhere which
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let second = args.first().is_some_and(|a| a == SYSTEM);
    let ended = if second { system::run() } else { early::run() };
    let Err(error) = ended;
    console::say(&format!("pikelet: {error}"));
    console::say(&format!("pikelet: the board starts again in {} s", TO_READ.as_secs()));
    std::thread::sleep(TO_READ);
    power::off(nix::sys::reboot::RebootMode::RB_AUTOBOOT, None)
}
