//! One layer: decompressed, hashed and unpacked into a directory, as a stream.

use std::io::{self, BufReader, Read};
use std::path::Path;

use super::compression::Compression;
use super::digest::matches;
use super::guard::Limit;
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
    let mut blob = BufReader::with_capacity(PIECE, Hashed::new(blob));
    let broken = |e: io::Error| format!("reading the layer: {e}");
    let mut plain = BufReader::with_capacity(PIECE, Hashed::new(compression.reader(&mut blob)));
    let size = tree::entries(&mut plain, limit, into)?;
    // what follows the archive's end belongs to the digests
    let rest = io::copy(&mut (&mut plain).take(limit.bytes), &mut io::sink()).map_err(broken)?;
    if rest == limit.bytes {
        return Err(broken(limit.exceeded()));
    }
    let diff_id = plain.get_ref().digest();
    drop(plain);
    io::copy(&mut blob, &mut io::sink()).map_err(broken)?;
    Ok(Unpacked { digest: blob.get_ref().digest(), diff_id, size })
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
        assert_eq!(got, Unpacked { digest: digest.clone(), diff_id: digest.clone(), size: 2 });
        assert_eq!(std::fs::read(dir.join("a/b")).unwrap(), b"hi");
        got.check(&digest, &digest).unwrap();
        assert!(got.check("sha256:0", &digest).unwrap_err().contains("does not match"));
        assert!(got.check(&digest, "sha256:0").unwrap_err().contains("its image says"));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
