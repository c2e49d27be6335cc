//! cgroups-rs as the runtime uses it: limits ([`super::limits`]), freezing ([`super::freezer`]), moves and figures
//! ([`super::usage`]) are its controllers', each of a folder that [`super::cgroup`] has found. What it cannot do stays ours,
//! with the reason beside it; `cross/cgroups-rs.patch` is what upstream would take of that.

use std::error::Error as _;
use std::io::{self, ErrorKind};
use std::path::Path;

use cgroups_rs::fs::Controller;
use cgroups_rs::fs::error::Error;
use cgroups_rs::fs::systemd::SystemdController;

/// Where a controller would find its root: of use only to a cgroup it makes itself.
pub const BASE: &str = "/";

/// Moves the calling process to the cgroup `dir`, of whatever hierarchy.
pub fn join(dir: &Path) -> io::Result<()> {
    // it has nothing but processes, and 0 stands for whoever writes it
    let any = SystemdController::new(dir.to_owned(), BASE.into(), false);
    done(any.add_task_by_tgid(&0_u64.into()), &dir.join("cgroup.procs"))
}

/// What the system said of `file`, which cgroups-rs has among its causes.
pub fn done<T>(result: Result<T, Error>, file: &Path) -> io::Result<T> {
    result.map_err(|error| {
        let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        match cause.and_then(io::Error::raw_os_error) {
            // it opens a file as one to be made, which cgroups refuse as if it were a matter of rights
            Some(nix::libc::EACCES | nix::libc::EPERM) if !file.exists() => ErrorKind::NotFound.into(),
            Some(number) => io::Error::from_raw_os_error(number),
            None => io::Error::other(error.to_string()),
        }
    })
}

#[cfg(test)]
mod tests {
    use cgroups_rs::fs::pid::PidController;

    use super::*;
    use crate::machine::folder::Folder;

    #[test]
    fn errors_are_those_of_the_system() {
        let folder = Folder::new();
        let gone = folder.path().join("gone");
        let error = join(&gone).unwrap_err();
        assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::NotFound, Some(nix::libc::ENOENT)));
        std::fs::create_dir_all(gone.join("cgroup.procs")).unwrap();
        assert_eq!(join(&gone).unwrap_err().raw_os_error(), Some(nix::libc::EISDIR));
        std::fs::write(folder.path().join("pids.current"), "many").unwrap();
        let pids = PidController::new(folder.path().to_owned(), BASE.into(), true);
        let error = done(pids.get_pid_current(), &folder.path().join("pids.current")).unwrap_err();
        assert!(error.to_string().contains("parse"), "{error}");
    }

    #[test]
    fn a_file_the_kernel_does_not_have_is_not_found() {
        // no cgroup of either version has such a file, and none can be made
        let Some(dir) = crate::runtime::Hierarchies::detect().ok().and_then(|h| h.dirs("/").next()) else { return };
        let pids = PidController::new(dir.clone(), BASE.into(), true);
        let result = pids.set_pid_max(cgroups_rs::fs::MaxValue::Max);
        let error = done(result, &dir.join("pids.max")).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ReadOnlyFilesystem), "{error}");
    }

    #[test]
    fn a_process_joins() {
        let folder = Folder::new();
        std::fs::write(folder.path().join("cgroup.procs"), "").unwrap();
        join(folder.path()).unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join("cgroup.procs")).unwrap(), "0");
    }
}
