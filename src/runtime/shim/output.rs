//! What a container writes goes to its log and to those attached; what they send goes to its standard input.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Uid, fchown, pipe2, read, write};

use super::pace::Pace;
use super::setup::context;
use crate::runtime::cri_log::{LineSplitter, LogFile, Stream, timestamp};
use crate::runtime::protocol::Wanted;
use crate::runtime::types::ContainerSpec;

/// Buffers that are copied of one stream when its container has ended: more than a pipe can hold.
const DRAINED: usize = 256;

/// The shim's ends of a container's streams.
pub struct Output {
    container: String,
    sources: Vec<Source>,
    log: LogFile,
    pace: Pace,
    tty: bool,
    /// Write end kept open so that the program sees no end of its standard input.
    stdin: Option<OwnedFd>,
    stdin_once: bool,
    viewers: Vec<Viewer>,
}

/// A pipe, or the terminal.
struct Source {
    fd: OwnedFd,
    lines: LineSplitter,
    open: bool,
}

/// Somebody attached to the container's output.
struct Viewer {
    session: u64,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Output {
    /// Opens the log; streams come by the other functions.
    pub fn new(spec: &ContainerSpec) -> Result<Self, String> {
        let log = LogFile::open(&spec.log_path, spec.log_rotation)
            .map_err(|e| format!("opening the container's log {}: {e}", spec.log_path.display()))?;
        Ok(Self {
            container: spec.id.clone(),
            sources: Vec::new(),
            log,
            pace: Pace::new(Instant::now()),
            tty: spec.tty,
            stdin: None,
            stdin_once: spec.stdin_once,
            viewers: Vec::new(),
        })
    }

    /// The end of a pipe that the container writes to. `owner` is the host's id of its user.
    pub fn pipe(&mut self, stream: Stream, owner: u32) -> Result<OwnedFd, String> {
        let (fd, write) = pipe2(OFlag::O_CLOEXEC).map_err(context("creating a pipe"))?;
        give(&write, owner)?;
        self.add(fd, stream)?;
        Ok(write)
    }

    /// The terminal that the container has instead of pipes.
    pub fn terminal(&mut self, fd: OwnedFd) -> Result<(), String> {
        self.add(fd, Stream::Stdout)
    }

    fn add(&mut self, fd: OwnedFd, stream: Stream) -> Result<(), String> {
        set_nonblocking(&fd)?;
        self.sources.push(Source { fd, lines: LineSplitter::new(stream), open: true });
        Ok(())
    }

    /// What the container reads: a pipe when standard input is `wanted`, or nothing.
    pub fn stdin(&mut self, wanted: bool, owner: u32) -> Result<OwnedFd, String> {
        if !wanted {
            return File::open("/dev/null").map(OwnedFd::from).map_err(context("opening /dev/null"));
        }
        let (input, write) = pipe2(OFlag::O_CLOEXEC).map_err(context("creating a pipe"))?;
        give(&input, owner)?;
        self.stdin = Some(write);
        Ok(input)
    }

    /// Descriptors to wait for, with their number for [`Output::pump`]; none while [`Output::rest`] has a time.
    pub fn readable(&self, now: Instant) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let open = self.sources.iter().enumerate().filter(|(_, s)| s.open);
        open.filter(move |_| self.pace.rest(now).is_none()).map(|(i, s)| (i, s.fd.as_fd()))
    }

    /// Until when nothing is read, as the container has written too much.
    pub fn rest(&self, now: Instant) -> Option<Instant> {
        self.pace.rest(now).filter(|_| self.sources.iter().any(|s| s.open))
    }

    /// Copies what one source holds (at most one buffer of it) to the log; false when there was nothing.
    pub fn pump(&mut self, index: usize, buffer: &mut [u8]) -> bool {
        let Some(source) = self.sources.get_mut(index).filter(|s| s.open) else { return false };
        let mut lines = Vec::new();
        let more = match read(&source.fd, buffer) {
            Ok(count) if count > 0 => {
                show(&mut self.viewers, source.lines.stream(), &buffer[..count]);
                source.lines.push(&buffer[..count], &timestamp(), &mut lines);
                true
            }
            Err(Errno::EAGAIN | Errno::EINTR) => return false,
            // End of file; EIO is a terminal's.
            _ => {
                source.lines.finish(&timestamp(), &mut lines);
                source.open = false;
                false
            }
        };
        self.pace.spend(lines.len(), Instant::now());
        if let Err(e) = self.log.append(&lines) {
            tracing::warn!("writing the log of container {}: {e}", self.container);
        }
        more
    }

    /// The container has ended: copies the rest, and closes them. A process elsewhere may have its pipe and write on.
    pub fn drain(&mut self, buffer: &mut [u8]) {
        for index in 0..self.sources.len() {
            for _ in 0..DRAINED {
                if !self.pump(index, buffer) {
                    break;
                }
            }
        }
        let mut lines = Vec::new();
        for source in self.sources.drain(..).filter(|s| s.open) {
            let mut splitter = source.lines;
            splitter.finish(&timestamp(), &mut lines);
        }
        // Reported when it first failed.
        let _ = self.log.append(&lines);
    }

    /// Lets a session see the output from now on; returns the terminal, or the way to the program's standard input.
    pub fn attach(&mut self, session: u64, wanted: Wanted, ends: Vec<OwnedFd>) -> Result<Option<OwnedFd>, String> {
        let mut ends = ends.into_iter();
        let stdout = if wanted.stdout { ends.next() } else { None };
        let stderr = if wanted.stderr { ends.next() } else { None };
        for end in [&stdout, &stderr].into_iter().flatten() {
            set_nonblocking(end)?;
        }
        let way_in = match self.sources.first().filter(|_| self.tty) {
            Some(terminal) => Some(&terminal.fd),
            None => self.stdin.as_ref().filter(|_| wanted.stdin),
        };
        let way_in = way_in.map(OwnedFd::try_clone).transpose().map_err(context("attaching"))?;
        self.viewers.push(Viewer { session, stdout, stderr });
        Ok(way_in)
    }

    /// Forgets a session.
    pub fn detach(&mut self, session: u64) {
        self.viewers.retain(|v| v.session != session);
    }

    /// The sessions that see the output, which end with the container.
    pub fn take_viewers(&mut self) -> Vec<u64> {
        self.viewers.drain(..).map(|v| v.session).collect()
    }

    /// An attached standard input has ended: the program sees that if it was promised only one (`stdinOnce`).
    pub fn close_stdin(&mut self, session: u64) {
        if self.stdin_once && self.viewers.iter().any(|v| v.session == session) {
            self.stdin = None;
        }
    }
}

/// Copies output to those attached. One that does not keep up misses output rather than holding up the program.
fn show(viewers: &mut [Viewer], stream: Stream, bytes: &[u8]) {
    for viewer in viewers {
        let end = match stream {
            Stream::Stdout => &mut viewer.stdout,
            Stream::Stderr => &mut viewer.stderr,
        };
        let Some(fd) = end else { continue };
        match write(fd, bytes) {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => *end = None,
        }
    }
}

/// Lets a user open a pipe again by `/dev/stdout` and the like.
pub(super) fn give(pipe: &OwnedFd, owner: u32) -> Result<(), String> {
    fchown(pipe, Some(Uid::from_raw(owner)), None).map_err(context("giving a pipe to its user"))
}

pub(super) fn set_nonblocking(fd: &OwnedFd) -> Result<(), String> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop).map_err(context("making an output non-blocking"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::folder::Folder;

    #[test]
    fn an_output_without_end_is_drained_all_the_same() {
        let folder = Folder::new();
        let spec = ContainerSpec { log_path: folder.path().join("0.log"), ..ContainerSpec::default() };
        let mut output = Output::new(&spec).unwrap();
        output.terminal(File::open("/dev/zero").unwrap().into()).unwrap();
        output.drain(&mut [0; 16]);
        let log = std::fs::read(&spec.log_path).unwrap();
        assert_eq!(log.iter().filter(|byte| **byte == 0).count(), 16 * DRAINED);
        assert_eq!(output.readable(Instant::now()).count(), 0);
    }
}
