//! The first process of a PID namespace that a pod's containers share. It reaps orphans.
//!
//! With `CAP_SYS_PTRACE` containers see all of it, and can have it do what they like: so it has nothing of the host. Its
//! root is an empty file system, it has no descriptor, no environment, no capability, and few system calls.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, chdir, pipe2, pivot_root, setgroups};

use super::executor::reset_signals;
use super::setup::context;
use crate::errors::causes;

/// What it is called, with a zero behind.
const NAME: &std::ffi::CStr = c"pikelet-pause";
/// What it says when it has nothing of the host any more.
const READY: &str = "ready";
/// A place every machine has, to begin a root at.
const PLACE: &str = "/proc";
/// Its calls from then on.
const CALLS: [libc::c_long; 7] = [
    libc::SYS_rt_sigtimedwait,
    libc::SYS_wait4,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
/// Size of the kernel's signal sets in bytes.
const SIGNALS: usize = 8;
/// `linux/capability.h`: `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITIES_VERSION: u32 = 0x2008_0522;

/// Starts it as the child that `fork` makes (`None` in the child), and returns when it has nothing of the host any more.
/// It ends with its parent. The calling process has a single thread.
pub fn start(fork: impl FnOnce() -> nix::Result<Option<Pid>>) -> Result<Pid, String> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(context("creating a pipe"))?;
    let Some(pid) = fork().map_err(context("starting the pod's first process"))? else { run(File::from(theirs)) };
    drop(theirs);
    let mut said = String::new();
    File::from(ours).read_to_string(&mut said).map_err(context("waiting for the pod's first process"))?;
    if said == READY { Ok(pid) } else { Err(format!("confining the pod's first process: {said}")) }
}

fn run(mut parent: File) -> ! {
    let confined = confine(parent.as_raw_fd());
    let said = confined.as_ref().map_or_else(String::as_str, |()| READY);
    let told = parent.write_all(said.as_bytes());
    drop(parent);
    if confined.is_ok() && told.is_ok() {
        reap();
    }
    // SAFETY: ends this process without running what its parent has registered for its own end.
    unsafe { libc::_exit(1) }
}

/// Waits for children, adopted ones all, until a signal ends it.
fn reap() {
    let mut ended = SigSet::empty();
    ended.add(Signal::SIGCHLD);
    let none = std::ptr::null::<libc::c_void>();
    loop {
        // SAFETY: the set lives through the call and has at least that size; nothing else is written.
        let got = unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, ended.as_ref(), none, none, SIGNALS) };
        if got < 0 && Errno::last() != Errno::EINTR {
            return;
        }
        // SAFETY: nothing is written.
        while unsafe { libc::syscall(libc::SYS_wait4, -1, none, libc::WNOHANG, none) } > 0 {}
    }
}

/// Takes from the calling process all that is the host's, but for the descriptor `kept`.
fn confine(kept: RawFd) -> Result<(), String> {
    // Rust handles two of them: only what has no handler does not reach the first process of a PID namespace
    reset_signals().map_err(context("resetting signals"))?;
    let mut ended = SigSet::empty();
    ended.add(Signal::SIGCHLD);
    ended.thread_block().map_err(context("blocking SIGCHLD"))?;
    prctl::set_name(NAME).map_err(context("setting its name"))?;
    hide_words().map_err(context("clearing its arguments"))?;
    close_others(kept).map_err(context("closing its files"))?;
    leave_files()?;
    // version 2 of cgroups has them; what it shows is the host's tree
    let _ = unshare(CloneFlags::CLONE_NEWCGROUP);
    // who may not has none to give up
    let _ = setgroups(&[]);
    drop_capabilities().map_err(context("dropping its capabilities"))?;
    prctl::set_no_new_privs().map_err(context("giving up privileges"))?;
    prctl::set_dumpable(false).map_err(context("hiding from other users"))?;
    // last of what the kernel would undo
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(context("setting its parent's death signal"))?;
    filter_calls().map_err(|e| format!("filtering its system calls: {}", causes(&e)))
}

/// Overwrites the arguments and the environment the shim was started with.
fn hide_words() -> io::Result<()> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // proc(5): behind the name, which ends in the last parenthesis, the third field comes first
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let address = |field: usize| fields.get(field - 3).and_then(|f| f.parse::<usize>().ok()).unwrap_or(0);
    let (arguments, environment) = (address(48)..address(49), address(50)..address(51));
    let name = NAME.to_bytes_with_nul();
    if arguments.start == 0 || arguments.len() < name.len() || environment.start < arguments.end {
        return Err(io::Error::other("/proc/self/stat does not tell where they are"));
    }
    // SAFETY: the kernel put both on this process's stack when the program began, for the program to use; nothing holds a
    // reference to them any more, as the shim reads neither after its start.
    unsafe {
        std::ptr::write_bytes(arguments.start as *mut u8, 0, arguments.len());
        std::ptr::write_bytes(environment.start as *mut u8, 0, environment.len());
        std::ptr::copy_nonoverlapping(name.as_ptr(), arguments.start as *mut u8, name.len());
    }
    Ok(())
}

fn close_others(kept: RawFd) -> io::Result<()> {
    let close = |first: RawFd, last: RawFd| {
        if first > last {
            return Ok(());
        }
        // SAFETY: it takes numbers only; what is closed is used by nobody in this process any more.
        Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
    };
    match close(0, kept - 1).and_then(|()| close(kept + 1, RawFd::MAX)) {
        // before Linux 5.9
        Err(Errno::ENOSYS) => {
            let names = fs::read_dir("/proc/self/fd")?.flatten().map(|e| e.file_name());
            let open: Vec<RawFd> = names.filter_map(|n| n.to_str()?.parse().ok()).filter(|fd| *fd != kept).collect();
            // one of them was the folder's own
            for fd in open {
                let _ = nix::unistd::close(fd);
            }
            Ok(())
        }
        closed => Ok(closed?),
    }
}

/// An empty root that cannot be written.
fn leave_files() -> Result<(), String> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).map_err(context("making its mount namespace"))?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(context("making mounts private"))?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = Some("mode=0555,size=4k,nr_inodes=2");
    mount(Some("tmpfs"), PLACE, Some("tmpfs"), flags, options).map_err(context("mounting an empty root"))?;
    chdir(PLACE).map_err(context("entering an empty root"))?;
    // pivot_root(2): the old root comes to lie on the new one, where it is taken off
    pivot_root(".", ".").map_err(context("changing its root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(context("taking off the old root"))?;
    chdir("/").map_err(context("entering its root"))
}

/// Of all sets, for ever.
fn drop_capabilities() -> nix::Result<()> {
    let mut number: libc::c_ulong = 0;
    // SAFETY: prctl takes numbers only here.
    while unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) } >= 0 {
        // SAFETY: the same.
        Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) })?;
        number += 1;
    }
    let all = libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong;
    // SAFETY: the same.
    Errno::result(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, all, 0, 0, 0) })?;
    let (header, none) = ([CAPABILITIES_VERSION, 0], [0_u32; 6]);
    // SAFETY: header and sets are as large as this version says (capget(2)).
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) }).map(drop)
}

/// So that nobody has it work for them outside the limits of their container.
fn filter_calls() -> Result<(), libseccomp::error::SeccompError> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Errno(libc::EPERM))?;
    for call in CALLS {
        filter.add_rule(ScmpAction::Allow, ScmpSyscall::from(call as i32))?;
    }
    filter.load()
}
