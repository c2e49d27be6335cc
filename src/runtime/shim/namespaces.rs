//! The namespaces a sandbox holds for its containers.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{IntoRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{ForkResult, Pid, fork, sethostname};

use super::setup::context;
use super::{pause, user_namespace};
use crate::files;
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
    let (pid, pause) = if spec.host_pid {
        (PidNamespace::Host, None)
    } else if spec.share_process_namespace {
        let (pause, namespace) = start_pause()?;
        (PidNamespace::Join(held(namespace)), Some(pause))
    } else {
        (PidNamespace::New, None)
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
    let set = |name: &str, value: &str| files::set(format!("/proc/sys/{}", name.replace('.', "/")), value);
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

/// Keeps a namespace as long as the shim lives. Its name is good in what the shim forks, even once that has joined the
/// user namespace and may not look at the shim itself any more.
pub fn held(namespace: File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", namespace.into_raw_fd()))
}

/// Starts the first process of a PID namespace shared by the pod's containers.
fn start_pause() -> Result<(Pid, File), String> {
    let own = File::open("/proc/self/ns/pid").map_err(context("opening the PID namespace"))?;
    unshare(CloneFlags::CLONE_NEWPID).map_err(context("creating the pod's PID namespace"))?;
    let started = pause::start(|| {
        // SAFETY: the shim has a single thread, so the child may go on as an ordinary process.
        Ok(match unsafe { fork() }? {
            ForkResult::Child => None,
            ForkResult::Parent { child } => Some(child),
        })
    });
    let made = File::open("/proc/self/ns/pid_for_children");
    setns(&own, CloneFlags::CLONE_NEWPID).map_err(context("leaving the pod's PID namespace"))?;
    Ok((started?, made.map_err(context("opening the pod's PID namespace"))?))
}
