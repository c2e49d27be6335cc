//! The last program of a board with Debian's system. systemd cannot unmount the root it runs from, nor the data partition
//! when that holds the root's changes; so at its end it makes the card's own root the root again, with the one it had at
//! `/oldroot`, and starts `/shutdown` there (bootup(7), "Returning to initrd"), which is this.

use std::ffi::OsStr;

use nix::sys::reboot::RebootMode;

use crate::init::power;

/// The folder where systemd looks for it.
pub(super) const ROOT: &str = "/run/initramfs";
/// Where all is that was mounted.
const LEFT: &str = "/oldroot";

/// Unmounts all, then does what systemd was asked for.
pub(crate) fn main(asked: Option<&OsStr>) -> ! {
    power::unmount(&[LEFT]);
    power::end(mode(asked))
}

/// systemd's word for it.
fn mode(asked: Option<&OsStr>) -> RebootMode {
    match asked.and_then(OsStr::to_str) {
        Some("poweroff") => RebootMode::RB_POWER_OFF,
        Some("halt") => RebootMode::RB_HALT_SYSTEM,
        Some("kexec") => RebootMode::RB_KEXEC,
        _ => RebootMode::RB_AUTOBOOT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_does_as_it_is_told_and_else_restarts() {
        let of = |word: &str| mode(Some(OsStr::new(word)));
        assert_eq!(of("poweroff"), RebootMode::RB_POWER_OFF);
        assert_eq!(of("halt"), RebootMode::RB_HALT_SYSTEM);
        assert_eq!(of("reboot"), RebootMode::RB_AUTOBOOT);
        assert_eq!(mode(None), RebootMode::RB_AUTOBOOT);
    }
}
