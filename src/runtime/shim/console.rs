//! Receiving a container's terminal from libcontainer.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::setup::context;
use crate::runtime::descriptors;

/// A socket libcontainer sends the terminal's master side to while it creates a container.
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens below `dir`, the working directory's own path.
    pub fn listen(dir: &Path, container: &str) -> Result<Self, String> {
        let name = format!("tty-{}", &container[..container.len().min(12)]);
        let path = dir.join(&name);
        let _ = std::fs::remove_file(&path);
        // by its name: the whole path may be longer than a socket address can be
        let listener = UnixListener::bind(&name).map_err(context("listening for the terminal"))?;
        Ok(Self { listener, path })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The terminal, sent before the container was created.
    pub fn receive(self) -> Result<OwnedFd, String> {
        let mut ready = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::from(1000_u16)).map_err(context("waiting for the terminal"))? == 0 {
            return Err("waiting for the terminal: none was sent".into());
        }
        let (stream, _) = self.listener.accept().map_err(context("accepting the terminal"))?;
        let mut received = Vec::new();
        descriptors::receive(stream.as_fd(), &mut [0_u8; 64], &mut received)
            .map_err(context("receiving the terminal"))?;
        received.pop().ok_or_else(|| "receiving the terminal: no descriptor in the message".into())
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
