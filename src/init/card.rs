//! The card the board was started from: found by the identifier in its partition table, and grown into.
#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Failure, mbr};

/// How soon one looks again.
const AGAIN: Duration = Duration::from_millis(100);
/// `BLKPG_RESIZE_PARTITION` of `linux/blkpg.h`.
const RESIZE_PARTITION: i32 = 3;

/// `struct blkpg_partition`.
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: i32,
    devname: [u8; 64],
    volname: [u8; 64],
}

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct BlkpgArg {
    op: i32,
    flags: i32,
    datalen: i32,
    data: *mut BlkpgPartition,
}

nix::ioctl_write_ptr_bad!(blkpg, nix::request_code_none!(0x12, 105), BlkpgArg);

/// A card with one of the images on it.
#[derive(Debug)]
pub struct Card {
    /// The whole of it.
    pub disk: PathBuf,
    /// Its FAT partition.
    pub boot: PathBuf,
    /// Its partition with the root of Debian's system; the appliance has none.
    pub system: Option<PathBuf>,
    /// Its data partition, which is the last one.
    pub data: PathBuf,
    /// The number of that.
    last: usize,
    /// Its size in sectors.
    sectors: u64,
}

/// What the command line of a system among two has, and Debian's has not.
const SET: &str = "pikelet.set=";

/// The identifier the kernel's command line asks for.
pub fn wanted(cmdline: &str) -> Result<String, Failure> {
    let word = cmdline.split_whitespace().find_map(|w| w.strip_prefix("pikelet.disk="));
    word.map(str::to_lowercase).ok_or_else(|| "cmdline.txt of the card lacks pikelet.disk=<identifier>".into())
}

/// Looks for the card that the kernel's command line names until it is there, at most for so long.
pub fn find(cmdline: &str, limit: Duration) -> Result<Card, Failure> {
    let (identifier, debian) = (&wanted(cmdline)?, !is_appliance(cmdline));
    let since = Instant::now();
    loop {
        if let Some(card) = disks().into_iter().find_map(|disk| of(&disk, identifier, debian)) {
            return Ok(card);
        }
        if since.elapsed() >= limit {
            let names: Vec<_> = disks().iter().map(|d| d.display().to_string()).collect();
            let seen = if names.is_empty() { "no disk at all".to_owned() } else { names.join(", ") };
            return Err(
                format!("no card with identifier {identifier} in {} s: there is {seen}", limit.as_secs()).into()
            );
        }
        std::thread::sleep(AGAIN);
    }
}

/// Disks, cards first.
fn disks() -> Vec<PathBuf> {
    let entries = fs::read_dir("/sys/class/block").into_iter().flatten().flatten();
    let whole = entries.filter(|e| !e.path().join("partition").exists()).map(|e| e.file_name());
    let mut names: Vec<String> = whole.filter_map(|n| n.into_string().ok()).collect();
    names.retain(|n| !n.starts_with("loop") && !n.starts_with("ram"));
    names.sort_by_key(|n| (!n.starts_with("mmcblk"), n.clone()));
    names.into_iter().map(|n| Path::new("/dev").join(n)).collect()
}

fn of(disk: &Path, identifier: &str, debian: bool) -> Option<Card> {
    let sector = read(disk).ok()?;
    let found = format!("{:08x}", mbr::identifier(&sector)?);
    if found != identifier {
        return None;
    }
    let name = disk.file_name()?.to_str()?;
    let sys = Path::new("/sys/class/block").join(name);
    let sectors = fs::read_to_string(sys.join("size")).ok()?.trim().parse().ok()?;
    let partition = |number: usize| {
        // mmcblk0p1, but sda1
        let between = if name.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
        Some(Path::new("/dev").join(format!("{name}{between}{number}"))).filter(|p| p.exists())
    };
    let last = if debian { 3 } else { 2 };
    let system = if last == 3 { Some(partition(2)?) } else { None };
    Some(Card { disk: disk.to_owned(), boot: partition(1)?, system, data: partition(last)?, last, sectors })
}

/// Whether the appliance was started. A third partition on the card says nothing: a person may have added it.
fn is_appliance(cmdline: &str) -> bool {
    cmdline.split_whitespace().any(|word| word.starts_with(SET))
}

/// True for the table of an image that has Debian's system on it.
pub fn has_system(sector: &mbr::Sector) -> bool {
    mbr::partition(sector, 3).is_some()
}

fn read(disk: &Path) -> io::Result<mbr::Sector> {
    let mut sector = [0; mbr::SECTOR as usize];
    File::open(disk)?.read_exact(&mut sector)?;
    Ok(sector)
}

impl Card {
    /// Lets the data partition reach to the end of the card, in its table and in the kernel. Repeatable: a power cut
    /// leaves the old table or the new one.
    pub fn grow(&self) -> io::Result<()> {
        let Some(sector) = mbr::grown(&read(&self.disk)?, self.last, self.sectors) else { return Ok(()) };
        let mut disk = OpenOptions::new().write(true).open(&self.disk)?;
        disk.seek(SeekFrom::Start(0))?;
        disk.write_all(&sector)?;
        disk.sync_all()?;
        let Some(partition) = mbr::partition(&sector, self.last) else { return Ok(()) };
        let bytes = |sectors: u32| i64::from(sectors) * mbr::SECTOR as i64;
        let mut data = BlkpgPartition {
            start: bytes(partition.start),
            length: bytes(partition.sectors),
            number: i32::try_from(self.last).map_err(io::Error::other)?,
            devname: [0; 64],
            volname: [0; 64],
        };
        let datalen = i32::try_from(size_of::<BlkpgPartition>()).map_err(io::Error::other)?;
        let arg = BlkpgArg { op: RESIZE_PARTITION, flags: 0, datalen, data: &raw mut data };
        // SAFETY: the descriptor is open, and the structures, as linux/blkpg.h has them, live until the call returns.
        unsafe { blkpg(disk.as_raw_fd(), &raw const arg) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_names_the_card() {
        assert_eq!(wanted("quiet pikelet.disk=70696B65 x").unwrap(), "70696b65");
        assert!(
            is_appliance("quiet pikelet.disk=70696b65 pikelet.set=b") && !is_appliance("pikelet.disk=70696b65 quiet")
        );
        assert!(wanted("quiet").unwrap_err().to_string().contains("pikelet.disk="));
    }
}
