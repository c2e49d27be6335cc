//! Netfilter's netlink: a socket, and messages out and in (kernel `nfnetlink`, include/uapi/linux/netfilter).

use std::io;
use std::ops::ControlFlow;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::NetfilterMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt::SndBufForce};

use super::wire;

/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Bytes of answers read at a time.
const ANSWER: usize = 64 * 1024;
/// Bytes a socket takes at once unless it is told otherwise.
const DEFAULT_BUFFER: usize = 128 * 1024;

/// A socket to the kernel.
pub fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Adds a request to what is to be sent.
pub fn append(bytes: &mut Vec<u8>, message: NetfilterMessage, flags: u16, sequence: u32) {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len(), 0);
    message.serialize(&mut bytes[start..]);
}

/// Sends requests as one.
pub fn send(socket: &Socket, bytes: &[u8]) -> io::Result<()> {
    if bytes.len() > DEFAULT_BUFFER {
        setsockopt(socket, SndBufForce, &(2 * bytes.len()))?;
    }
    socket.send(bytes, 0).map(|_| ())
}

/// Hands every answer to `take` until that breaks; an error of the kernel ends it.
pub fn answers(
    socket: &Socket,
    mut take: impl FnMut(NetlinkPayload<NetfilterMessage>) -> io::Result<ControlFlow<()>>,
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(ANSWER);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = message.header.length as usize;
            if let NetlinkPayload::Error(error) = &message.payload
                && let Some(code) = error.code
            {
                return Err(io::Error::from_raw_os_error(-code.get()));
            }
            if take(message.payload)?.is_break() {
                return Ok(());
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// Hands the body of every answer to a request for a list to `take`, whatever it is made of.
pub fn raw_answers(socket: &Socket, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(ANSWER);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        for message in wire::messages(&buffer) {
            match message.kind {
                DONE => return Ok(()),
                ERROR => {
                    let code = message.body.get(..4).map_or(0, |b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
                    return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                _ => take(message.body),
            }
        }
    }
}
