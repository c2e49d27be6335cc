//! The session keyring (session-keyring(7)): what programs put there, those they start find, whatever user or namespace they
//! are in.
#![allow(unsafe_code)]

use std::ptr::null;

use nix::errno::Errno;
use nix::libc;

use super::setup::context;

/// `KEYCTL_JOIN_SESSION_KEYRING` (keyctl(2)).
const JOIN_SESSION_KEYRING: libc::c_int = 1;

/// Gives the calling process, and what it starts, one of its own that is empty and has no name by which others could join
/// it. Where a kernel has no keys there is nothing to find.
pub fn leave() -> Result<(), String> {
    // SAFETY: without a name nothing is read.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, null::<libc::c_char>()) };
    match Errno::result(joined) {
        // a filter around this machine, behind which no container has keys either
        Err(Errno::ENOSYS | Errno::EPERM) => Ok(()),
        joined => joined.map(drop).map_err(context("leaving the session keyring")),
    }
}
