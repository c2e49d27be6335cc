//! Websockets of Kubernetes' `channel.k8s.io` family: each message begins with its channel.

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::queue::Feeder;
use super::{Connection, Out, PIECE, QUEUE};

/// Largest message in bytes.
pub const MAX_MESSAGE: usize = 4 << 20;
/// Channel of v5 whose message names the channel that its sender closes.
const CLOSE: u8 = 255;

/// How channels are written in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// A byte, then the data, in a binary message.
    Binary,
    /// A digit, then the data in base64, in a text message.
    Base64,
}

impl Framing {
    /// Channels there can be, counted from 0.
    pub fn channels(self) -> u32 {
        match self {
            Self::Binary => u32::from(CLOSE),
            Self::Base64 => 10,
        }
    }
}

/// Serves a websocket; `inlets` takes what arrives on channels 0, 1, ... that have one.
pub fn start(socket: WebSocket, framing: Framing, inlets: Vec<Option<Feeder>>) -> Connection {
    let (sink, stream) = socket.split();
    let (out, outs) = mpsc::channel(QUEUE);
    let gone = CancellationToken::new();
    let writer = tokio::spawn(write_all(sink, framing, outs, gone.clone()));
    let ended = gone.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = read_all(stream, framing, inlets) => {}
            () = ended.cancelled() => {}
        }
        ended.cancel();
    });
    Connection::new(out, gone, writer)
}

/// The channel and data of a message; `None` for one that carries none. Clients are free in the kind of message: Python's
/// writes text as text, also where data is binary.
fn unpack(message: Message, framing: Framing) -> Result<Option<(u8, Bytes)>, String> {
    let mut data = match message {
        Message::Binary(data) => data,
        Message::Text(text) => text.into(),
        _ => return Ok(None),
    };
    if data.is_empty() {
        return Ok(None);
    }
    let channel = data.split_to(1)[0];
    match framing {
        Framing::Binary => Ok(Some((channel, data))),
        Framing::Base64 => {
            let digit = channel.is_ascii_digit().then(|| channel - b'0');
            let channel = digit.ok_or_else(|| format!("channel {:?} is not a digit", char::from(channel)))?;
            let data = STANDARD.decode(&data).map_err(|e| format!("message is not base64: {e}"))?;
            Ok(Some((channel, data.into())))
        }
    }
}

/// The message that carries data on a channel; `None` for a channel that cannot be written so.
fn pack(channel: u32, data: &[u8], framing: Framing) -> Option<Message> {
    let channel = u8::try_from(channel).ok().filter(|c| u32::from(*c) < framing.channels())?;
    Some(match framing {
        Framing::Binary => {
            let mut message = BytesMut::with_capacity(1 + data.len());
            message.put_u8(channel);
            message.extend_from_slice(data);
            Message::Binary(message.freeze())
        }
        Framing::Base64 => {
            let mut text = String::from(char::from(b'0' + channel));
            STANDARD.encode_string(data, &mut text);
            Message::Text(text.into())
        }
    })
}

async fn read_all(mut stream: SplitStream<WebSocket>, framing: Framing, mut inlets: Vec<Option<Feeder>>) {
    while let Some(message) = stream.next().await {
        let message = match message {
            Ok(Message::Close(_)) => return,
            Ok(message) => unpack(message, framing),
            Err(error) => Err(error.to_string()),
        };
        match message {
            Ok(Some((CLOSE, data))) => {
                if let Some(inlet) = data.first().and_then(|c| inlets.get_mut(usize::from(*c))) {
                    *inlet = None;
                }
            }
            Ok(Some((channel, data))) => {
                if let Some(Some(inlet)) = inlets.get(usize::from(channel)) {
                    inlet.send(&data).await;
                }
            }
            Ok(None) => {}
            Err(error) => {
                debug!(error, "websocket ended");
                return;
            }
        }
    }
}

async fn write_all(
    mut sink: SplitSink<WebSocket, Message>,
    framing: Framing,
    mut outs: mpsc::Receiver<Out>,
    gone: CancellationToken,
) {
    let written = async {
        while let Some(mut out) = outs.recv().await {
            // what waits already goes out at once
            loop {
                if let Out::Data { channel, data } = out {
                    let message = pack(channel, &data, framing);
                    let message = message.ok_or_else(|| axum::Error::new(format!("no channel {channel}")))?;
                    sink.feed(message).await?;
                }
                match outs.try_recv() {
                    Ok(next) => out = next,
                    Err(_) => break,
                }
            }
            sink.flush().await?;
        }
        sink.send(Message::Close(Some(CloseFrame { code: 1000, reason: "".into() }))).await
    };
    tokio::select! {
        result = written => if result.is_err() {
            gone.cancel();
        },
        () = gone.cancelled() => {}
    }
}

/// A websocket as a plain connection: its binary messages are the bytes (`SPDY/3.1+portforward.k8s.io`).
pub fn tunnel(socket: WebSocket) -> DuplexStream {
    let (near, far) = tokio::io::duplex(PIECE);
    let (mut reader, mut writer) = tokio::io::split(far);
    let (mut sink, mut stream) = socket.split();
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(data) if writer.write_all(&data).await.is_ok() => {}
                Message::Ping(_) | Message::Pong(_) => {}
                _ => break,
            }
        }
        // the other side is gone as well then
        let _ = writer.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = BytesMut::with_capacity(PIECE);
        while let Ok(1..) = reader.read_buf(&mut buffer).await {
            if sink.send(Message::Binary(buffer.split().freeze())).await.is_err() {
                return;
            }
            buffer.reserve(PIECE);
        }
        let _ = sink.send(Message::Close(None)).await;
    });
    near
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_their_channel() {
        let binary = Message::Binary(Bytes::from_static(b"\x01hi"));
        assert_eq!(unpack(binary, Framing::Binary).unwrap(), Some((1, Bytes::from_static(b"hi"))));
        let typed = Message::Text("\0hi".into());
        assert_eq!(unpack(typed, Framing::Binary).unwrap(), Some((0, Bytes::from_static(b"hi"))));
        let text = Message::Text("0aGk=".into());
        assert_eq!(unpack(text, Framing::Base64).unwrap(), Some((0, Bytes::from_static(b"hi"))));
        assert!(unpack(Message::Text("0%".into()), Framing::Base64).is_err());
        assert!(unpack(Message::Text("/aGk=".into()), Framing::Base64).is_err(), "no digit");
        assert_eq!(unpack(Message::Binary(Bytes::new()), Framing::Binary).unwrap(), None);
    }

    #[test]
    fn channel_numbers_do_not_wrap() {
        assert_eq!(pack(254, b"x", Framing::Binary), Some(Message::Binary(Bytes::from_static(b"\xfex"))));
        assert_eq!(pack(9, b"hi", Framing::Base64), Some(Message::Text("9aGk=".into())));
        assert!(pack(255, b"x", Framing::Binary).is_none() && pack(256, b"x", Framing::Binary).is_none());
        assert!(pack(10, b"x", Framing::Base64).is_none());
    }
}
