//! The one step in which another process appears in a container: everything before it is invisible there, and after it
//! there is nothing left to do but to become the program.
//!
//! Whoever may trace it there can read and change its memory before it is the program. So that memory is a copy: its maker,
//! which is in the host's PID namespace, would otherwise run what was put there; and of what the maker knows it has nothing
//! (see `own_memory.rs`). It must neither allocate nor panic.
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::unistd::{Pid, pipe2, read, setsid};

use super::filter::Filter;
use super::filter_check::{Call, call, first_refused, refusal};
use super::maker::Reporter;
use super::own_memory::Region;
use super::setup::context;

/// Size in bytes of the process's stack until it is the program.
const STACK: usize = 64 << 10;
/// How it comes to be: a child of the shim, as its maker is, with nothing shared but what is open.
const FLAGS: c_int = libc::CLONE_PARENT | libc::SIGCHLD;

/// What is still to be done when it exists.
pub struct Launch {
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    terminal: bool,
    /// Whether it starts its session itself, and asks to be killed when the shim ends.
    session: bool,
    death_signal: bool,
    /// A filter that does not let the rest pass.
    late: Option<Filter>,
}

/// Steps of the process, as it tells its maker which of them failed.
const SESSION: u8 = 0;
const TERMINAL: u8 = 1;
const DEATH_SIGNAL: u8 = 2;
const FILTER: u8 = 3;
const PROGRAM: u8 = 4;
/// A message: the step, and the number of the error.
const MESSAGE: usize = 5;

/// What maker and process ask of the kernel in any case once the filter is loaded: those that wait for no error do nothing
/// else, memory included.
const NEEDED: [Call; 8] = [
    Call { number: libc::SYS_clone, arguments: [FLAGS as u64, 0, 0, 0, 0, 0] },
    call(libc::SYS_capset),
    call(libc::SYS_execve),
    call(libc::SYS_write),
    call(libc::SYS_read),
    call(libc::SYS_close),
    call(libc::SYS_exit),
    call(libc::SYS_exit_group),
];
const SESSION_CALL: Call = call(libc::SYS_setsid);
#[allow(clippy::unnecessary_cast)] // of another type with musl
const TERMINAL_CALL: Call = Call { number: libc::SYS_ioctl, arguments: [0, libc::TIOCSCTTY as u64, 0, 0, 0, 0] };
const DEATH_SIGNAL_CALL: Call =
    Call { number: libc::SYS_prctl, arguments: [libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64, 0, 0, 0, 0] };

/// As the process sees it.
#[derive(Clone, Copy)]
struct Steps {
    program: *const c_char,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    terminal: bool,
    session: bool,
    death_signal: bool,
    filter: Option<(libc::sock_fprog, libc::c_ulong)>,
    errors: RawFd,
}

impl Launch {
    /// Prepares `program` with its arguments (the first is its name) and environment. Its standard streams are those of
    /// the calling process.
    pub fn new(program: CString, arguments: Vec<CString>, environment: Vec<CString>, terminal: bool) -> Self {
        Self { program, arguments, environment, terminal, session: true, death_signal: true, late: None }
    }

    /// Sees to it that it runs behind `filter`. What is returned is to be loaded before: without `no_new_privileges` that
    /// takes a capability that the process must not have when it is seen, and one that does not let the rest pass is an
    /// error.
    pub fn behind(&mut self, filter: Filter, no_new_privileges: bool) -> Result<Option<Filter>, String> {
        let refused = |calls| first_refused(filter.program(), calls);
        let terminal = if self.terminal { &[SESSION_CALL, TERMINAL_CALL][..] } else { &[] };
        match refused(&NEEDED).or_else(|| refused(terminal)) {
            None => {
                self.session = refused(&[SESSION_CALL]).is_none();
                self.death_signal = refused(&[DEATH_SIGNAL_CALL]).is_none();
                Ok(Some(filter))
            }
            Some(call) if !no_new_privileges => Err(refusal(call)),
            Some(_) => {
                self.late = Some(filter);
                Ok(None)
            }
        }
    }

    /// Starts it, tells `reporter` who it is, and ends this process when it is the program. `before` is called when all
    /// that takes memory has been done.
    pub fn run(
        mut self,
        reporter: &Reporter,
        before: impl FnOnce() -> Result<(), String>,
    ) -> Result<Infallible, String> {
        let (errors, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(context("creating a pipe"))?;
        let strings = Region::room_of_strings(&self.arguments) + Region::room_of_strings(&self.environment);
        let instructions = self.late.as_ref().map_or(0, |filter| size_of_val(filter.program()));
        let program = Region::room(self.program.count_bytes() + 1);
        let mut region =
            Region::new(STACK + strings + program + Region::room(instructions) + Region::room(size_of::<Steps>()))?;
        let filter = match &mut self.late {
            Some(filter) => {
                let copy = region.put(filter.program())?;
                let (parts, flags) = filter.parts();
                Some((libc::sock_fprog { filter: copy, ..parts }, flags))
            }
            None => None,
        };
        let steps = Steps {
            program: region.put(self.program.as_bytes_with_nul())?.cast_const().cast(),
            arguments: region.put_strings(&self.arguments)?,
            environment: region.put_strings(&self.environment)?,
            terminal: self.terminal,
            session: self.session,
            death_signal: self.death_signal,
            filter,
            errors: theirs.as_raw_fd(),
        };
        let steps = region.put(&[steps])?;
        if !self.session {
            // the process is in this one's then, and not in the shim's
            setsid().map_err(context("starting a session"))?;
        }
        before()?;
        // SAFETY: `child` uses what `steps` names, all of which is in the region.
        let pid = unsafe { region.fork(STACK, FLAGS, child, steps.cast()) };
        let pid = pid.map_err(context("starting the process"))?;
        reporter.process(Pid::from_raw(pid));
        drop(theirs);
        answer(&errors, &self.arguments)?;
        // the filter may refuse to give memory back
        reporter.done()
    }
}

fn answer(errors: &OwnedFd, arguments: &[CString]) -> Result<(), String> {
    let mut message = [0; MESSAGE];
    let count = loop {
        match read(errors, &mut message) {
            Err(Errno::EINTR) => {}
            other => break other.map_err(context("waiting for the process"))?,
        }
    };
    // the end: its end of the pipe was closed by becoming the program
    let (MESSAGE, [step, a, b, c, d]) = (count, message) else { return Ok(()) };
    let error = Errno::from_raw(i32::from_ne_bytes([a, b, c, d]));
    Err(match step {
        SESSION => format!("starting a session: {error}"),
        TERMINAL => format!("taking the terminal: {error}"),
        DEATH_SIGNAL => format!("setting the parent's death signal: {error}"),
        FILTER => format!("loading the seccomp filter: {error}"),
        _ => cannot_run(arguments.first().map_or(c"", CString::as_c_str), error),
    })
}

/// Why the kernel does not run a program that is there.
pub fn cannot_run(program: &CStr, error: Errno) -> String {
    let program = program.to_string_lossy();
    match error {
        Errno::ENOEXEC => format!("exec: {program:?}: exec format error (a program for another processor?)"),
        Errno::ENOENT => format!("exec: {program:?}: no such file or directory (its interpreter or loader?)"),
        Errno::EACCES => format!("exec: {program:?}: permission denied"),
        error => format!("exec: {program:?}: {}", error.desc()),
    }
}

extern "C" fn child(steps: *mut c_void) -> c_int {
    // SAFETY: `run` has made it, and waits for this process.
    let steps = unsafe { &mut *steps.cast::<Steps>() };
    let (step, error) = become_program(steps);
    let [a, b, c, d] = (error as i32).to_ne_bytes();
    let message = [step, a, b, c, d];
    // SAFETY: the descriptor is the process's own, and `message` is as long as said.
    unsafe { libc::write(steps.errors, message.as_ptr().cast(), message.len()) };
    127
}

/// Comes back only with what went wrong.
fn become_program(steps: &mut Steps) -> (u8, Errno) {
    // SAFETY: system calls with numbers, and with pointers that `run` keeps valid.
    unsafe {
        if steps.session && libc::setsid() < 0 {
            return (SESSION, Errno::last());
        }
        if steps.terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
            return (TERMINAL, Errno::last());
        }
        let died = libc::SIGKILL as libc::c_ulong;
        if steps.death_signal && libc::prctl(libc::PR_SET_PDEATHSIG, died, 0, 0, 0) < 0 {
            return (DEATH_SIGNAL, Errno::last());
        }
        if let Some((program, flags)) = &steps.filter {
            let mode = libc::SECCOMP_SET_MODE_FILTER;
            if libc::syscall(libc::SYS_seccomp, mode, *flags, std::ptr::from_ref(program)) < 0 {
                return (FILTER, Errno::last());
            }
        }
        libc::execve(steps.program, steps.arguments, steps.environment);
    }
    (PROGRAM, Errno::last())
}
