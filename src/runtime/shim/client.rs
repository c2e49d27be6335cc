//! A connection to the shim: an agent's, or of an exec or attach.

use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::runtime::descriptors;

/// Unsent bytes at which a client that does not read is dropped.
const MAX_UNSENT: usize = 8 << 20;

/// Kinds of stream sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// Somebody's.
    Plain,
    /// A probe or a hook, whose process ends with it.
    Bound,
    /// There are too many; it has been told.
    Refused,
}

/// What is known of it.
pub struct Client {
    /// Never blocks.
    pub stream: UnixStream,
    /// Bytes of a message that is not whole yet.
    pub received: Vec<u8>,
    /// What came with them.
    pub descriptors: Vec<OwnedFd>,
    /// What it has opened, unless it is an agent's own.
    pub session: Option<Session>,
    /// What it has not taken yet.
    pub unsent: Vec<u8>,
    /// To be forgotten.
    pub dead: bool,
}

impl Client {
    /// One that has just come.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, received: Vec::new(), descriptors: Vec::new(), session: None, unsent: Vec::new(), dead: false }
    }

    /// Sends a frame together with a descriptor.
    pub fn send_with(&mut self, frame: &[u8], descriptor: Option<&OwnedFd>) {
        let descriptors: Vec<BorrowedFd<'_>> = descriptor.iter().map(|d| d.as_fd()).collect();
        self.flush();
        match descriptors::send(self.stream.as_fd(), frame, &descriptors) {
            Ok(sent) => self.send(&frame[sent..]),
            Err(_) => self.dead = true,
        }
    }

    /// Sends a frame, or keeps what finds no room.
    pub fn send(&mut self, frame: &[u8]) {
        self.unsent.extend_from_slice(frame);
        self.flush();
        if self.unsent.len() > MAX_UNSENT {
            tracing::warn!("dropping an agent that does not read");
            self.dead = true;
        }
    }

    /// Sends what was kept.
    pub fn flush(&mut self) {
        while !self.dead && !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.dead = true,
            }
        }
        if self.dead {
            self.unsent.clear();
        }
        self.unsent.shrink_to(4096);
    }
}
