//! A process of its own for every container and every other process in one that is made.
//!
//! Whoever makes one looks paths up in the container, changes what the kernel knows of it and, in libcontainer's case,
//! leaves descriptors behind. In a child of the shim all of that ends with the child, and one that is stuck holds up
//! nobody: the shim waits for its answer among everything else, and kills it when that takes too long.
#![allow(unsafe_code)]

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{ForkResult, Pid, fork};

use super::keyring;
use super::setup::context;
use crate::runtime::descriptors;

/// Longest text of an error that is taken from a maker, in bytes.
const MAX_TEXT: usize = 64 << 10;
/// What comes before the payload of each message: its kind, and its length in bytes.
const HEADER: usize = 5;
/// Kinds of messages: the process that was made, its terminal (a descriptor), and how it went.
const PROCESS: u8 = b'p';
const TERMINAL: u8 = b't';
const DONE: u8 = b'd';
const FAILED: u8 = b'f';

/// A maker at work, as the shim sees it.
pub struct Maker {
    /// The maker itself, a child of the shim.
    pub pid: Pid,
    socket: UnixStream,
    received: Vec<u8>,
    /// What it makes, once that exists: a child of the shim as well. To be believed only when it is a new one: a process
    /// in the container may have got at the maker's socket.
    pub process: Option<Pid>,
    /// The terminal of what it makes.
    pub terminal: Option<OwnedFd>,
    /// How it went, once that is known.
    pub outcome: Option<Result<(), String>>,
}

/// The maker's end.
pub struct Reporter(UnixStream);

impl Maker {
    /// Forks one that does `work`, whose error is the maker's answer. The shim has a single thread.
    pub fn start(work: impl FnOnce(&Reporter) -> Result<(), String>) -> Result<Self, String> {
        let (socket, theirs) = UnixStream::pair().map_err(context("creating a socket"))?;
        socket.set_nonblocking(true).map_err(context("making a socket non-blocking"))?;
        // SAFETY: the shim has a single thread, so the child may go on as an ordinary process.
        match unsafe { fork() }.map_err(context("fork"))? {
            ForkResult::Parent { child } => {
                Ok(Self { pid: child, socket, received: Vec::new(), process: None, terminal: None, outcome: None })
            }
            ForkResult::Child => {
                drop(socket);
                let reporter = Reporter(theirs);
                // the shim's own loop is further up this stack
                let done = catch_unwind(AssertUnwindSafe(|| keyring::leave().and_then(|()| work(&reporter))));
                match done {
                    Ok(Ok(())) => reporter.done(),
                    Ok(Err(text)) => reporter.send(FAILED, &text.as_bytes()[..text.len().min(MAX_TEXT)]),
                    Err(_) => reporter.send(FAILED, b"the process that makes it has failed; see shim.log"),
                }
                end()
            }
        }
    }

    /// To wait for.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes what it has said so far.
    pub fn receive(&mut self) {
        let mut buffer = [0; 4096];
        while self.outcome.is_none() {
            let mut found = Vec::new();
            match descriptors::receive(self.socket.as_fd(), &mut buffer, &mut found) {
                Ok(0) => return self.end_early(),
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.end_early(),
            }
            // one, and the first: what the process can still get at the socket changes nothing
            if self.terminal.is_none() && self.process.is_none() {
                self.terminal = found.into_iter().next();
            }
            self.understand();
        }
    }

    /// It is gone: whatever it has not said counts as failed.
    pub fn end_early(&mut self) {
        self.outcome.get_or_insert_with(|| Err("the process that makes it has ended early; see shim.log".into()));
    }

    fn understand(&mut self) {
        while let Some(&[kind, a, b, c, d]) = self.received.first_chunk::<HEADER>() {
            let length = u32::from_le_bytes([a, b, c, d]) as usize;
            if length > MAX_TEXT {
                return self.end_early();
            }
            let Some(payload) = self.received.get(HEADER..HEADER + length) else { return };
            match kind {
                PROCESS if self.process.is_none() => {
                    self.process = payload.first_chunk().map(|pid| Pid::from_raw(i32::from_le_bytes(*pid)));
                }
                DONE => {
                    self.outcome = Some(Ok(()));
                    return;
                }
                FAILED => {
                    self.outcome = Some(Err(String::from_utf8_lossy(payload).into_owned()));
                    return;
                }
                _ => {}
            }
            self.received.drain(..HEADER + length);
        }
    }

    /// Kills it and what it has made.
    pub fn kill(&self) {
        for pid in [Some(self.pid), self.process].into_iter().flatten() {
            if is_child(pid) {
                // it may have ended meanwhile, which nobody else has been told
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
    }
}

impl Reporter {
    /// Its number, for those who close all that is not theirs.
    pub fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// The terminal of what is made; to be said before [`Reporter::process`].
    pub fn terminal(&self, terminal: &OwnedFd) -> Result<(), String> {
        let sent = descriptors::send(self.0.as_fd(), &[TERMINAL, 0, 0, 0, 0], &[terminal.as_fd()]);
        sent.map(drop).map_err(context("handing the terminal over"))
    }

    /// What was made.
    pub fn process(&self, pid: Pid) {
        self.send(PROCESS, &pid.as_raw().to_le_bytes());
    }

    /// All went well, and the maker ends. Works behind a seccomp filter.
    pub fn done(&self) -> ! {
        self.send(DONE, &[]);
        end()
    }

    /// By write(2) alone, and without memory of its own, so that it works behind a seccomp filter.
    fn send(&self, kind: u8, payload: &[u8]) {
        let [a, b, c, d] = (payload.len() as u32).to_le_bytes();
        let header = [kind, a, b, c, d];
        for mut part in [&header[..], payload] {
            while !part.is_empty() {
                match nix::unistd::write(&self.0, part) {
                    Ok(count) => part = &part[count..],
                    Err(Errno::EINTR) => {}
                    // the shim is gone
                    Err(_) => return,
                }
            }
        }
    }
}

/// Ends a forked process without what its parent has registered for its own end.
pub fn end() -> ! {
    // SAFETY: takes a number, and does not come back.
    unsafe { libc::_exit(0) }
}

/// Whether a process is a child of the calling one, ended or not: its number is nobody else's until it is reaped.
pub fn is_child(pid: Pid) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    pid.as_raw() > 0 && waitid(Id::Pid(pid), flags).is_ok()
}

/// Closes all descriptors above standard error but those of `kept`.
pub fn close_others(kept: &mut Vec<RawFd>) -> Result<(), String> {
    kept.retain(|fd| *fd > 2);
    kept.sort_unstable();
    kept.dedup();
    let mut first = 3;
    for end in kept.iter().map(|fd| fd - 1).chain([RawFd::MAX]) {
        if first <= end {
            close_range(first, end).map_err(context("closing the shim's descriptors"))?;
        }
        first = end.saturating_add(2);
    }
    Ok(())
}

fn close_range(first: RawFd, last: RawFd) -> nix::Result<()> {
    // SAFETY: what owns these descriptors is never used again by the forked process that asks for this.
    match Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }) {
        Err(Errno::ENOSYS) => {
            let open = fs::read_dir("/proc/self/fd").map_err(|_| Errno::ENOSYS)?;
            let open: Vec<RawFd> =
                open.flatten().filter_map(|e| e.file_name().to_str().and_then(|n| n.parse().ok())).collect();
            for fd in open.into_iter().filter(|fd| (first..=last).contains(fd)) {
                // SAFETY: as above.
                let _ = unsafe { libc::close(fd) };
            }
            Ok(())
        }
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maker(bytes: &[u8]) -> Maker {
        let (socket, _theirs) = UnixStream::pair().unwrap();
        let mut maker =
            Maker { pid: Pid::this(), socket, received: bytes.to_vec(), process: None, terminal: None, outcome: None };
        maker.understand();
        maker
    }

    #[test]
    fn messages_are_bounded_and_the_first_counts() {
        // init, itself, a group of processes, none
        for pid in [1, Pid::this().as_raw(), -1, 0] {
            assert!(!is_child(Pid::from_raw(pid)), "{pid}");
        }
        let process = |pid: i32| [&[PROCESS, 4, 0, 0, 0][..], &pid.to_le_bytes()].concat();
        let two = maker(&[process(7), process(8), vec![DONE, 0, 0, 0, 0]].concat());
        assert_eq!((two.process, two.outcome), (Some(Pid::from_raw(7)), Some(Ok(()))));
        let long = maker(&[FAILED, 0xff, 0xff, 0xff, 0xff]);
        assert!(long.outcome.unwrap().unwrap_err().contains("ended early"));
        assert_eq!(maker(&[FAILED, 2, 0, 0, 0, b'n']).outcome, None);
        assert_eq!(maker(&[FAILED, 2, 0, 0, 0, b'n', b'o']).outcome, Some(Err("no".into())));
    }
}
