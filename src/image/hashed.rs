//! Hashing what is read.

use std::io::{self, Read};

use ring::digest::{Context, SHA256};

use crate::hex::hex;

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
    format!("sha256:{}", hex(hash))
}

/// The digest of bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    written(ring::digest::digest(&SHA256, bytes).as_ref())
}

/// Hashes what is written through it.
pub struct HashedWriter<W> {
    inner: W,
    hash: Context,
    /// Bytes written.
    pub count: u64,
}

impl<W: io::Write> HashedWriter<W> {
    /// A writer to `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, hash: Context::new(&SHA256), count: 0 }
    }

    /// The digest of all that was written.
    pub fn digest(&self) -> String {
        written(self.hash.clone().finish().as_ref())
    }
}

impl<W: io::Write> io::Write for HashedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
