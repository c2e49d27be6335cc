//! Bounds on what an archive may take of this machine, whatever it says of itself.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

/// Names and attributes of one entry, in bytes with their padding.
pub const ENTRY_HEAD: u64 = 2 << 20;
/// What is compressed may unpack to so many times its size, unless the settings say another number, and ...
pub const RATIO: u64 = 100;
/// ... to so many bytes in any case.
const SMALL: u64 = 256 << 20;

/// Bytes of a block of a tar archive.
const BLOCK: u64 = 512;

/// How much may come out of something compressed.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// Bytes.
    pub bytes: u64,
    ratio: u64,
}

impl Limit {
    /// For `size` compressed bytes.
    pub fn of(size: u64, ratio: u64) -> Self {
        Self { bytes: size.saturating_mul(ratio).max(SMALL), ratio }
    }

    /// For what is bounded elsewhere.
    pub fn unbounded() -> Self {
        Self { bytes: u64::MAX, ratio: 1 }
    }

    /// The error for what takes more.
    pub fn exceeded(&self) -> io::Error {
        io::Error::other(format!(
            "unpacks to more than {} times its size: refused (maxImageUnpackRatio allows more)",
            self.ratio
        ))
    }
}

/// Lets an archive take no more than it may.
pub struct Guard<R> {
    inner: R,
    limit: Limit,
    /// Bytes that may still be read, all together.
    total: u64,
    head: Head,
}

/// Bytes that may be read before the next entry's data.
#[derive(Clone)]
pub struct Head(Rc<Cell<u64>>);

impl Head {
    /// An entry's data follow.
    pub fn passed(&self) {
        self.0.set(u64::MAX);
    }

    /// The next entry's name and attributes follow.
    pub fn next(&self) {
        self.0.set(ENTRY_HEAD);
    }
}

impl<R: Read> Guard<R> {
    /// Guards a tar archive of at most so many bytes.
    pub fn new(inner: R, limit: Limit) -> (Self, Head) {
        let head = Head(Rc::new(Cell::new(ENTRY_HEAD)));
        (Self { inner, limit, total: limit.bytes, head: head.clone() }, head)
    }
}

impl<R: Read> Read for Guard<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut n = self.inner.read(buffer)?;
        if n == 0 {
            // some archives (umoci's) end with their last byte, not with its block; digests are of what came
            let missing = BLOCK - 1 - (self.limit.bytes - self.total + BLOCK - 1) % BLOCK;
            n = buffer.len().min(missing as usize);
            buffer[..n].fill(0);
        }
        self.total = self.total.checked_sub(n as u64).ok_or_else(|| self.limit.exceeded())?;
        let head = self.head.0.get().checked_sub(n as u64);
        self.head.0.set(
            head.ok_or_else(|| io::Error::other("an entry's name and attributes are too long: refused".to_owned()))?,
        );
        Ok(n)
    }
}

/// Counts what is read of something compressed, for [`Grown`].
pub struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

/// What comes out of something compressed whose size is not known before: never much more than went in.
pub struct Grown<R> {
    inner: R,
    ratio: u64,
    read: Rc<Cell<u64>>,
    out: u64,
}

/// Counts what is read of `inner`; [`Grown::new`] wants the count.
pub fn counted<R: Read>(inner: R) -> (Counted<R>, Rc<Cell<u64>>) {
    let count = Rc::default();
    (Counted { inner, count: Rc::clone(&count) }, count)
}

impl<R: Read> Grown<R> {
    /// `inner` is what `read` compressed bytes become.
    pub fn new(inner: R, read: Rc<Cell<u64>>, ratio: u64) -> Self {
        Self { inner, ratio, read, out: 0 }
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.count.set(self.count.get() + n as u64);
        Ok(n)
    }
}

impl<R: Read> Read for Grown<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.out += n as u64;
        let limit = Limit::of(self.read.get(), self.ratio);
        if self.out > limit.bytes { Err(limit.exceeded()) } else { Ok(n) }
    }
}

/// Compressed bytes that may bring nothing: tables, what is to be skipped, empty parts.
const BARREN: u64 = 64 << 20;

/// Ends what is compressed, and brings next to nothing however long it goes on.
pub struct Fruitful<R> {
    inner: R,
    taken: u64,
    brought: Rc<Cell<u64>>,
}

impl<R: Read> Fruitful<R> {
    /// What comes of `inner` is to be counted into the number, by [`counted_into`].
    pub fn new(inner: R) -> (Self, Rc<Cell<u64>>) {
        let brought = Rc::default();
        (Self { inner, taken: 0, brought: Rc::clone(&brought) }, brought)
    }
}

/// Counts what is read of `inner`.
pub fn counted_into<R: Read>(inner: R, count: Rc<Cell<u64>>) -> Counted<R> {
    Counted { inner, count }
}

impl<R: Read> Read for Fruitful<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.taken += n as u64;
        // what cannot be compressed takes hardly more than itself
        if self.taken > BARREN.saturating_add(self.brought.get().saturating_mul(2)) {
            return Err(io::Error::other(format!("{} bytes of it bring {}: refused", self.taken, self.brought.get())));
        }
        Ok(n)
    }
}
