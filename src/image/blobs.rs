//! Documents, and where they are kept the compressed layers too, by their digest (`blobs/sha256` of an OCI image layout).

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::digest::{hex, is_hex, matches};
use super::hashed::Hashed;
use super::layers::Gone;
use super::registry::MAX_DOCUMENT;
use crate::files::{self, sync_dir, write_changed};

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
        files::dir(&blobs.dir, 0o700)?;
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

    /// The digests of all blobs.
    pub fn digests(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names: io::Result<Vec<String>> = names.collect();
        Ok(names?.into_iter().filter(|name| is_hex(name)).map(|name| format!("sha256:{name}")).collect())
    }

    /// Writes a document.
    pub fn write(&self, digest: &str, bytes: &[u8]) -> io::Result<()> {
        write_changed(&self.path(digest), bytes, 0o600).map(drop)
    }

    /// Reads a document.
    pub fn read(&self, digest: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path(digest))
    }

    /// Reads what may be a document: no more than one has.
    pub fn document(&self, digest: &str) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        File::open(self.path(digest))?.take(MAX_DOCUMENT as u64 + 1).read_to_end(&mut text)?;
        Ok(text)
    }

    /// A copy of what is read through it.
    pub fn copy<R: Read>(&self, from: R) -> io::Result<Copied<R>> {
        let temporary = self.temporary();
        Ok(Copied { file: files::create(&temporary, 0o600)?, temporary, from: Hashed::new(from) })
    }

    /// Takes out the blobs that `keep` does not want; their files are cleared later, with no lock held.
    pub fn sweep(&self, keep: impl Fn(&str) -> bool) -> io::Result<Gone> {
        let (mut bytes, mut places) = (0, Vec::new());
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(|n| is_hex(n) && !keep(n)) {
                bytes += entry.metadata()?.len();
                let place = self.temporary();
                fs::rename(entry.path(), &place)?;
                places.push(place);
            }
        }
        Ok(Gone::new(bytes, places))
    }

    /// A name that nobody has; opening the store removes what is left there.
    fn temporary(&self) -> PathBuf {
        self.dir.join(format!("blob-{}.tmp", self.next.fetch_add(1, Ordering::Relaxed)))
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
        matches(digest, &self.from.digest()).map_err(io::Error::other)?;
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
