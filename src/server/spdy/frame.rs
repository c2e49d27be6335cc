//! Frames: parsing of what arrives, whole or in pieces, and writing of what is sent.

use bytes::{Buf, BufMut, Bytes, BytesMut};

const VERSION: u16 = 3;
/// Largest control frame in bytes; Kubernetes' carry a few short headers.
pub const MAX_CONTROL: usize = 64 << 10;
/// Flag of a frame after which its sender sends no more on the stream.
const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// What a peer sends.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// A new stream, with its compressed headers.
    SynStream {
        /// Stream.
        stream: u32,
        /// Nothing more comes on it.
        fin: bool,
        /// Compressed headers.
        headers: Bytes,
    },
    /// Headers that change nothing here, but the state of the compression: of a reply, or more of a stream's.
    Headers {
        /// Stream.
        stream: u32,
        /// Nothing more comes on it.
        fin: bool,
        /// Compressed headers.
        headers: Bytes,
    },
    /// The end of a stream by error.
    RstStream {
        /// Stream.
        stream: u32,
    },
    /// To be answered by the same.
    Ping {
        /// Chosen by the sender.
        id: u32,
    },
    /// The peer opens no more streams.
    GoAway,
    /// A piece of data, as much as has arrived.
    Data {
        /// Stream.
        stream: u32,
        /// Nothing more comes on it.
        fin: bool,
        /// The bytes.
        data: Bytes,
    },
    /// `SETTINGS`, `WINDOW_UPDATE` and what is not known: of no use here.
    Other,
}

/// The peer breaks the protocol; the session cannot go on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("SPDY: {0}")]
pub struct ProtocolError(pub String);

fn wrong<T>(what: impl Into<String>) -> Result<T, ProtocolError> {
    Err(ProtocolError(what.into()))
}

/// Finds frames in a stream of bytes. Data frames are given out piece by piece, so that none is held whole.
#[derive(Debug, Default)]
pub struct Parser {
    /// Stream, last-flag and missing bytes of the data frame under way.
    data: Option<(u32, bool, usize)>,
}

impl Parser {
    /// Takes the next frame off the front of `buffer`; `None` when more bytes are needed.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, ProtocolError> {
        if self.data.is_none() {
            if buffer.len() < 8 {
                return Ok(None);
            }
            let flags = buffer[4];
            let length = usize::from(buffer[5]) << 16 | usize::from(buffer[6]) << 8 | usize::from(buffer[7]);
            if buffer[0] & 0x80 != 0 {
                return control(buffer, flags, length);
            }
            let stream = (&buffer[..4]).get_u32();
            if stream == 0 {
                return wrong("data on stream 0");
            }
            buffer.advance(8);
            self.data = Some((stream, flags & FIN != 0, length));
        }
        let Some((stream, fin, missing)) = self.data else { return Ok(None) };
        if buffer.is_empty() && missing > 0 {
            return Ok(None);
        }
        let data = buffer.split_to(missing.min(buffer.len())).freeze();
        let missing = missing - data.len();
        self.data = (missing > 0).then_some((stream, fin, missing));
        Ok(Some(Frame::Data { stream, fin: fin && missing == 0, data }))
    }
}

fn control(buffer: &mut BytesMut, flags: u8, length: usize) -> Result<Option<Frame>, ProtocolError> {
    let version = u16::from_be_bytes([buffer[0] & 0x7f, buffer[1]]);
    let kind = u16::from_be_bytes([buffer[2], buffer[3]]);
    if version != VERSION {
        return wrong(format!("frame of version {version}, 3 is spoken here"));
    }
    if length > MAX_CONTROL {
        return wrong(format!("control frame of {length} bytes, {MAX_CONTROL} are allowed"));
    }
    if buffer.len() < 8 + length {
        return Ok(None);
    }
    buffer.advance(8);
    let mut body = buffer.split_to(length).freeze();
    let fin = flags & FIN != 0;
    let needed = match kind {
        SYN_STREAM => 10,
        SYN_REPLY | PING | HEADERS => 4,
        RST_STREAM | GOAWAY => 8,
        _ => return Ok(Some(Frame::Other)),
    };
    if length < needed {
        return wrong(format!("control frame {kind} of {length} bytes, {needed} are needed"));
    }
    let first = body.get_u32();
    let stream = first & 0x7fff_ffff;
    if stream == 0 && !matches!(kind, PING | GOAWAY) {
        return wrong("control frame on stream 0");
    }
    Ok(Some(match kind {
        SYN_STREAM => {
            // the stream it belongs to, priority and credential slot
            body.advance(6);
            Frame::SynStream { stream, fin, headers: body }
        }
        RST_STREAM => Frame::RstStream { stream },
        PING => Frame::Ping { id: first },
        GOAWAY => Frame::GoAway,
        _ => Frame::Headers { stream, fin, headers: body },
    }))
}

fn control_header(out: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u32(u32::from(flags) << 24 | length as u32 & 0xff_ffff);
}

/// Writes the header of a data frame of `length` bytes (less than 16 MiB).
pub fn data_header(out: &mut BytesMut, stream: u32, fin: bool, length: usize) {
    out.put_u32(stream & 0x7fff_ffff);
    out.put_u32(u32::from(if fin { FIN } else { 0 }) << 24 | length as u32 & 0xff_ffff);
}

/// Writes a `SYN_REPLY` with compressed headers.
pub fn syn_reply(out: &mut BytesMut, stream: u32, headers: &[u8]) {
    control_header(out, SYN_REPLY, 0, 4 + headers.len());
    out.put_u32(stream);
    out.extend_from_slice(headers);
}

/// Writes a `RST_STREAM`; `status` as in the draft, section 2.6.3.
pub fn rst_stream(out: &mut BytesMut, stream: u32, status: u32) {
    control_header(out, RST_STREAM, 0, 8);
    out.put_u32(stream);
    out.put_u32(status);
}

/// Writes a PING.
pub fn ping(out: &mut BytesMut, id: u32) {
    control_header(out, PING, 0, 4);
    out.put_u32(id);
}

/// Writes a GOAWAY; status 0 is a proper end, 1 a protocol error.
pub fn go_away(out: &mut BytesMut, last: u32, status: u32) {
    control_header(out, GOAWAY, 0, 8);
    out.put_u32(last);
    out.put_u32(status);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syn_stream(stream: u32) -> Vec<u8> {
        let mut out = BytesMut::new();
        control_header(&mut out, SYN_STREAM, 0, 13);
        out.put_u32(stream);
        out.put_slice(&[0; 6]);
        out.put_slice(b"abc");
        out.to_vec()
    }

    #[test]
    fn frames_survive_being_cut_anywhere() {
        let mut bytes = syn_stream(1);
        let mut out = BytesMut::new();
        data_header(&mut out, 1, true, 5);
        out.put_slice(b"hello");
        ping(&mut out, 7);
        bytes.extend_from_slice(&out);
        for cut in 0..bytes.len() {
            let (mut parser, mut buffer, mut data, mut others) =
                (Parser::default(), BytesMut::new(), Vec::new(), Vec::new());
            for part in [&bytes[..cut], &bytes[cut..]] {
                buffer.extend_from_slice(part);
                while let Some(frame) = parser.next(&mut buffer).unwrap() {
                    match frame {
                        Frame::Data { stream: 1, fin, data: piece } => {
                            data.extend_from_slice(&piece);
                            assert_eq!(fin, data.len() == 5);
                        }
                        other => others.push(other),
                    }
                }
            }
            assert_eq!(data, b"hello");
            let headers = Bytes::from_static(b"abc");
            assert_eq!(others, [Frame::SynStream { stream: 1, fin: false, headers }, Frame::Ping { id: 7 }]);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |bytes: &[u8]| Parser::default().next(&mut BytesMut::from(bytes)).is_err();
        assert!(refused(&syn_stream(0)), "stream 0");
        assert!(refused(&[0x80, 2, 0, 1, 0, 0, 0, 10]), "another version");
        assert!(refused(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]), "an oversize control frame");
        assert!(refused(&[0x80, 3, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1]), "a short one");
        assert!(refused(&[0, 0, 0, 0, 0, 0, 0, 1]), "data on stream 0");
    }
}
