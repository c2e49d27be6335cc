//! One layer: decompressed, hashed and unpacked into a directory, as a stream.

use std::collections::BTreeSet;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::compression::Compression;
use super::digest::matches;
use super::guard::{Fruitful, Limit, counted_into};
use super::hashed::Hashed;
use super::tree;

/// Bytes read at a time.
const PIECE: usize = 128 << 10;

/// What came of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Digest of the blob.
    pub digest: String,
    /// Digest of the archive it decompresses to.
    pub diff_id: String,
    /// Bytes of its regular files.
    pub size: u64,
    /// Folders it has without saying what they are like.
    pub implied: BTreeSet<PathBuf>,
}

impl Unpacked {
    /// Refuses a layer that is not the one its image names.
    pub fn check(&self, digest: &str, diff_id: &str) -> Result<(), String> {
        matches(digest, &self.digest)?;
        if self.diff_id != diff_id {
            let got = &self.diff_id;
            return Err(format!("layer {digest} unpacks to {got}, its image says {diff_id}: digest does not match"));
        }
        Ok(())
    }
}

/// Unpacks a layer into `into`. Whether it is the right one is seen by its digests.
pub fn unpack(blob: impl Read, compression: Compression, limit: Limit, into: &Path) -> Result<Unpacked, String> {
    let (blob, brought) = Fruitful::new(blob);
    let mut blob = BufReader::with_capacity(PIECE, Hashed::new(blob));
    let broken = |e: io::Error| format!("reading the layer: {e}");
    let mut plain = BufReader::with_capacity(PIECE, Hashed::new(counted_into(compression.reader(&mut blob), brought)));
    let tree::Tallied { size, implied } = tree::entries(&mut plain, limit, into)?;
    // what follows the archive's end belongs to the digests
    let rest = io::copy(&mut (&mut plain).take(limit.bytes), &mut io::sink()).map_err(broken)?;
    if rest == limit.bytes {
        return Err(broken(limit.exceeded()));
    }
    let diff_id = plain.get_ref().digest();
    drop(plain);
    io::copy(&mut blob, &mut io::sink()).map_err(broken)?;
    Ok(Unpacked { digest: blob.get_ref().digest(), diff_id, size, implied })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::hashed::digest_of;

    #[test]
    fn files_arrive_and_digests_are_checked() {
        let dir = std::env::temp_dir().join(format!("pikelet-unpack-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(2);
        builder.append_data(&mut header, "a/b", b"hi".as_slice()).unwrap();
        let tar = builder.into_inner().unwrap();
        let digest = digest_of(&tar);
        let got = unpack(tar.as_slice(), Compression::None, Limit::of(0, 1), &dir).unwrap();
        let implied = [PathBuf::from("a")].into();
        assert_eq!(got, Unpacked { digest: digest.clone(), diff_id: digest.clone(), size: 2, implied });
        assert_eq!(std::fs::read(dir.join("a/b")).unwrap(), b"hi");
        got.check(&digest, &digest).unwrap();
        assert!(got.check("sha256:0", &digest).unwrap_err().contains("does not match"));
        assert!(got.check(&digest, "sha256:0").unwrap_err().contains("its image says"));
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// Parts of zstd that are to be skipped, without end.
    struct Skipped(u64);

    impl Read for Skipped {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0 += buffer.len() as u64;
            assert!(self.0 < 1 << 30, "no end was found to it");
            for (place, byte) in buffer.iter_mut().zip(b"\x50\x2a\x4d\x18\0\0\0\0".iter().cycle()) {
                *place = *byte;
            }
            Ok(buffer.len())
        }
    }

    #[test]
    fn what_brings_nothing_has_an_end() {
        let dir = std::env::temp_dir().join(format!("pikelet-barren-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let error = unpack(Skipped(0), Compression::Zstd, Limit::of(1 << 60, 100), &dir).unwrap_err();
        assert!(error.contains("bring 0"), "{error}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
