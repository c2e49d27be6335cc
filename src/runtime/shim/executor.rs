//! The last steps of a container's first process, in the container, before its program.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libcontainer::capabilities::{drop_privileges, reset_effective};
use libcontainer::oci_spec::runtime::{LinuxCapabilities, Spec};
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::default::get_executor;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::unistd::{Gid, Uid, fchown, isatty, setgroups, setresgid, setresuid};
use serde_json::{Value, json};

use super::filter::Filter;
use crate::errors::causes;
use crate::runtime::types::User;

/// Checks and starts the program as container engines do.
#[derive(Clone, Default)]
pub struct ProgramExecutor {
    /// None for a program that may make all system calls.
    pub confinement: Option<Confinement>,
}

/// What libcontainer leaves to do: the seccomp filter, which it would compile for every container and has none of for
/// processes that come later, and the user namespace, which it does not let those join.
#[derive(Clone)]
pub struct Confinement {
    users: Option<PodUser>,
    filter: Option<Filter>,
    /// Capabilities to keep once that is done; `None` where it takes none.
    capabilities: Option<LinuxCapabilities>,
}

/// A user of a pod that has users of its own.
#[derive(Clone)]
pub struct PodUser {
    /// Descriptor of their namespace, which the shim never closes.
    pub namespace: RawFd,
    /// Who of them.
    pub user: User,
    /// The host's id of that one.
    pub owner: u32,
}

impl Confinement {
    /// What is to be done right before the program of `process` (of an OCI configuration); `None` for nothing. Without
    /// `no_new_privs` a filter takes `CAP_SYS_ADMIN`, as does joining a namespace, and dropping it again from the bounding
    /// set `CAP_SETPCAP`: `process` gets both until then, and is of the host's root until it joins.
    pub fn new(filter: Option<Filter>, users: Option<PodUser>, process: &mut Value) -> Result<Option<Self>, String> {
        if users.is_none() && (filter.is_none() || process["noNewPrivileges"] == true) {
            return Ok(filter.map(|filter| Self { users, filter: Some(filter), capabilities: None }));
        }
        let kept = serde_json::from_value(process["capabilities"].clone());
        let kept = kept.map_err(|e| format!("reading the capabilities: {e}"))?;
        for set in ["bounding", "permitted", "effective"] {
            let Some(names) = process["capabilities"][set].as_array_mut() else { continue };
            for name in ["CAP_SETPCAP", "CAP_SYS_ADMIN"] {
                if !names.iter().any(|n| n == name) {
                    names.push(json!(name));
                }
            }
        }
        if users.is_some() {
            process["user"] = json!({ "uid": 0, "gid": 0 });
        }
        Ok(Some(Self { users, filter, capabilities: Some(kept) }))
    }

    fn apply(self) -> Result<(), ExecutorError> {
        let failed = |what: &str, e: &dyn std::error::Error| ExecutorError::Other(format!("{what}: {}", causes(e)));
        if let Some(users) = self.users {
            users.become_one().map_err(|e| failed("joining the pod's user namespace", &e))?;
        }
        if let Some(mut filter) = self.filter {
            filter.load().map_err(|e| failed("loading the seccomp filter", &e))?;
        }
        if let Some(kept) = &self.capabilities {
            drop_privileges(kept, &*create_syscall()).map_err(|e| failed("dropping capabilities", &e))?;
        }
        // another user is to ask for it again
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| failed("setting the parent's death signal", &e))
    }
}

impl PodUser {
    /// The calling process has all capabilities among its own then.
    fn become_one(self) -> std::io::Result<()> {
        let input = std::io::stdin();
        if isatty(&input).unwrap_or(false) {
            fchown(&input, Some(Uid::from_raw(self.owner)), None)?;
        }
        // SAFETY: the shim, which this process was forked from, never closes it.
        let namespace = unsafe { BorrowedFd::borrow_raw(self.namespace) };
        setns(namespace, CloneFlags::CLONE_NEWUSER)?;
        let User { uid, gid, additional_gids } = self.user;
        setgroups(&additional_gids.into_iter().map(Gid::from_raw).collect::<Vec<_>>())?;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        prctl::set_keepcaps(true)?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
        prctl::set_keepcaps(false)?;
        reset_effective(&*create_syscall()).map_err(|e| std::io::Error::other(causes(&e)))
    }
}

impl Executor for ProgramExecutor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let failed = |e: nix::Error| ExecutorError::Other(format!("resetting signals: {e}"));
        // The shim blocks SIGCHLD, ignores SIGPIPE and has inherited more; programs expect none, and it survives exec.
        SigSet::empty().thread_set_mask().map_err(failed)?;
        for other in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
            // SAFETY: the default action runs no code of ours.
            unsafe { signal(other, SigHandler::SigDfl) }.map_err(failed)?;
        }
        if let Some(confinement) = &self.confinement {
            confinement.clone().apply()?;
        }
        get_executor().exec(spec)
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let refused = ExecutorValidationError::ArgValidationError;
        // Nobody else would see this process end, so it must not outlive its shim.
        prctl::set_pdeathsig(Signal::SIGKILL)
            .map_err(|e| refused(format!("setting the parent's death signal: {e}")))?;
        let process = spec.process().as_ref().ok_or_else(|| refused("no process specified".into()))?;
        let program = process.args().as_ref().and_then(|a| a.first()).ok_or_else(|| refused("no command".into()))?;
        let env = process.env().as_deref().unwrap_or_default();
        find_program(program, env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or_default()).map_err(refused)
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        get_executor().setup_envs(envs)
    }
}

fn find_program(program: &str, path: &str) -> Result<(), String> {
    if program.contains('/') {
        return match std::fs::metadata(program) {
            Ok(meta) if meta.is_dir() => Err(format!("exec: {program:?}: is a directory")),
            Ok(meta) if meta.permissions().mode() & 0o111 == 0 => Err(format!("exec: {program:?}: permission denied")),
            Ok(_) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(format!("exec: {program:?}: stat {program}: no such file or directory"))
            }
            Err(e) => Err(format!("exec: {program:?}: {e}")),
        };
    }
    let runnable = |file: PathBuf| file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if path.split(':').any(|dir| runnable(Path::new(dir).join(program))) {
        Ok(())
    } else {
        Err(format!("exec: {program:?}: executable file not found in $PATH"))
    }
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
