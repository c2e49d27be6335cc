//! The process-wide state of a shim: session, namespaces, signals, subreaper. The one file of the shim with unsafe calls.
#![allow(unsafe_code)]

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pause, pipe2, sethostname, setsid};

use crate::runtime::types::SandboxSpec;

/// Write end of the pipe that turns SIGCHLD into something to poll.
static CHILD_PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_child(_: i32) {
    let fd = CHILD_PIPE.load(Ordering::Relaxed);
    // SAFETY: write is async-signal-safe; one byte from a live buffer to a non-blocking pipe.
    unsafe { nix::libc::write(fd, [0u8].as_ptr().cast(), 1) };
}

extern "C" fn on_pipe(_: i32) {}

/// Enters the pod's namespaces; returns PID 1 of the shared PID namespace if the pod has one.
pub fn enter(spec: &SandboxSpec) -> Result<Option<i32>, String> {
    // fails when we lead a session already, which is as good
    let _ = setsid();
    let mut flags = CloneFlags::empty();
    if !spec.host_network {
        flags |= CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
    }
    if !spec.host_ipc {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    unshare(flags).map_err(|e| format!("unsharing the pod's namespaces: {e} (is the agent root?)"))?;
    if let Some(name) = spec.hostname.as_ref().filter(|_| !spec.host_network) {
        sethostname(name).map_err(|e| format!("setting the host name to {name:?}: {e}"))?;
    }
    nix::sys::prctl::set_child_subreaper(true).map_err(|e| format!("becoming the pod's subreaper: {e}"))?;
    if spec.share_process_namespace && !spec.host_pid { shared_pid_namespace().map(Some) } else { Ok(None) }
}

/// Starts a process that is PID 1 of a new PID namespace and reaps; returns its pid as seen from here.
fn shared_pid_namespace() -> Result<i32, String> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|e| format!("creating a pipe: {e}"))?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }.map_err(|e| format!("forking: {e}"))? {
        ForkResult::Parent { child } => {
            drop(write);
            let mut pid = [0; 4];
            let got = std::fs::File::from(read).read_exact(&mut pid);
            // the one between has done its work
            let _ = waitpid(child, None);
            got.map(|()| i32::from_le_bytes(pid)).map_err(|e| format!("creating the pod's PID namespace: {e}"))
        }
        ForkResult::Child => {
            let started = unshare(CloneFlags::CLONE_NEWPID).is_ok();
            // SAFETY: this process has one thread.
            match unsafe { fork() } {
                Ok(ForkResult::Parent { child }) if started => {
                    let _ = nix::unistd::write(&write, &child.as_raw().to_le_bytes());
                }
                Ok(ForkResult::Child) if started => reap_forever(),
                _ => {}
            }
            // SAFETY: ends the child at once, running no destructors of the parent's state.
            unsafe { nix::libc::_exit(0) }
        }
    }
}

fn reap_forever() -> ! {
    install(Signal::SIGCHLD, SigHandler::Handler(on_pipe), SaFlags::empty());
    loop {
        while matches!(waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
        {
        }
        pause();
    }
}

fn install(signal: Signal, handler: SigHandler, flags: SaFlags) {
    // SAFETY: the handlers installed here only make async-signal-safe calls.
    let _ = unsafe { sigaction(signal, &SigAction::new(handler, flags, SigSet::empty())) };
}

/// Makes SIGCHLD readable on the returned descriptor. Handlers, unlike masks and ignored signals, are not inherited by
/// the programs of containers.
pub fn child_events() -> Result<OwnedFd, String> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(|e| format!("creating a pipe: {e}"))?;
    CHILD_PIPE.store(write.as_raw_fd(), Ordering::Relaxed);
    // the handler needs it for the life of the process
    std::mem::forget(write);
    install(Signal::SIGCHLD, SigHandler::Handler(on_child), SaFlags::SA_RESTART | SaFlags::SA_NOCLDSTOP);
    install(Signal::SIGPIPE, SigHandler::Handler(on_pipe), SaFlags::SA_RESTART);
    for ignored in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        install(ignored, SigHandler::Handler(on_pipe), SaFlags::SA_RESTART);
    }
    Ok(read)
}

/// Points standard input and output at `/dev/null`, once the agent has been told.
pub fn close_stdio() {
    if let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") {
        for fd in 0..2 {
            // SAFETY: both descriptors are open; dup2 replaces fd atomically.
            unsafe { nix::libc::dup2(null.as_raw_fd(), fd) };
        }
    }
}
