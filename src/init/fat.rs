//! The FAT partition of a card, or of an image of one, that is not mounted.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use super::{Failure, mbr};

/// Writes a file to the FAT partition of a card that has the image on it.
pub fn store(card: &mut File, name: &str, text: &str) -> Result<(), Failure> {
    let mut sector = [0; mbr::SECTOR as usize];
    card.seek(SeekFrom::Start(0))?;
    card.read_exact(&mut sector)?;
    let boot = mbr::partition(&sector, 1).ok_or("the image has no first partition")?;
    let bytes = |sectors: u32| u64::from(sectors) * mbr::SECTOR;
    let system = open(card, bytes(boot.start), bytes(boot.sectors))?;
    let mut file = system.root_dir().create_file(name)?;
    file.truncate()?;
    file.write_all(text.as_bytes())?;
    file.flush()?;
    drop(file);
    Ok(system.unmount()?)
}

/// The FAT file system of so many bytes at `start`.
pub(super) fn open(card: &mut File, start: u64, size: u64) -> Result<fatfs::FileSystem<Part<'_>>, Failure> {
    Ok(fatfs::FileSystem::new(Part { card, start, size, at: 0 }, fatfs::FsOptions::new())?)
}

/// A part of a disk, as a file.
pub(super) struct Part<'a> {
    card: &'a mut File,
    start: u64,
    size: u64,
    at: u64,
}

impl Part<'_> {
    /// Goes to its place; how much of `wanted` is left there.
    fn go(&mut self, wanted: usize) -> io::Result<usize> {
        self.card.seek(SeekFrom::Start(self.start + self.at))?;
        Ok(wanted.min(usize::try_from(self.size.saturating_sub(self.at)).unwrap_or(usize::MAX)))
    }
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.go(buffer.len())?;
        let read = self.card.read(&mut buffer[..most])?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Write for Part<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let most = self.go(buffer.len())?;
        let written = self.card.write(&buffer[..most])?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.card.flush()
    }
}

impl Seek for Part<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
