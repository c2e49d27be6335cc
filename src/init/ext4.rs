//! The data partition's file system: looked at, mended, grown.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use super::{Failure, console};

/// Where the superblock is, in bytes.
const SUPERBLOCK: u64 = 1024;
/// `EXT4_ERROR_FS` of `s_state`.
const ERRORS: u16 = 2;
/// Exit codes of e2fsck(8) from which on errors are left.
const UNMENDED: i32 = 4;
const E2FSCK: &str = "/sbin/e2fsck";

nix::ioctl_write_ptr!(resize, b'f', 16, u64);

/// What the superblock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Size in blocks.
    pub blocks: u64,
    /// Bytes of a block.
    pub block_size: u64,
    /// The kernel found errors in it.
    pub has_errors: bool,
    /// When it was last written, in seconds since 1970.
    pub written: u64,
}

impl Superblock {
    /// The superblock of a device; the error says when that holds no such file system.
    pub fn read(device: &Path) -> Result<Self, Failure> {
        let mut bytes = [0; 1024];
        let mut file = File::open(device).map_err(|e| format!("opening {}: {e}", device.display()))?;
        file.seek(SeekFrom::Start(SUPERBLOCK))?;
        file.read_exact(&mut bytes).map_err(|e| format!("reading {}: {e}", device.display()))?;
        Self::parse(&bytes).ok_or_else(|| format!("{}: no ext4 file system is there", device.display()).into())
    }

    fn parse(bytes: &[u8; 1024]) -> Option<Self> {
        let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let long = |at: usize| u64::from(u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
        let size = long(0x18);
        (short(0x38) == 0xef53 && size <= 6).then(|| Self {
            blocks: long(0x4) | long(0x150) << 32,
            block_size: 1024 << size,
            has_errors: short(0x3a) & ERRORS != 0,
            written: long(0x30) | u64::from(bytes[0x274]) << 32,
        })
    }
}

/// Checks and mends a file system in which the kernel met errors. What a power cut leaves is the journal's business, at
/// the mount.
pub fn mend(device: &Path) -> Result<(), Failure> {
    if !Superblock::read(device)?.has_errors {
        return Ok(());
    }
    console::say("pikelet: the card's data partition has errors: mending it");
    let ended = Command::new(E2FSCK).args(["-f", "-y"]).arg(device).status();
    match ended.map_err(|e| format!("starting {E2FSCK}: {e}"))?.code().unwrap_or(UNMENDED) {
        ..UNMENDED => Ok(()),
        code => Err(format!("{}: e2fsck could not mend it ({code}): write the card anew", device.display()).into()),
    }
}

/// Lets the mounted file system fill its partition; its new size in bytes if that changed.
pub fn grow(mounted: &Path, device: &Path) -> Result<Option<u64>, Failure> {
    let name = device.file_name().unwrap_or_default();
    let sectors = fs::read_to_string(Path::new("/sys/class/block").join(name).join("size"))?;
    let superblock = Superblock::read(device)?;
    let wanted = sectors.trim().parse::<u64>()? * super::mbr::SECTOR / superblock.block_size;
    if wanted <= superblock.blocks {
        return Ok(None);
    }
    let dir = File::open(mounted)?;
    // SAFETY: the kernel reads one number, the new size in blocks.
    unsafe { resize(dir.as_raw_fd(), &raw const wanted) }
        .map_err(|e| format!("growing {} to {wanted} blocks: {e}", device.display()))?;
    Ok(Some(wanted * superblock.block_size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_is_read() {
        let mut bytes = [0; 1024];
        assert_eq!(Superblock::parse(&bytes), None);
        bytes[0x38..0x3a].copy_from_slice(&0xef53_u16.to_le_bytes());
        bytes[0x4..0x8].copy_from_slice(&8192_u32.to_le_bytes());
        bytes[0x18] = 2;
        bytes[0x30..0x34].copy_from_slice(&1_700_000_000_u32.to_le_bytes());
        bytes[0x3a] = 3;
        // s_wtime_hi, and s_mtime_hi beside it
        (bytes[0x274], bytes[0x275]) = (1, 7);
        let written = 1_700_000_000 | 1 << 32;
        let expected = Superblock { blocks: 8192, block_size: 4096, has_errors: true, written };
        assert_eq!(Superblock::parse(&bytes), Some(expected));
        bytes[0x18] = 40;
        assert_eq!(Superblock::parse(&bytes), None);
    }
}
