//! Receiving a container's terminal from libcontainer.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::cmsg_space;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::setup::context;

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
        let listener = UnixListener::bind(&path).map_err(context("listening for the terminal"))?;
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
        let mut byte = [0_u8; 64];
        let mut space = cmsg_space!(std::os::fd::RawFd);
        let mut buffers = [IoSliceMut::new(&mut byte)];
        let received = recvmsg::<()>(stream.as_raw_fd(), &mut buffers, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
            .map_err(context("receiving the terminal"))?;
        for message in received.cmsgs().map_err(context("receiving the terminal"))? {
            if let ControlMessageOwned::ScmRights(fds) = message
                && let Some(&fd) = fds.first()
            {
                return Ok(own(fd));
            }
        }
        Err("receiving the terminal: no descriptor in the message".into())
    }
}

#[allow(unsafe_code)]
fn own(fd: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: the kernel has just installed this descriptor for us; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
