//! Where the agent's data will lie: its file system, room, inodes, overlayfs on it; and swap.

use std::path::{Path, PathBuf};

use nix::sys::statfs::statfs;
use nix::unistd::{AccessFlags, access};

use super::kernel::Kernel;
use super::{Finding, bytes, read};
use crate::image::probe_mount;
use crate::machine::usage::{FileSystem, file_system};

/// Images need some room: less than this and hardly one fits, in bytes.
const LEAST_ROOM: u64 = 256 << 20;
/// Room a node should have, in bytes.
const GOOD_ROOM: u64 = 2 << 30;
/// Kubernetes' own marks for evicting pods: free room and inodes in per cent.
const FREE_ROOM: u64 = 15;
const FREE_INODES: u64 = 5;

/// File systems by their numbers (statfs(2), `linux/magic.h`), and why images cannot lie on some.
const KINDS: [(u64, &str, Option<&str>); 18] = [
    (0xef53, "ext4", None),
    (0x5846_5342, "xfs", None),
    (0x9123_683e, "btrfs", None),
    (0xf2f5_2010, "f2fs", None),
    (0xca45_1a4e, "bcachefs", None),
    (0x2fc1_2fc1, "zfs", None),
    (0x0102_1994, "tmpfs", None),
    (0x4d44, "vfat", Some("it has no owners, permissions or links")),
    (0x2011_bab0, "exfat", Some("it has no owners, permissions or links")),
    (0x7366_746e, "ntfs", Some("it has no owners or permissions")),
    (0x5346_544e, "ntfs", Some("it has no owners or permissions")),
    (0x6969, "nfs", Some("overlayfs cannot write to it")),
    (0xff53_4d42, "cifs", Some("overlayfs cannot write to it")),
    (0xfe53_4d42, "smb2", Some("overlayfs cannot write to it")),
    (0x0102_1997, "9p", Some("overlayfs cannot write to it")),
    (0x794c_7630, "overlay", Some("overlayfs cannot write to another overlayfs")),
    (0x7371_7368, "squashfs", Some("it is read-only")),
    (0xe0f5_e1e2, "erofs", Some("it is read-only")),
];

fn kind(magic: u64, dir: &Path) -> Finding {
    let check = "file system";
    let found = KINDS.iter().find(|(number, ..)| *number == magic);
    let mend = "put --root-dir on a disk or card with ext4";
    match found {
        Some((_, "tmpfs", _)) => {
            Finding::warning(check, "tmpfs: images are pulled again after each boot, and take memory", mend)
        }
        Some((_, name, None)) => Finding::ok(check, format!("{name} ({})", dir.display())),
        Some((_, name, Some(why))) => Finding::missing(check, format!("{name} ({}): {why}", dir.display()), mend),
        None => Finding::ok(check, format!("kind {magic:#x} ({})", dir.display())),
    }
}

fn room(fs: FileSystem) -> Finding {
    let check = "disk space";
    let share = fs.available * 100 / fs.capacity.max(1);
    let found = format!("{} free of {} ({share} %)", bytes(fs.available), bytes(fs.capacity));
    if fs.available < LEAST_ROOM {
        Finding::missing(
            check,
            found,
            format!("free {} at least, or set --root-dir to a larger disk", bytes(GOOD_ROOM)),
        )
    } else if share < FREE_ROOM || fs.available < GOOD_ROOM {
        Finding::warning(check, found, format!("keep {FREE_ROOM} % and {} free for images", bytes(GOOD_ROOM)))
    } else {
        Finding::ok(check, found)
    }
}

fn inodes(fs: FileSystem) -> Finding {
    let check = "inodes";
    if fs.inodes == 0 {
        return Finding::ok(check, "made as they are needed");
    }
    let share = fs.inodes_free * 100 / fs.inodes;
    let found = format!("{} free of {} ({share} %)", fs.inodes_free, fs.inodes);
    let mend = "remove small files, or make the file system anew with more inodes";
    match fs.inodes_free {
        0 => Finding::missing(check, found, mend),
        _ if share < FREE_INODES => Finding::warning(check, found, mend),
        _ => Finding::ok(check, found),
    }
}

/// The deepest folder on the way to `dir` that exists.
fn existing(dir: &Path) -> PathBuf {
    dir.ancestors().find(|d| d.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn overlay(dir: &Path, root: bool, kernel: &Kernel) -> Finding {
    let check = "overlayfs";
    let writable = access(dir, AccessFlags::W_OK);
    if writable == Err(nix::errno::Errno::EROFS) {
        let mend = "mount it for writing, or set --root-dir to another place";
        return Finding::missing(check, format!("{} is read-only", dir.display()), mend);
    }
    if !root {
        if read("/proc/filesystems").lines().any(|l| l.ends_with("\toverlay")) {
            return Finding::unknown(
                check,
                format!("in the kernel; whether it works on {} is not known", dir.display()),
            );
        }
        return kernel.finding(check, "OVERLAY_FS", "overlay", None);
    }
    match probe_mount(&dir.join(format!(".pikelet-check-{}", std::process::id()))) {
        Ok(()) => Finding::ok(check, format!("works on {}", dir.display())),
        Err(error) => {
            let there = read("/proc/filesystems").lines().any(|l| l.ends_with("\toverlay"));
            let mend = if there {
                "put --root-dir on a disk or card with ext4".to_owned()
            } else {
                kernel.mend("OVERLAY_FS", "overlay")
            };
            Finding::missing(check, error.to_string(), mend)
        }
    }
}

/// `swaps`: `/proc/swaps`.
fn swap(swaps: &str) -> Finding {
    let mut names = swaps.lines().skip(1).filter_map(|l| l.split_whitespace().next());
    let on_disk: Vec<&str> = names.by_ref().filter(|n| !n.starts_with("/dev/zram")).collect();
    if swaps.lines().count() < 2 {
        return Finding::ok("swap", "none");
    }
    if on_disk.is_empty() {
        return Finding::ok("swap", "in compressed memory (zram)");
    }
    Finding::warning(
        "swap",
        format!("on {}: it wears out a card, and pods can take more than their limit", on_disk.join(", ")),
        "swapoff -a, and take it out of /etc/fstab (on Raspberry Pi OS: systemctl disable --now dphys-swapfile)",
    )
}

/// Disk and swap.
pub fn check(root_dir: &Path, root: bool, kernel: &Kernel) -> Vec<Finding> {
    let dir = existing(root_dir);
    let mut findings = Vec::new();
    // the type of the number differs between architectures
    #[allow(clippy::unnecessary_cast, clippy::cast_lossless)]
    findings.extend(statfs(&dir).ok().map(|s| kind(s.filesystem_type().0 as u32 as u64, &dir)));
    if let Some(fs) = file_system(&dir) {
        findings.extend([room(fs), inodes(fs)]);
    }
    findings.extend([overlay(&dir, root, kernel), swap(&read("/proc/swaps"))]);
    findings
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn file_systems_images_cannot_lie_on() {
        let state = |magic| kind(magic, Path::new("/")).state;
        assert_eq!([0xef53, 0x4d44, 0x6969, 0x0102_1994].map(state), {
            [State::Ok, State::Missing, State::Missing, State::Warning]
        });
    }

    #[test]
    fn room_and_inodes() {
        let fs = FileSystem { capacity: 32 << 30, available: 10 << 30, inodes: 1000, inodes_free: 500, used: 0 };
        assert_eq!((room(fs).state, inodes(fs).state), (State::Ok, State::Ok));
        let low = FileSystem { available: 4 << 30, inodes_free: 49, ..fs };
        assert_eq!((room(low).state, inodes(low).state), (State::Warning, State::Warning));
        let none = FileSystem { available: 1 << 20, inodes_free: 0, ..fs };
        assert_eq!((room(none).state, inodes(none).state), (State::Missing, State::Missing));
        assert_eq!(inodes(FileSystem { inodes: 0, ..none }).state, State::Ok);
    }

    #[test]
    fn swap_in_memory_wears_out_nothing() {
        let head = "Filename\tType\tSize\tUsed\tPriority\n";
        assert_eq!(swap(head).state, State::Ok);
        assert_eq!(swap(&format!("{head}/dev/zram0 partition 1 0 100\n")).state, State::Ok);
        let both = swap(&format!("{head}/dev/zram0 partition 1 0 100\n/var/swap file 102396 0 -2\n"));
        assert!(both.state == State::Warning && both.found.contains("/var/swap") && !both.found.contains("zram"));
    }
}
