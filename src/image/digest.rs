//! Content digests: `sha256:<64 hex digits>`.

use std::fmt::Write;
use std::io::{self, Read};

use ring::digest::{Context, SHA256};

/// Hashes what is read through it.
pub struct Hashed<R> {
    inner: R,
    hash: Context,
    /// Bytes read.
    pub count: u64,
}

impl<R: Read> Hashed<R> {
    /// A reader of `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, hash: Context::new(&SHA256), count: 0 }
    }

    /// The digest of all that was read.
    pub fn digest(&self) -> String {
        written(self.hash.clone().finish().as_ref())
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        self.count += n as u64;
        Ok(n)
    }
}

fn written(hash: &[u8]) -> String {
    hash.iter().fold("sha256:".to_owned(), |mut text, byte| {
        // writing to a String cannot fail
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The digest of bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    written(ring::digest::digest(&SHA256, bytes).as_ref())
}

/// True for `sha256:` and 64 lower-case hex digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_hex)
}

/// True for 64 lower-case hex digits.
pub fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

/// The digits of a digest: its file name.
pub fn hex(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}
