//! Bytes that come in pieces from what does not block, for those who read with blocking calls.

use std::io::{self, Read};

use bytes::Bytes;
use tokio::sync::mpsc;

/// A piece; `None` is the end, without which the rest was lost.
pub type Piece = Option<io::Result<Bytes>>;

/// A blocking reader of pieces.
pub struct Pieces {
    rx: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

impl Pieces {
    /// Reads what is sent.
    pub fn new(rx: mpsc::Receiver<Piece>) -> Self {
        Self { rx, current: Bytes::new(), ended: false }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.rx.blocking_recv() {
                Some(Some(piece)) => self.current = piece?,
                Some(None) => self.ended = true,
                None => return Err(io::Error::other("it was given up")),
            }
        }
        let n = buffer.len().min(self.current.len());
        buffer[..n].copy_from_slice(&self.current.split_to(n));
        Ok(n)
    }
}
