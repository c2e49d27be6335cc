//! Disks that may be written over as a whole, and those that may not.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

nix::ioctl_none!(
    /// `BLKFLSBUF`.
    flush_buffers, 0x12, 97
);
nix::ioctl_none!(
    /// `BLKRRPART`.
    reread_partitions, 0x12, 95
);

/// A disk, or a file that stands for one. Two are equal when they are the same one, with the same card in it.
#[derive(Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its device.
    path: PathBuf,
    /// Which device or file that is: of a device its number, of a file that of its file system and its own.
    identity: (u64, u64),
    /// Its size in bytes; unlimited for a file.
    pub size: u64,
    /// What it calls itself.
    model: String,
    /// Counts the media that were in it, where the kernel does.
    sequence: String,
    /// Whether it is a card, or hangs on a cable.
    removable: bool,
    /// Its partitions and their sizes in bytes.
    parts: Vec<(String, u64)>,
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if self.size == u64::MAX {
            return Ok(());
        }
        let gigabytes = |size: u64| format!("{:.1} GB", size as f64 / 1e9);
        let model = if self.model.is_empty() { String::new() } else { format!(", {}", self.model) };
        let kind = if self.removable { "removable" } else { "NOT removable: a disk of this machine" };
        let parts: Vec<_> = self.parts.iter().map(|(name, size)| format!("{name} of {}", gigabytes(*size))).collect();
        let parts = if parts.is_empty() { "no partitions".to_owned() } else { parts.join(", ") };
        write!(f, " ({}{model}, {kind}; on it: {parts})", gigabytes(self.size))
    }
}

impl Disk {
    /// The disk that is found by `path`, or was; an error when it is part of one, or is used, or is neither disk nor file.
    pub fn of(path: &Path, found: &fs::Metadata) -> Result<Self, String> {
        if found.is_file() {
            return Ok(Self {
                path: path.to_owned(),
                identity: (found.dev(), found.ino()),
                size: u64::MAX,
                model: String::new(),
                sequence: String::new(),
                removable: true,
                parts: Vec::new(),
            });
        }
        if !found.file_type().is_block_device() {
            return Err(format!("{} is no disk and no file: the card is one such as /dev/sdb", path.display()));
        }
        let failed = |e: io::Error| format!("{}: {e}", path.display());
        let device = found.rdev();
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
        // a card reader's slot, and what hangs on USB, may be pulled out whatever the disk says of itself
        let pulled = sys.components().any(|part| {
            let name = part.as_os_str().to_string_lossy();
            name.starts_with("usb") || name.starts_with("mmc")
        });
        Ok(Self {
            path: path.to_owned(),
            identity: (device, 0),
            size: sectors * 512,
            model: text("device/model"),
            sequence: text("diskseq"),
            removable: pulled || text("removable") == "1",
            parts: parts(&sys),
        })
    }
}

/// Partitions of a disk, in the order of their numbers.
fn parts(sys: &Path) -> Vec<(String, u64)> {
    let entries = fs::read_dir(sys).into_iter().flatten().flatten().map(|entry| entry.path());
    let text = |path: &Path, name: &str| fs::read_to_string(path.join(name)).unwrap_or_default();
    let number = |path: &Path| text(path, "partition").trim().parse::<u32>().ok();
    let mut parts: Vec<(u32, PathBuf)> = entries.filter_map(|path| Some((number(&path)?, path))).collect();
    parts.sort();
    let name = |path: &Path| path.file_name().unwrap_or_default().display().to_string();
    parts.iter().map(|(_, path)| (name(path), text(path, "size").trim().parse().unwrap_or(0) * 512)).collect()
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
pub fn reread(device: &File) {
    // SAFETY: it has no argument. One that cannot be read again now is so when the card is put in again; a file has none.
    let _ = unsafe { reread_partitions(device.as_raw_fd()) };
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
    fn what_is_no_disk_is_refused_and_a_file_is_known_again() {
        let of = |path: &Path| Disk::of(path, &fs::metadata(path).unwrap());
        for other in ["/dev/null", "/dev"] {
            assert!(of(Path::new(other)).unwrap_err().contains("is no disk"), "{other}");
        }
        let folder = crate::machine::folder::Folder::new();
        let path = folder.path().join("card");
        fs::write(&path, "").unwrap();
        let before = of(&path).unwrap();
        assert_eq!(before, of(&path).unwrap());
        fs::rename(&path, folder.path().join("other")).unwrap();
        fs::write(&path, "").unwrap();
        assert_ne!(before, of(&path).unwrap());
    }

    #[test]
    fn the_system_s_own_disk_is_refused() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let root = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>()).find(|m| m[4] == "/").unwrap();
        // an overlay, as in a container, has no disk
        let Ok(sys) = fs::canonicalize(format!("/sys/dev/block/{}", root[2])) else { return };
        let device = Path::new("/dev").join(sys.file_name().unwrap());
        let error = Disk::of(&device, &fs::metadata(&device).unwrap()).unwrap_err();
        assert!(error.contains("is in use") || error.contains("part of a disk"), "{error}");
    }
}
