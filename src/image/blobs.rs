//! Documents, and where they are kept the compressed layers too, by their digest (`blobs/sha256` of an OCI image layout).

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::digest::{hex, is_hex};
use super::hashed::Hashed;
use crate::durable::{sync_dir, write_whole};

/// The blobs of a store; cheap to clone.
#[derive(Clone)]
pub struct Blobs {
    dir: PathBuf,
    next: Arc<AtomicU64>,
}

impl Blobs {
    /// Opens (and where needed creates) the blobs of the layout in `store`; what an earlier run wrote half is removed.
    pub fn open(store: &Path) -> io::Result<Self> {
        let blobs = Self { dir: store.join("blobs/sha256"), next: Arc::default() };
        fs::create_dir_all(&blobs.dir)?;
        for dir in [store, &blobs.dir] {
            for entry in fs::read_dir(dir)? {
                let path = entry?.path();
                if path.extension().is_some_and(|e| e == "tmp") {
                    fs::remove_file(path)?;
                }
            }
        }
        Ok(blobs)
    }

    /// The file of a blob.
    pub fn path(&self, digest: &str) -> PathBuf {
        self.dir.join(hex(digest))
    }

    /// True if it is here, whole.
    pub fn has(&self, digest: &str) -> bool {
        self.path(digest).exists()
    }

    /// Makes the names of all blobs last.
    pub fn sync(&self) -> io::Result<()> {
        sync_dir(&self.dir)
    }

    /// Writes a document.
    pub fn write(&self, digest: &str, bytes: &[u8]) -> io::Result<()> {
        write_whole(&self.path(digest), bytes).map(drop)
    }

    /// Reads a document.
    pub fn read(&self, digest: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path(digest))
    }

    /// A copy of what is read through it.
    pub fn copy<R: Read>(&self, from: R) -> io::Result<Copied<R>> {
        let temporary = self.dir.join(format!("blob-{}.tmp", self.next.fetch_add(1, Ordering::Relaxed)));
        Ok(Copied { file: File::create(&temporary)?, temporary, from: Hashed::new(from) })
    }

    /// Removes the blobs that `keep` does not want; returns their bytes.
    pub fn sweep(&self, keep: impl Fn(&str) -> bool) -> io::Result<u64> {
        let mut freed = 0;
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(|n| is_hex(n) && !keep(n)) {
                freed += entry.metadata()?.len();
                fs::remove_file(entry.path())?;
            }
        }
        Ok(freed)
    }
}

/// A blob on its way through; gone unless [`Copied::keep`] is called.
pub struct Copied<R> {
    from: Hashed<R>,
    file: File,
    temporary: PathBuf,
}

impl<R: Read> Copied<R> {
    /// Names the copy, which must be all of the blob called `digest`; the name lasts after [`Blobs::sync`].
    pub fn keep_if(self, blobs: &Blobs, digest: &str) -> io::Result<()> {
        let got = self.from.digest();
        if got != digest {
            return Err(io::Error::other(format!("it arrived as {got}: digest does not match")));
        }
        self.file.sync_data()?;
        fs::rename(&self.temporary, blobs.path(digest))
    }
}

impl<R: Read> Read for Copied<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.file
            .write_all(&buffer[..n])
            .map_err(|e| io::Error::new(e.kind(), format!("writing {}: {e}", self.temporary.display())))?;
        Ok(n)
    }
}

impl<R> Drop for Copied<R> {
    fn drop(&mut self) {
        // of no use; opening the store would remove it too
        let _ = fs::remove_file(&self.temporary);
    }
}
