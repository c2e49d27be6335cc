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

use super::{Connection, Inlet, Out, PIECE, QUEUE};

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

/// Serves a websocket; `inlets` takes what arrives on channels 0, 1, ... that have one.
pub fn start(socket: WebSocket, framing: Framing, inlets: Vec<Option<mpsc::Sender<Bytes>>>) -> Connection {
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

/// A channel a client may write to.
pub fn inlet() -> (Option<mpsc::Sender<Bytes>>, Inlet) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (Some(sender), receiver)
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
            let data = STANDARD.decode(&data).map_err(|e| format!("message is not base64: {e}"))?;
            Ok(Some((channel.wrapping_sub(b'0'), data.into())))
        }
    }
}

/// The message that carries data on a channel.
fn pack(channel: u8, data: &[u8], framing: Framing) -> Message {
    match framing {
        Framing::Binary => {
            let mut message = BytesMut::with_capacity(1 + data.len());
            message.put_u8(channel);
            message.extend_from_slice(data);
            Message::Binary(message.freeze())
        }
        Framing::Base64 => {
            let mut text = String::from(char::from(b'0' + channel % 10));
            STANDARD.encode_string(data, &mut text);
            Message::Text(text.into())
        }
    }
}

async fn read_all(mut stream: SplitStream<WebSocket>, framing: Framing, mut inlets: Vec<Option<mpsc::Sender<Bytes>>>) {
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
            Ok(Some((channel, mut data))) => {
                let Some(Some(inlet)) = inlets.get(usize::from(channel)) else { continue };
                while !data.is_empty() {
                    let piece = data.split_to(data.len().min(PIECE));
                    // waits while the other side does not read; what nobody wants is dropped
                    let _ = inlet.send(piece).await;
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
                    sink.feed(pack(channel as u8, &data, framing)).await?;
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
        assert_eq!(unpack(Message::Binary(Bytes::new()), Framing::Binary).unwrap(), None);
    }
}
