//! Files of the kernel that tell when they change, so that nobody has to look again and again.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A file of the kernel that tells when it changes (`sysfs_notify`).
pub struct Notifying(AsyncFd<File>);

impl Notifying {
    /// `None` when there is no such file, or it is one that does not tell.
    pub fn open(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        // SAFETY: the descriptor is the file's own, which is owned by what is made of it, and stays open as long.
        let registered = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
        let notifying = Self(registered.ok()?);
        notifying.arm();
        Some(notifying)
    }

    /// What was read counts as known.
    fn arm(&self) {
        // what it says is read by whoever was woken
        let _ = self.0.get_ref().read_at(&mut [0; 64], 0);
    }

    /// Waits for the next change; for ever when the kernel does not tell any more.
    pub async fn changed(&self) {
        match self.0.ready(Interest::PRIORITY).await {
            Ok(mut ready) => {
                ready.clear_ready();
                self.arm();
            }
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    /// A cgroup's `cgroup.events` notifies in the same way as the sensor, and is at hand on any machine.
    #[tokio::test]
    async fn a_notifying_file_wakes() {
        let unified = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let Some(top) = unified.into_iter().find(|d| d.join("cgroup.controllers").exists()) else { return };
        let group = top.join(format!("pikelet-notify-{}", std::process::id()));
        if fs::create_dir(&group).is_err() {
            return eprintln!("skipped: needs root");
        }
        let file = Notifying::open(&group.join("cgroup.events")).unwrap();
        let wait = Duration::from_secs(5);
        assert!(tokio::time::timeout(Duration::from_millis(200), file.changed()).await.is_err(), "nothing changed yet");
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
        let first = tokio::time::timeout(wait, file.changed()).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let second = tokio::time::timeout(wait, file.changed()).await;
        fs::remove_dir(&group).unwrap();
        assert!(first.is_ok() && second.is_ok());
        assert!(Notifying::open(Path::new("/etc/hostname")).is_none(), "ordinary files tell nothing");
    }
}
