//! A folder held by one process at a time.

use std::io;
use std::os::fd::IntoRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_WRLCK, SEEK_SET, flock, pid_t};

use super::MARK;

/// Holds a folder by its mark until this process ends, however it ends; `Err` of the inner: another process has it, with its
/// pid where that can be seen. A record lock, as no child inherits it (fcntl(2)): what was forked may outlive the agent. Any
/// close of the file would end it, so nothing else opens it.
pub fn hold(dir: &Path) -> io::Result<Result<(), Option<pid_t>>> {
    let file = super::keep(&dir.join(MARK), 0o600)?;
    let mut lock = flock { l_type: F_WRLCK as _, l_whence: SEEK_SET as _, l_start: 0, l_len: 0, l_pid: 0 };
    match fcntl(&file, FcntlArg::F_SETLK(&lock)) {
        Ok(_) => {
            let _held = file.into_raw_fd();
            Ok(Ok(()))
        }
        Err(Errno::EAGAIN | Errno::EACCES) => {
            fcntl(&file, FcntlArg::F_GETLK(&mut lock))?;
            Ok(Err(Some(lock.l_pid).filter(|pid| *pid > 0)))
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_folder_that_another_has_is_left_to_it() {
        let dir = std::env::temp_dir().join(format!("pikelet-hold-{}", std::process::id()));
        crate::files::dir(&dir, 0o700).unwrap();
        crate::files::mark(&dir).unwrap();
        // one of an open file counts as that of another, and has no process
        let other = File::options().write(true).open(dir.join(MARK)).unwrap();
        let lock = flock { l_type: F_WRLCK as _, l_whence: SEEK_SET as _, l_start: 0, l_len: 0, l_pid: 0 };
        fcntl(&other, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
        assert_eq!(hold(&dir).unwrap(), Err(None));
        drop(other);
        assert_eq!(hold(&dir).unwrap(), Ok(()));
        // one folder for all there is
        assert_eq!(hold(&dir).unwrap(), Ok(()));
        crate::files::remove_tree(&dir).unwrap();
    }
}
