//! The last steps of a container's first process, in the container, before its program.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libcontainer::capabilities::drop_privileges;
use libcontainer::oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, Spec};
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::default::get_executor;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};

use crate::errors::causes;

/// Checks and starts the program as container engines do.
#[derive(Clone, Default)]
pub struct ProgramExecutor {
    /// What libcontainer does for a container's first process and not for those that come later.
    pub confinement: Option<Confinement>,
}

/// The seccomp filter of another process in a container.
#[derive(Clone)]
pub struct Confinement {
    /// The container's.
    pub filter: LinuxSeccomp,
    /// Capabilities to keep once it is loaded; `None` where it can be loaded without any, under `no_new_privs`.
    pub capabilities: Option<LinuxCapabilities>,
}

impl Confinement {
    fn apply(&self) -> Result<(), ExecutorError> {
        let failed =
            |e: &dyn std::error::Error| ExecutorError::Other(format!("loading the seccomp filter: {}", causes(e)));
        initialize_seccomp(&self.filter).map_err(|e| failed(&e))?;
        match &self.capabilities {
            Some(kept) => drop_privileges(kept, &*create_syscall()).map_err(|e| failed(&e)),
            None => Ok(()),
        }
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
            confinement.apply()?;
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
