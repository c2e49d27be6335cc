//! Messages with file descriptors on Unix sockets (`SCM_RIGHTS`, unix(7)).
#![allow(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Most descriptors in one message: the standard streams.
pub const MOST: usize = 3;

/// Sends bytes, and `descriptors` with the first of them; returns how many bytes went.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    Ok(sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?)
}

/// Receives bytes, and the descriptors that came with them.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = cmsg_space!([RawFd; MOST]);
    let mut buffers = [IoSliceMut::new(buffer)];
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    // the kernel leaves out what does not fit, here or among the process's open files
    if received.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::other("descriptors of a message are lost: too many of them, or too many open files"));
    }
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel has just installed these descriptors for us; nobody else owns them.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn lost_descriptors_are_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let receive = || {
            let mut descriptors = Vec::new();
            let received = receive(theirs.as_fd(), &mut [0; 8], &mut descriptors);
            received.map(|bytes| (bytes, descriptors.len())).map_err(|e| e.to_string())
        };
        send(ours.as_fd(), b"ab", &[ours.as_fd(); MOST]).unwrap();
        assert_eq!(receive(), Ok((2, MOST)));
        // one more may have room where the message is padded
        send(ours.as_fd(), b"ab", &[ours.as_fd(); MOST + 2]).unwrap();
        assert!(receive().unwrap_err().contains("lost"));
    }
}
