//! Disks that may be written over as a whole, and those that may not.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

nix::ioctl_none!(
    /// `BLKFLSBUF`.
    flush_buffers, 0x12, 97
);
nix::ioctl_none!(
    /// `BLKRRPART`.
    reread_partitions, 0x12, 95
);

/// A disk, or a file that stands for one.
#[derive(Debug)]
pub struct Disk {
    /// Its device.
    path: PathBuf,
    /// Its size in bytes; unlimited for a file.
    pub size: u64,
    /// What it calls itself.
    model: String,
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if self.size == u64::MAX {
            return Ok(());
        }
        write!(f, " ({:.1} GB{}{})", self.size as f64 / 1e9, if self.model.is_empty() { "" } else { ", " }, self.model)
    }
}

impl Disk {
    /// The disk of `path`; an error when it is part of one, or is used.
    pub fn of(path: &Path, block: bool) -> Result<Self, String> {
        if !block {
            return Ok(Self { path: path.to_owned(), size: u64::MAX, model: String::new() });
        }
        let failed = |e: io::Error| format!("{}: {e}", path.display());
        let device = fs::metadata(path).map_err(failed)?.rdev();
        let number = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
        let sys = fs::canonicalize(format!("/sys/dev/block/{number}")).map_err(failed)?;
        if sys.join("partition").exists() {
            let whole = sys.parent().and_then(Path::file_name).unwrap_or_default().display().to_string();
            return Err(format!("{} is a part of a disk: the image goes to the whole, /dev/{whole}", path.display()));
        }
        let text = |name: &str| fs::read_to_string(sys.join(name)).unwrap_or_default().trim().to_owned();
        if let Some(user) = user(&sys) {
            return Err(format!("{} is in use ({user}): it is not written over", path.display()));
        }
        if text("ro") == "1" {
            return Err(format!("{} is write-protected: move the card's switch", path.display()));
        }
        let sectors: u64 = text("size").parse().unwrap_or(0);
        if sectors == 0 {
            return Err(format!("{} has no card in it", path.display()));
        }
        Ok(Self { path: path.to_owned(), size: sectors * 512, model: text("device/model") })
    }
}

/// Who uses a disk, or a part of it: a mount, swap space, another device made of it.
fn user(sys: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let parts = fs::read_dir(sys).into_iter().flatten().flatten().map(|e| e.path());
    let parts = parts.filter(|p| p.join("partition").exists());
    [sys.to_owned()].into_iter().chain(parts).find_map(|part| used(&part, &mounts, &swaps))
}

fn used(part: &Path, mounts: &str, swaps: &str) -> Option<String> {
    let number = fs::read_to_string(part.join("dev")).unwrap_or_default();
    let name = part.file_name().unwrap_or_default().display().to_string();
    if let Some(place) = mounted(mounts, number.trim()) {
        return Some(format!("{name} is mounted on {place}"));
    }
    if swaps.lines().any(|l| l.split_whitespace().next() == Some(&format!("/dev/{name}"))) {
        return Some(format!("{name} is swap space"));
    }
    let mut holders = fs::read_dir(part.join("holders")).into_iter().flatten().flatten();
    holders.next().map(|holder| format!("{} is made of {name}", holder.file_name().display()))
}

/// Where a device, by its number, is mounted.
fn mounted<'a>(mountinfo: &'a str, number: &str) -> Option<&'a str> {
    let mut mounts = mountinfo.lines().map(|l| l.split(' ').collect::<Vec<_>>());
    mounts.find(|m| m.get(2) == Some(&number)).and_then(|m| m.get(4).copied())
}

/// Forgets what the kernel keeps of the disk, so that it is read anew.
pub fn forget(device: &File) -> io::Result<()> {
    // SAFETY: neither has an argument that is read or written.
    let flushed = unsafe { flush_buffers(device.as_raw_fd()) };
    match flushed {
        // a file
        Err(nix::errno::Errno::ENOTTY | nix::errno::Errno::EINVAL) => {
            nix::fcntl::posix_fadvise(device, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
            Ok(())
        }
        other => Ok(other.map(drop)?),
    }
}

/// Lets the kernel see the new partitions of a disk.
pub fn reread(device: &File, block: bool) {
    if block {
        // SAFETY: it has no argument. One that cannot be read again now is so when the card is put in again.
        let _ = unsafe { reread_partitions(device.as_raw_fd()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_number() {
        let mounts = "22 1 8:2 / / rw - ext4 /dev/sda2 rw\n30 22 8:17 / /media/card rw - vfat /dev/sdb1 rw\n";
        assert_eq!(mounted(mounts, "8:17"), Some("/media/card"));
        assert_eq!(mounted(mounts, "8:1"), None);
    }

    #[test]
    fn the_system_s_own_disk_is_refused() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let root = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>()).find(|m| m[4] == "/").unwrap();
        // an overlay, as in a container, has no disk
        let Ok(sys) = fs::canonicalize(format!("/sys/dev/block/{}", root[2])) else { return };
        let device = Path::new("/dev").join(sys.file_name().unwrap());
        let error = Disk::of(&device, true).unwrap_err();
        assert!(error.contains("is in use") || error.contains("part of a disk"), "{error}");
    }
}
