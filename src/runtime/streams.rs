//! The standard streams of a process in a container, held by the agent: the shim makes them and steps out of the way.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::{Receiver, Sender};

use super::connection::connect;
use super::descriptors;
use super::protocol::{self, ClientMessage, ShimMessage, StreamRequest};

/// Size of the pipes in bytes: what may be under way while one side is slow.
const PIPE: i32 = 256 << 10;

/// The streams of a process. Each is closed by dropping it.
#[derive(Debug)]
pub struct Streams {
    /// To the program; with a terminal also what the user types.
    pub stdin: Option<Sender>,
    /// From the program; with a terminal all of its output.
    pub stdout: Option<Reader>,
    /// From the program.
    pub stderr: Option<Reader>,
    /// Its terminal.
    pub terminal: Option<Terminal>,
    /// Its end.
    pub ending: Ending,
}

/// Output of a program.
#[derive(Debug)]
pub struct Reader(Receiver);

impl Reader {
    /// Reads what is there into `buffer`, waiting for the first byte; 0 at the end.
    pub async fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self.0.read_buf(buffer).await {
            // the end of a terminal whose last user has gone
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => Ok(0),
            other => other,
        }
    }
}

/// A program's terminal.
#[derive(Debug, Clone)]
pub struct Terminal(Arc<OwnedFd>);

impl Terminal {
    /// Sets its size in characters.
    #[allow(unsafe_code)]
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        nix::ioctl_write_ptr_bad!(set_size, nix::libc::TIOCSWINSZ, nix::pty::Winsize);
        let size = nix::pty::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open and the kernel only reads the structure.
        unsafe { set_size(self.0.as_raw_fd(), &raw const size) }?;
        Ok(())
    }
}

/// How the process ends.
#[derive(Debug)]
pub struct Ending {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Ending {
    /// Waits for the exit code; 128 + signal for a killed process.
    pub async fn wait(&mut self) -> Result<i32, String> {
        loop {
            if let ShimMessage::Ended { code } = next(&self.stream, &mut self.received, &mut Vec::new()).await? {
                return Ok(code);
            }
        }
    }

    /// Tells the shim that an attached standard input has ended.
    pub async fn stdin_closed(&mut self) -> Result<(), String> {
        let frame = protocol::encode(&ClientMessage::CloseStdin)?;
        self.stream.write_all(&frame).await.map_err(|e| format!("telling the shim: {e}"))
    }
}

async fn next(stream: &UnixStream, received: &mut Vec<u8>, found: &mut Vec<OwnedFd>) -> Result<ShimMessage, String> {
    loop {
        if let Some(message) = protocol::decode(received)? {
            return Ok(message);
        }
        let mut buffer = [0; 4096];
        let count = stream
            .async_io(Interest::READABLE, || descriptors::receive(stream.as_fd(), &mut buffer, found))
            .await
            .map_err(|e| format!("reading from the shim: {e}"))?;
        if count == 0 {
            return Err("the shim has ended".to_owned());
        }
        received.extend_from_slice(&buffer[..count]);
    }
}

/// A pipe; the end that stays here does not block.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    // a smaller pipe is only slower
    let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE));
    Ok((read, write))
}

fn reader() -> io::Result<(Reader, OwnedFd)> {
    let (read, write) = pipe()?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((Reader(Receiver::from_owned_fd(read)?), write))
}

fn writer() -> io::Result<(Sender, OwnedFd)> {
    let (read, write) = pipe()?;
    fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((Sender::from_owned_fd(write)?, read))
}

/// Opens a session with the shim of the sandbox directory `dir`.
pub(super) async fn open(dir: &Path, request: StreamRequest) -> Result<Streams, String> {
    let failed = |e: io::Error| format!("opening the streams: {e}");
    let (attach, tty, wanted) = match &request {
        StreamRequest::Exec { tty, wanted, .. } => (false, *tty, *wanted),
        StreamRequest::Attach { wanted, .. } => (true, false, *wanted),
    };
    let (mut stdin, mut stdout, mut stderr) = (None, None, None);
    let mut theirs: Vec<OwnedFd> = Vec::new();
    let mut keep = |(ours, end): (Reader, OwnedFd)| {
        theirs.push(end);
        ours
    };
    let mut input = None;
    if !tty {
        if wanted.stdin && !attach {
            let (ours, end) = writer().map_err(failed)?;
            stdin = Some(ours);
            input = Some(end);
        }
        stdout = wanted.stdout.then(reader).transpose().map_err(failed)?.map(&mut keep);
        stderr = wanted.stderr.then(reader).transpose().map_err(failed)?.map(&mut keep);
    }
    let ends: Vec<BorrowedFd<'_>> = input.iter().chain(&theirs).map(AsFd::as_fd).collect();
    let mut stream = connect(dir).await.map_err(|e| format!("connecting to the shim: {e}"))?;
    let hello = protocol::encode(&ClientMessage::Hello { version: protocol::VERSION })?;
    let sent = stream
        .async_io(Interest::WRITABLE, || descriptors::send(stream.as_fd(), &hello, &ends))
        .await
        .map_err(|e| format!("greeting the shim: {e}"))?;
    let frame = protocol::encode(&ClientMessage::Stream(request))?;
    let rest = [&hello[sent..], &frame].concat();
    stream.write_all(&rest).await.map_err(|e| format!("asking the shim: {e}"))?;
    drop(ends);
    drop((input, theirs));
    let (mut received, mut found) = (Vec::new(), Vec::new());
    loop {
        if let ShimMessage::Streaming { result } = next(&stream, &mut received, &mut found).await? {
            result?;
            break;
        }
    }
    let mut terminal = None;
    if let Some(way_in) = found.pop() {
        let is_terminal = nix::unistd::isatty(&way_in).unwrap_or(false);
        fcntl(&way_in, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|e| failed(e.into()))?;
        if is_terminal {
            if tty && wanted.stdout {
                let copy = way_in.try_clone().map_err(failed)?;
                stdout = Some(Reader(Receiver::from_owned_fd_unchecked(copy).map_err(failed)?));
            }
            if wanted.stdin {
                let copy = way_in.try_clone().map_err(failed)?;
                stdin = Some(Sender::from_owned_fd_unchecked(copy).map_err(failed)?);
            }
            terminal = Some(Terminal(Arc::new(way_in)));
        } else {
            stdin = Some(Sender::from_owned_fd_unchecked(way_in).map_err(failed)?);
        }
    }
    Ok(Streams { stdin, stdout, stderr, terminal, ending: Ending { stream, received } })
}
