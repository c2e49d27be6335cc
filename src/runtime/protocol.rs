//! The protocol between agent and shim: length-prefixed JSON frames over a unix stream socket.
//!
//! A frame is a little-endian u32 length and that many bytes. The shim speaks first, with [`Reply::Hello`].

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use super::types::{ContainerInfo, ContainerSpec, ExitRecord};

/// Version said in the first message; raised on an incompatible change.
pub const VERSION: u32 = 1;
/// Largest frame in bytes; a longer one ends the connection.
pub const MAX_FRAME: usize = 4 << 20;

/// Agent to shim.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the agent, given back in the reply.
    pub id: u64,
    /// What to do.
    pub call: Call,
}

/// What an agent may ask.
#[derive(Debug, Serialize, Deserialize)]
pub enum Call {
    /// Create a container's process.
    Create(Box<ContainerSpec>),
    /// Let its program run.
    Start {
        /// Container id.
        container: String,
    },
    /// Send a signal.
    Kill {
        /// Container id.
        container: String,
        /// Signal number.
        signal: i32,
        /// To every process of the container.
        all: bool,
    },
    /// Forget a container; killed first if it runs.
    Remove {
        /// Container id.
        container: String,
    },
    /// Kill everything and end.
    Shutdown,
}

/// Shim to agent.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// First message of a connection.
    Hello {
        /// Protocol version.
        version: u32,
        /// What the shim holds.
        containers: Vec<ContainerInfo>,
    },
    /// A call is done.
    Done {
        /// The request's id.
        id: u64,
        /// Pid for create, start time in nanoseconds for start, else 0; or what went wrong.
        result: Result<i64, String>,
    },
    /// A container ended.
    Exited {
        /// Container id.
        container: String,
        /// How.
        exit: ExitRecord,
    },
}

/// One message as a frame.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = u32::try_from(frame.len() - 4).map_err(io::Error::other)?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// Writes one frame.
pub fn write<T: Serialize>(mut to: impl Write, message: &T) -> io::Result<()> {
    to.write_all(&encode(message)?)
}

/// Reads one frame; `None` at a clean end.
pub fn read<T: for<'a> Deserialize<'a>>(mut from: impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let mut frame = vec![0; frame_length(length)?];
    from.read_exact(&mut frame)?;
    Ok(Some(serde_json::from_slice(&frame)?))
}

/// Length of a frame from its prefix, refused beyond [`MAX_FRAME`].
pub fn frame_length(prefix: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("frame of {length} bytes is over {MAX_FRAME}")));
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_round_and_oversize_ones_are_refused() {
        let mut wire = Vec::new();
        write(&mut wire, &Request { id: 7, call: Call::Shutdown }).unwrap();
        let back: Request = read(wire.as_slice()).unwrap().unwrap();
        assert_eq!(back.id, 7);
        assert!(read::<Request>([].as_slice()).unwrap().is_none());
        assert!(read::<Request>([0xff, 0xff, 0xff, 0xff].as_slice()).is_err());
    }
}
