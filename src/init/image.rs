//! An image of a card in a file: as it is, or compressed.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::settings::Variant;
use super::upgrade::Unfit;
use super::{Failure, card, mbr};

use crate::files;
use crate::image::Compression;

/// Bytes that are looked at, and left out, at once.
const CHUNK: usize = 64 << 10;
/// Largest FAT partition that is taken out, in bytes.
const MAX_BOOT: u64 = 1 << 30;

/// Opens the image and what is in it: raw, zstd or gzip. What is none is refused before anything is made of it.
pub fn open(image: &Path) -> Result<Box<dyn Read>, Failure> {
    let named = |e: io::Error| Failure::from(format!("image {}: {e}", image.display()));
    let mut from = File::open(image).and_then(contents).map_err(named)?;
    let mut sector = [0; mbr::SECTOR as usize];
    let filled = fill(from.as_mut(), &mut sector).map_err(named)?;
    if filled < sector.len() || mbr::identifier(&sector).is_none() {
        return Err(format!(
            "image {}: no image of a disk, as it is or compressed by zstd or gzip; unpack it first, if it is compressed otherwise",
            image.display()
        )
        .into());
    }
    Ok(Box::new(io::Cursor::new(sector).chain(from)))
}

/// What is in a file with an image: raw, zstd or gzip, of one part or more.
fn contents<'a>(mut file: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0; 4];
    file.read_exact(&mut magic)?;
    let whole = BufReader::with_capacity(CHUNK, io::Cursor::new(magic).chain(file));
    Ok(Compression::of_bytes(&magic).reader(whole))
}

/// Fills the buffer as far as there is something.
pub fn fill(from: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Which system the image has.
pub fn variant(image: &Path) -> Result<Variant, Failure> {
    let mut sector = [0; mbr::SECTOR as usize];
    fill(open(image)?.as_mut(), &mut sector).map_err(|e| format!("image {}: {e}", image.display()))?;
    Ok(if card::has_system(&sector) { Variant::Debian } else { Variant::Appliance })
}

/// Copies the FAT partition of an image, which is called `image` in messages, to a file, which has holes where there is
/// nothing.
pub fn boot_partition(image: &str, file: &mut dyn Read, to: &Path) -> Result<File, Failure> {
    let failed = |e: io::Error| format!("image {image}: {e}");
    let mut from = contents(file).map_err(failed)?;
    let mut sector = [0; mbr::SECTOR as usize];
    let whole = fill(&mut from, &mut sector).map_err(failed)? == sector.len() && mbr::identifier(&sector).is_some();
    let boot = mbr::partition(&sector, 1).filter(|_| whole);
    let boot = boot.ok_or_else(|| Unfit(format!("{image} is no image of a card")))?;
    let skipped = (u64::from(boot.start) - 1) * mbr::SECTOR;
    io::copy(&mut from.by_ref().take(skipped), &mut io::sink()).map_err(failed)?;
    let size = u64::from(boot.sectors) * mbr::SECTOR;
    if size > MAX_BOOT {
        return Err(format!("image {image}: its FAT partition has {size} bytes, at most {MAX_BOOT} are taken").into());
    }
    let mut from = from.take(size);
    let write = |from: &mut dyn Read| {
        let mut file = files::create(to, 0o600)?;
        let (mut buffer, mut done) = (vec![0; CHUNK], 0);
        loop {
            let read = fill(from, &mut buffer)?;
            let part = &buffer[..read];
            if read == 0 {
                break;
            }
            if part.iter().any(|byte| *byte != 0) {
                file.seek(SeekFrom::Start(done))?;
                file.write_all(part)?;
            }
            done += read as u64;
        }
        file.set_len(size)?;
        if done == size { Ok(file) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    };
    let file: io::Result<File> = write(&mut from);
    Ok(file.map_err(|e| format!("taking the FAT partition of {image} to {}: {e}", to.display()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_partition_is_taken_out() {
        let dir = std::env::temp_dir().join(format!("pikelet-image-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (image, out) = (dir.join("card.img"), dir.join("boot"));
        let mut bytes = vec![0; 2048 * 512];
        bytes[446 + 4] = 0xc;
        bytes[446 + 8] = 8;
        bytes[446 + 12..446 + 14].copy_from_slice(&1000_u16.to_le_bytes());
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        let boot = 8 * 512..1008 * 512;
        bytes[boot.start] = 7;
        bytes[boot.end - 1] = 9;
        std::fs::write(&image, &bytes).unwrap();
        let taken = |out: &Path| boot_partition("card.img", &mut File::open(&image).unwrap(), out);
        taken(&out).unwrap();
        assert!(std::fs::read(&out).unwrap() == bytes[boot.clone()]);
        std::fs::write(&image, &bytes[..boot.end - 1]).unwrap();
        assert!(taken(&out).unwrap_err().to_string().contains("end of file"));
        std::fs::write(&image, "no image at all").unwrap();
        assert!(taken(&out).unwrap_err().to_string().contains("no image of a card"));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
