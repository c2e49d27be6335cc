//! Messages of the tunnel between a k3s server and its agents: each is one binary websocket message.

use bytes::{BufMut, Bytes, BytesMut};

/// What the deadline field is filled with; nobody reads it.
const DEADLINE: i64 = 15_000;
/// Longest target and error text read.
const TEXT: usize = 266;

/// A message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// Bytes of a connection.
    Data(i64, Bytes),
    /// The other end asks for a connection, to `tcp/127.0.0.1:10250` for instance.
    Connect(i64, String),
    /// The end of a connection and why; `EOF` when all is well.
    Error(i64, String),
    /// No more bytes of this connection for now.
    Pause(i64),
    /// Bytes of this connection again.
    Resume(i64),
    /// The connections there are, in ascending order; the other end forgets all others.
    Sync(Vec<i64>),
    /// Of no meaning for an agent.
    Other(i64),
}

fn put(out: &mut BytesMut, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// A number in zig-zag LEB128, at most ten bytes long.
fn take(bytes: &mut Bytes) -> Result<i64, String> {
    let mut value = 0_u64;
    for (i, byte) in bytes.iter().take(10).copied().enumerate() {
        if i == 9 && byte > 1 {
            break;
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            let _ = bytes.split_to(i + 1);
            return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    Err("a number in a tunnel message is cut, or too large".to_owned())
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes.get(..TEXT).unwrap_or(bytes)).into_owned()
}

impl Frame {
    /// Reads a message.
    pub fn read(mut bytes: Bytes) -> Result<Self, String> {
        take(&mut bytes)?;
        let (connection, kind) = (take(&mut bytes)?, take(&mut bytes)?);
        if matches!(kind, 1 | 2) {
            take(&mut bytes)?;
        }
        Ok(match kind {
            1 => Self::Data(connection, bytes),
            2 if bytes.len() > TEXT => return Err("the target of a tunnel connection is too long".to_owned()),
            2 => Self::Connect(connection, text(&bytes)),
            3 => Self::Error(connection, text(&bytes)),
            6 => Self::Pause(connection),
            7 => Self::Resume(connection),
            other => Self::Other(other),
        })
    }

    /// Writes a message; `id` grows from one to the next.
    pub fn write(&self, id: i64) -> Bytes {
        let (connection, kind, body): (i64, i64, &[u8]) = match self {
            Self::Data(connection, bytes) => (*connection, 1, bytes),
            Self::Connect(connection, target) => (*connection, 2, target.as_bytes()),
            Self::Error(connection, text) => (*connection, 3, text.as_bytes()),
            Self::Pause(connection) => (*connection, 6, &[]),
            Self::Resume(connection) => (*connection, 7, &[]),
            Self::Sync(_) => (0, 8, &[]),
            Self::Other(kind) => (0, *kind, &[]),
        };
        let mut out = BytesMut::with_capacity(body.len() + 40);
        put(&mut out, id);
        put(&mut out, connection);
        put(&mut out, kind);
        if matches!(kind, 1 | 2) {
            put(&mut out, DEADLINE);
        }
        out.extend_from_slice(body);
        if let Self::Sync(connections) = self {
            for connection in connections {
                out.put_i64_le(*connection);
            }
        }
        out.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_what_they_were() {
        for id in [0, 1, -1, 63, 64, -65, i64::MAX, i64::MIN] {
            for frame in [
                Frame::Data(id, Bytes::from_static(b"abc")),
                Frame::Connect(id, "tcp/127.0.0.1:10250".into()),
                Frame::Error(id, "EOF".into()),
                Frame::Pause(id),
                Frame::Resume(id),
            ] {
                assert_eq!(Frame::read(frame.write(id)).unwrap(), frame);
            }
        }
        // as Go's binary.PutVarint writes it
        assert_eq!(&Frame::Data(2, Bytes::from_static(b"x")).write(-1)[..], [1, 4, 2, 0xb0, 0xea, 1, b'x']);
        assert_eq!(&Frame::Sync(vec![1, 256]).write(0)[..], [0, 0, 16, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn damaged_messages_are_refused() {
        for wrong in [&b""[..], &[0x80], &[0xff; 40], &[0, 0], &[0, 0, 2], &[0, 0, 4, 0xff, 0xff]] {
            assert!(Frame::read(Bytes::copy_from_slice(wrong)).is_err(), "{wrong:?}");
        }
        let long = Frame::Connect(1, "t".repeat(267)).write(0);
        assert!(Frame::read(long).is_err());
        assert_eq!(Frame::read(Bytes::from_static(&[0, 0, 100])).unwrap(), Frame::Other(50));
    }
}
