//! The last steps of a container's first process, in the container, before its program.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::RawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::default::get_executor;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{chdir, execv, getcwd};
use serde_json::{Value, json};

use super::filter::Filter;
use super::filter_check::{self, Call, call};
use super::launch::cannot_run;
use super::privileges::{self, Named, Sets};
use super::setup::context;

/// libcontainer opens few descriptors: those of a first process that waits have numbers below this.
const DESCRIPTORS: RawFd = 256;
/// What a shell says when a program cannot be run, and when there is none.
const CANNOT_RUN: i32 = 126;
const NO_PROGRAM: i32 = 127;

/// Checks and starts the program as container engines do.
#[derive(Clone, Default)]
pub struct ProgramExecutor {
    /// None for a program that may make all system calls.
    pub confinement: Option<Confinement>,
    /// The maker's way to the shim, which is nothing for the container.
    pub reporter: Option<RawFd>,
    /// The working directory, where volumes are mounted after libcontainer has entered one: it, and the program, may lie
    /// there.
    pub late_cwd: Option<String>,
}

/// What libcontainer leaves to do: the seccomp filter, which it would compile for every container.
#[derive(Clone)]
pub struct Confinement {
    filter: Filter,
    /// Capabilities to keep once that is done; `None` where it takes none.
    capabilities: Option<Sets>,
    /// It lets the rest of libcontainer's work pass, so nothing of what it takes is left when the process waits.
    early: bool,
}

/// What a first process still asks of the kernel while it waits for its start and becomes the program.
fn calls_behind_filter() -> Vec<Call> {
    #[allow(unused_mut)]
    let mut calls = vec![
        libc::SYS_capset,
        libc::SYS_sendmsg,
        libc::SYS_accept4,
        libc::SYS_recvfrom,
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_close,
        libc::SYS_fcntl,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigreturn,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_getrandom,
        libc::SYS_clock_gettime,
        libc::SYS_futex,
        libc::SYS_statx,
        libc::SYS_chdir,
        libc::SYS_getcwd,
        libc::SYS_execve,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    #[cfg(target_arch = "arm")]
    calls.extend([libc::SYS_mmap2, libc::SYS_recv, libc::SYS_fcntl64]);
    #[cfg(not(target_arch = "arm"))]
    calls.push(libc::SYS_mmap);
    calls.into_iter().map(call).collect()
}

impl Confinement {
    /// What is to be done before the program of `process` (of an OCI configuration). Without `no_new_privs` a filter takes
    /// `CAP_SYS_ADMIN`, and dropping it again from the bounding set `CAP_SETPCAP`: `process` gets both until then. So where
    /// others may trace it (`traced`), one that can only be loaded when it is seen is an error.
    pub fn new(filter: Filter, process: &mut Value, traced: bool) -> Result<Self, String> {
        let calls = calls_behind_filter();
        let refused = filter_check::first_refused(filter.program(), &calls);
        let early = refused.is_none();
        if process["noNewPrivileges"] == true {
            return Ok(Self { filter, capabilities: None, early });
        }
        if let Some(call) = refused.filter(|_| traced) {
            return Err(filter_check::refusal(call));
        }
        let kept: Named = serde_json::from_value(process["capabilities"].clone())
            .map_err(|e| format!("reading the capabilities: {e}"))?;
        for set in ["bounding", "permitted", "effective"] {
            let Some(names) = process["capabilities"][set].as_array_mut() else { continue };
            for name in ["CAP_SETPCAP", "CAP_SYS_ADMIN"] {
                if !names.iter().any(|n| n == name) {
                    names.push(json!(name));
                }
            }
        }
        Ok(Self { filter, capabilities: Some(Sets::try_from(&kept)?), early })
    }

    fn apply(mut self) -> Result<(), String> {
        if let Some(kept) = self.capabilities {
            privileges::bound(kept.bounding).map_err(context("dropping capabilities"))?;
        }
        self.filter.load().map_err(context("loading the seccomp filter"))?;
        if let Some(kept) = self.capabilities {
            privileges::set(kept.permitted, kept.effective).map_err(context("dropping capabilities"))?;
        }
        Ok(())
    }
}

/// The shim blocks SIGCHLD, ignores SIGPIPE and has inherited more; programs expect none, and it survives exec.
pub fn reset_signals() -> nix::Result<()> {
    for other in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default action runs no code of ours.
        unsafe { signal(other, SigHandler::SigDfl) }?;
    }
    SigSet::empty().thread_set_mask()
}

/// Closes what a process that waits for its start has no use for, all of which is the host's. Sockets stay: they are how it
/// is started.
fn close_useless(reporter: Option<RawFd>) {
    for fd in 3..DESCRIPTORS {
        // SAFETY: only looks at a descriptor; one that is not open is an error.
        let stat = fstat(unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) });
        let socket = stat.is_ok_and(|s| SFlag::from_bits_truncate(s.st_mode) & SFlag::S_IFMT == SFlag::S_IFSOCK);
        if stat.is_ok() && (!socket || reporter == Some(fd)) {
            // SAFETY: nothing in this process is used any more that owns it: it becomes the program.
            let _ = unsafe { libc::close(fd) };
        }
    }
}

fn set_death_signal() -> Result<(), String> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(context("setting the parent's death signal"))
}

impl Executor for ProgramExecutor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        reset_signals().map_err(|e| ExecutorError::Other(format!("resetting signals: {e}")))?;
        if let Some(cwd) = &self.late_cwd
            && let Err(e) = enter(cwd)
        {
            give_up(&format!("entering the working directory {cwd:?}: {e}"), CANNOT_RUN);
        }
        if let Some(confinement) = self.confinement.as_ref().filter(|c| !c.early) {
            confinement.clone().apply().map_err(ExecutorError::Other)?;
        }
        let (program, args) = command(spec).unwrap_or_else(|e| give_up(&e, NO_PROGRAM));
        let words: Result<Vec<CString>, _> = args.iter().map(|a| CString::new(a.as_bytes())).collect();
        let path = CString::new(program.into_os_string().into_encoded_bytes());
        let (Ok(words), Ok(path)) = (words, path) else { return Err(ExecutorError::InvalidArg) };
        let error = match execv(&path, &words) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        let why = cannot_run(words.first().map_or(c"", CString::as_c_str), error);
        give_up(&why, if error == Errno::ENOENT { NO_PROGRAM } else { CANNOT_RUN })
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let refused = ExecutorValidationError::ArgValidationError;
        close_useless(self.reporter);
        if self.late_cwd.is_none() {
            command(spec).map_err(refused)?;
        }
        // Nobody else would see this process end, so it must not outlive its shim. A change of users would undo it, and a
        // filter may refuse it.
        set_death_signal().map_err(refused)?;
        match self.confinement.as_ref().filter(|c| c.early) {
            Some(confinement) => confinement.clone().apply().map_err(refused),
            None => Ok(()),
        }
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        get_executor().setup_envs(envs)
    }
}

/// Nobody waits for this process's answer any more: the person who looks finds it in the container's log.
fn give_up(why: &str, code: i32) -> ! {
    eprintln!("{why}");
    std::process::exit(code)
}

/// Enters a directory of the container. Nothing that is open leads elsewhere, and one that did would have no name
/// (CVE-2024-21626).
fn enter(cwd: &str) -> nix::Result<()> {
    chdir(cwd)?;
    if getcwd()?.is_absolute() { Ok(()) } else { Err(Errno::ENOENT) }
}

/// The program's path, and its arguments with its name.
fn command(spec: &Spec) -> Result<(PathBuf, &[String]), String> {
    let process = spec.process().as_ref().ok_or("no process specified")?;
    let args = process.args().as_deref().unwrap_or_default();
    let name = args.first().ok_or("no command")?;
    let env = process.env().as_deref().unwrap_or_default();
    let path = env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or_default();
    Ok((find_program(name, path)?, args))
}

/// Where `program` is: in one of the directories of `path`, unless it is a path itself.
pub fn find_program(program: &str, path: &str) -> Result<PathBuf, String> {
    if program.contains('/') {
        return match std::fs::metadata(program) {
            Ok(meta) if meta.is_dir() => Err(format!("exec: {program:?}: is a directory")),
            Ok(meta) if meta.permissions().mode() & 0o111 == 0 => Err(format!("exec: {program:?}: permission denied")),
            Ok(_) => Ok(program.into()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(format!("exec: {program:?}: stat {program}: no such file or directory"))
            }
            Err(e) => Err(format!("exec: {program:?}: {e}")),
        };
    }
    let runnable = |file: &PathBuf| file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    let found = path.split(':').map(|dir| Path::new(dir).join(program)).find(runnable);
    found.ok_or_else(|| format!("exec: {program:?}: executable file not found in $PATH"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_programs_are_named() {
        let missing = find_program("no-such-program", "/bin:/usr/bin").unwrap_err();
        assert_eq!(missing, "exec: \"no-such-program\": executable file not found in $PATH");
        assert!(find_program("sh", "/bin:/usr/bin").is_ok());
        assert!(find_program("/bin/sh", "").is_ok());
        assert!(find_program("/etc/passwd", "").unwrap_err().contains("permission denied"));
        assert!(find_program("/bin", "").unwrap_err().contains("directory"));
        assert!(find_program("/no/where", "").unwrap_err().contains("no such file"));
    }
}
