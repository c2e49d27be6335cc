//! `bpf(2)`: loading a program that decides about devices, and attaching it to a cgroup.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sys::resource::{RLIM_INFINITY, Resource::RLIMIT_MEMLOCK, getrlimit, setrlimit};

/// Written into the program; it calls nothing that asks for a certain one.
const LICENSE: &CStr = c"Apache-2.0";

/// One instruction as the kernel reads it (`struct bpf_insn`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What is done, and to what kind of operands.
    pub operation: u8,
    /// Target in the lower half, source in the upper.
    pub registers: u8,
    /// Of a jump, in instructions after the next; of a load, in bytes.
    pub offset: i16,
    /// The operand that is no register.
    pub number: i32,
}

/// `union bpf_attr` for loading a program.
#[repr(C)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// `union bpf_attr` for attaching one.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
/// Programs of cgroups above and below are asked as well.
const ALLOW_MULTI: u32 = 2;

/// Loads a program, which the kernel checks. Before Linux 5.11 it counts against the memory that root may lock, which is
/// little. Errors are the kernel's: `ENOSYS` or `EINVAL` where it has no such programs.
pub fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    match try_load(program) {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
            let (soft, hard) = getrlimit(RLIMIT_MEMLOCK)?;
            setrlimit(RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)?;
            let loaded = try_load(program);
            // containers inherit it
            setrlimit(RLIMIT_MEMLOCK, soft, hard)?;
            loaded
        }
        other => other,
    }
}

fn try_load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the kernel only reads: the attributes, of the size given, and the instructions and the license they point
    // to, which live until the call returns.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us (close-on-exec) and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Lets a loaded program decide for the processes of a cgroup and of those below, until it is removed.
pub fn attach(program: &OwnedFd, cgroup: &File) -> io::Result<()> {
    let attributes = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: ATTACH_TYPE_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the kernel only reads the attributes, of the size given.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attributes, size_of::<Attach>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
