//! The namespaces a sandbox holds for its containers.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid, fork, sethostname};

use super::setup::context;
use super::user_namespace;
use crate::runtime::spec::PidNamespace;
use crate::runtime::types::SandboxSpec;

/// What containers join; `None` means the host's.
#[derive(Debug, Clone)]
pub struct Held {
    /// Network namespace.
    pub network: Option<PathBuf>,
    /// IPC namespace.
    pub ipc: Option<PathBuf>,
    /// UTS namespace.
    pub uts: Option<PathBuf>,
    /// User namespace: a descriptor that is open as long as the shim lives.
    pub user: Option<RawFd>,
    /// PID namespace.
    pub pid: PidNamespace,
    /// First process of a shared PID namespace.
    pub pause: Option<Pid>,
}

impl Held {
    /// A name of the user namespace for the shim and what it forks.
    pub fn user_path(&self) -> Option<PathBuf> {
        self.user.map(|fd| PathBuf::from(format!("/proc/self/fd/{fd}")))
    }
}

/// Moves the calling process into the namespaces of `spec`, whose sandbox directory is `dir`.
pub fn enter(spec: &SandboxSpec, dir: &Path) -> Result<Held, String> {
    if let Some(ids) = spec.user_namespace {
        return user_namespace::enter(spec, ids, dir);
    }
    let mut flags = CloneFlags::empty();
    if !spec.host_network {
        flags |= CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
    }
    if !spec.host_ipc {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    unshare(flags).map_err(context("creating the pod's namespaces"))?;
    settle(spec)?;
    let own = |kind: &str, held: bool| held.then(|| PathBuf::from(format!("/proc/{}/ns/{kind}", std::process::id())));
    let pause = if spec.share_process_namespace && !spec.host_pid { Some(start_pause()?) } else { None };
    let pid = match pause {
        Some(pause) => PidNamespace::Join(format!("/proc/{pause}/ns/pid").into()),
        None if spec.host_pid => PidNamespace::Host,
        None => PidNamespace::New,
    };
    Ok(Held {
        network: own("net", !spec.host_network),
        ipc: own("ipc", !spec.host_ipc),
        uts: own("uts", !spec.host_network),
        user: None,
        pid,
        pause,
    })
}

/// What every pod with a network of its own gets, as from other container runtimes: ports below 1024 and ping for all
/// users. Kernels that lack one do without.
const OPEN_NETWORK: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// Host name and sysctls, in the namespaces of the calling process.
pub fn settle(spec: &SandboxSpec) -> Result<(), String> {
    if let Some(name) = spec.hostname.as_ref().filter(|_| !spec.host_network) {
        sethostname(name).map_err(context("setting the pod's host name"))?;
    }
    // names of interfaces have no dots here: the kernel's files lie below directories of the other parts
    let set = |name: &str, value: &str| fs::write(format!("/proc/sys/{}", name.replace('.', "/")), value);
    for (name, value) in OPEN_NETWORK.iter().filter(|_| !spec.host_network) {
        let _ = set(name, value);
    }
    for (name, value) in &spec.sysctls {
        set(name, value).map_err(|e| format!("setting sysctl {name} to {value:?}: {e}"))?;
    }
    Ok(())
}

/// Sends a signal of any number, those for real-time use as well.
pub fn send(process: Pid, signal: i32) -> nix::Result<()> {
    // SAFETY: kill only takes numbers.
    Errno::result(unsafe { nix::libc::kill(process.as_raw(), signal) }).map(drop)
}

/// Starts the first process of a PID namespace shared by the pod's containers.
fn start_pause() -> Result<Pid, String> {
    let own = File::open("/proc/self/ns/pid").map_err(context("opening the PID namespace"))?;
    unshare(CloneFlags::CLONE_NEWPID).map_err(context("creating the pod's PID namespace"))?;
    // SAFETY: the shim has a single thread, so the child may go on as an ordinary process.
    let forked = unsafe { fork() }.map_err(context("starting the pod's first process"))?;
    match forked {
        ForkResult::Child => pause(),
        ForkResult::Parent { child } => {
            setns(&own, CloneFlags::CLONE_NEWPID).map_err(context("leaving the pod's PID namespace"))?;
            Ok(child)
        }
    }
}

/// Reaps orphans until killed, or until the shim is gone.
pub fn pause() -> ! {
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    let ready = children.thread_block().and_then(|()| prctl::set_pdeathsig(Signal::SIGKILL));
    let _ = prctl::set_name(c"pikelet-pause");
    // The agent waits for the end of standard output.
    let ready = ready.and_then(|()| nix::unistd::close(1)).and_then(|()| nix::unistd::close(0));
    while ready.is_ok() && children.wait().is_ok() {
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|s| s.pid().is_some()) {}
    }
    std::process::exit(1)
}
