//! Terminals made of a container's own devpts.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::{Mode, SFlag, fstat, major, minor};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::{Uid, fchown};

use super::setup::context;

/// Where a container's devpts has what makes terminals.
const MAKER: &str = "/dev/pts/ptmx";
/// `DEVPTS_SUPER_MAGIC`.
const DEVPTS: i32 = 0x1cd1;
/// Device of [`MAKER`].
const DEVICE: (u64, u64) = (5, 2);

nix::ioctl_write_ptr_bad!(unlock, libc::TIOCSPTLCK, libc::c_int);
nix::ioctl_write_int_bad!(other_side, libc::TIOCGPTPEER);

/// A new terminal of the container whose mount namespace the calling process is in: the program's side, which belongs to
/// `owner` (an id of the host), and the other. It takes nothing but a real one, whatever the container has put there.
pub fn open_pair(owner: u32) -> Result<(OwnedFd, OwnedFd), String> {
    let flags = OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    // a descriptor that does nothing, so that what is there can be looked at
    let failed = |e: Errno| format!("making a terminal by {MAKER}: {e}");
    let seen = open(MAKER, flags | OFlag::O_PATH, Mode::empty()).map_err(failed)?;
    let stat = fstat(&seen).map_err(failed)?;
    let device = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
    #[allow(clippy::cast_lossless)] // the kernel's type is another one on each target
    let real = |fd: &OwnedFd| fstatfs(fd).is_ok_and(|s| s.filesystem_type() == FsType(DEVPTS as _));
    if !device || (major(stat.st_rdev), minor(stat.st_rdev)) != DEVICE || !real(&seen) {
        return Err(format!("making a terminal: {MAKER} in the container is no such device"));
    }
    let terminal = open(MAKER, flags | OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK, Mode::empty());
    let terminal = terminal.map_err(failed)?;
    if !real(&terminal) {
        return Err(format!("making a terminal: {MAKER} in the container has changed meanwhile"));
    }
    let unlocked: libc::c_int = 0;
    // SAFETY: the descriptor is open and the kernel reads one number.
    unsafe { unlock(terminal.as_raw_fd(), &raw const unlocked) }.map_err(context("unlocking a terminal"))?;
    let own = programs_side(&terminal)?;
    give_side(&own, owner)?;
    Ok((own, terminal))
}

/// Gives the program's side of `terminal` to its user, an id of the host: else only root could open it again.
pub fn give(terminal: &OwnedFd, owner: u32) -> Result<(), String> {
    give_side(&programs_side(terminal)?, owner)
}

fn give_side(own: &OwnedFd, owner: u32) -> Result<(), String> {
    fchown(own, Some(Uid::from_raw(owner)), None).map_err(context("giving a terminal to its user"))
}

/// Not by its name, behind which there may be something else.
fn programs_side(terminal: &OwnedFd) -> Result<OwnedFd, String> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the descriptor is open, and the kernel makes another.
    let fd = unsafe { other_side(terminal.as_raw_fd(), flags) }.map_err(context("opening a terminal"))?;
    // SAFETY: the kernel has just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
