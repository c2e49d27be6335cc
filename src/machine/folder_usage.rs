//! What a folder has on disk, however wide and deep whoever fills it makes it.

// numbers of stat(2) have other types on 32-bit boards
#![allow(clippy::unnecessary_cast)]

use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};

use crate::files::Walk;

/// Size of a block of `stat(2)` in bytes.
const BLOCK: u64 = 512;
/// Bytes that folders nested deeper than anybody looks count for: nothing is hidden from a limit there.
const TOO_MUCH: u64 = 1 << 50;

/// Bytes and inodes below `path`, on its own mount only.
pub fn disk_usage(path: &Path) -> (u64, u64) {
    let Ok(found) = fstatat(AT_FDCWD, path, AtFlags::AT_SYMLINK_NOFOLLOW) else { return (0, 0) };
    let mut used = (blocks(&found), 1);
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let Ok(mut walk) = open(path, flags, Mode::empty()).and_then(Walk::new) else { return used };
    while let Some(name) = walk.next_name() {
        // what cannot be read is left out
        let (Ok(name), Some(folder)) = (name, walk.folder()) else { continue };
        let Ok(found) = fstatat(folder, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
        // a file with several names counts once for each: seldom, and cheaper than to remember them all
        used.0 += blocks(&found);
        used.1 += 1;
        if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
            // what is gone meanwhile, or another mount, is left out
            if let Err(Errno::ENAMETOOLONG) = walk.enter(&name) {
                return (TOO_MUCH, used.1);
            }
        }
    }
    used
}

fn blocks(found: &FileStat) -> u64 {
    found.st_blocks as u64 * BLOCK
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::fcntl::openat;

    use super::*;
    use crate::machine::folder::{Folder, growth};

    #[test]
    fn nothing_is_too_deep_to_be_counted() {
        let folder = Folder::new();
        let (wide, name) = (folder.path().join("wide"), "d".repeat(200));
        fs::create_dir(&wide).unwrap();
        for i in 0..100 {
            fs::write(wide.join(i.to_string()), "").unwrap();
        }
        std::os::unix::fs::symlink("/", wide.join("link")).unwrap();
        assert_eq!(disk_usage(&wide).1, 102);
        assert_eq!(disk_usage(&wide.join("link")).1, 1);
        assert_eq!(disk_usage(&wide.join("none")), (0, 0));
        // deeper than any path, with a sibling to come back to at each level
        let mut at = open(folder.path(), OFlag::O_PATH, Mode::empty()).unwrap();
        for _ in 0..200 {
            for name in [name.as_str(), "side"] {
                nix::sys::stat::mkdirat(&at, name, Mode::S_IRWXU).unwrap();
            }
            at = openat(&at, name.as_str(), OFlag::O_PATH, Mode::empty()).unwrap();
        }
        let flags = OFlag::O_CREAT | OFlag::O_WRONLY;
        let file = openat(&at, "big", flags, Mode::S_IRWXU).unwrap();
        std::io::Write::write_all(&mut fs::File::from(file), &[1; 1 << 20]).unwrap();
        let (bytes, inodes) = disk_usage(folder.path());
        assert!(bytes >= 1 << 20, "{bytes}");
        assert_eq!(inodes, 1 + 102 + 400 + 1);
        for _ in 0..900 {
            nix::sys::stat::mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            at = openat(&at, "d", OFlag::O_PATH, Mode::empty()).unwrap();
        }
        assert_eq!(disk_usage(folder.path()).0, TOO_MUCH);
        crate::files::remove_tree(&folder.path().join(name)).unwrap();
    }

    #[test]
    fn wide_folders_take_no_memory() {
        let test = "machine::folder_usage::tests::wide_folders_take_no_memory";
        let grown = growth(test, |folder| assert!(disk_usage(folder).1 > 10));
        assert!(grown.is_none_or(|kib| kib < 256), "{grown:?} KiB");
    }
}
