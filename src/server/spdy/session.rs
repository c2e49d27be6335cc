//! The server's side of one session: the streams a client opens, and what goes back on them.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::frame::{self, Frame, Parser, ProtocolError};
use super::headers::{Deflater, Inflater};
use crate::server::streaming::queue::{self, Budget, Feeder, Inlet};
use crate::server::streaming::{Connection, Out, Outlet, QUEUE, REFUSED};

/// Streams open at a time; a port-forward uses two for every connection.
const MAX_STREAMS: usize = 1024;
/// Bytes read at once.
const READ: usize = 64 << 10;
const PROTOCOL_ERROR: u32 = 1;

/// A stream the client has opened. Dropping the outlet does not end the stream; [`Outlet::end`] does.
pub struct Stream {
    /// Its id.
    pub id: u32,
    /// Its headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// What the client sends.
    pub inlet: Inlet,
    /// What it is sent.
    pub outlet: Outlet,
}

impl Stream {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// A session on some connection.
pub struct Session {
    /// Streams as they are opened; ends with the connection.
    pub streams: mpsc::Receiver<Stream>,
    /// Its connection.
    pub connection: Connection,
}

impl Session {
    /// Serves a connection whose upgrade is done.
    pub fn start<C: AsyncRead + AsyncWrite + Send + 'static>(connection: C) -> Self {
        let (reader, writer) = tokio::io::split(connection);
        let (out, outs) = mpsc::channel(QUEUE);
        let (opened, streams) = mpsc::channel(QUEUE);
        let gone = CancellationToken::new();
        let writing = tokio::spawn(write_all(writer, outs, gone.clone()));
        let reading = Reading {
            out: out.downgrade(),
            opened,
            inlets: HashMap::new(),
            budget: Budget::default(),
            live: Arc::new(()),
            last: 0,
        };
        let ended = gone.clone();
        tokio::spawn(async move {
            tokio::select! {
                result = reading.run(reader) => if let Err(error) = result {
                    debug!(%error, "streaming session ended");
                },
                () = ended.cancelled() => {}
            }
            ended.cancel();
        });
        Self { streams, connection: Connection::new(out, gone, writing) }
    }
}

struct Reading {
    out: mpsc::WeakSender<Out>,
    opened: mpsc::Sender<Stream>,
    inlets: HashMap<u32, Feeder>,
    budget: Budget,
    /// Held by each stream that somebody still writes to, whether or not the client has ended its side.
    live: Arc<()>,
    last: u32,
}

impl Reading {
    async fn run(mut self, mut from: impl AsyncRead + Unpin) -> Result<(), ProtocolError> {
        let (mut parser, mut inflater) = (Parser::default(), Inflater::default());
        let mut buffer = BytesMut::with_capacity(READ);
        loop {
            buffer.reserve(READ);
            match from.read_buf(&mut buffer).await {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(ProtocolError(format!("connection lost: {error}"))),
            }
            while let Some(frame) = parser.next(&mut buffer).transpose() {
                let frame = match frame {
                    Ok(frame) => self.take(frame, &mut inflater).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = frame {
                    self.say(Out::GoAway { last: self.last, status: PROTOCOL_ERROR }).await;
                    return Err(error);
                }
            }
        }
    }

    async fn say(&self, out: Out) {
        if let Some(sender) = self.out.upgrade() {
            // a writer that has ended needs to hear nothing
            let _ = sender.send(out).await;
        }
    }

    async fn take(&mut self, frame: Frame, inflater: &mut Inflater) -> Result<(), ProtocolError> {
        match frame {
            Frame::SynStream { stream, fin, headers } => {
                let headers = inflater.read(&headers)?;
                if stream % 2 == 0 || stream <= self.last {
                    return Err(ProtocolError(format!("stream id {stream} after {}", self.last)));
                }
                self.inlets.retain(|_, inlet| !inlet.is_closed());
                let open = self.inlets.len().max(Arc::strong_count(&self.live) - 1);
                let Some(out) = self.out.upgrade().filter(|_| open < MAX_STREAMS) else {
                    self.say(Out::Reset { channel: stream, status: REFUSED }).await;
                    return Ok(());
                };
                self.last = stream;
                let (inlet, arriving) = queue::channel(&self.budget);
                if !fin {
                    self.inlets.insert(stream, inlet);
                }
                let outlet = Outlet::counted(stream, out, self.live.clone());
                self.say(Out::Opened { channel: stream }).await;
                // a session that takes no more streams lets this one go
                let _ = self.opened.send(Stream { id: stream, headers, inlet: arriving, outlet }).await;
            }
            Frame::Headers { stream, fin, headers } => {
                inflater.read(&headers)?;
                if fin {
                    self.inlets.remove(&stream);
                }
            }
            Frame::Data { stream, fin, data } => {
                if stream > self.last {
                    return Err(ProtocolError(format!("data on stream {stream}, which is not open")));
                }
                if let Some(inlet) = self.inlets.get(&stream) {
                    inlet.send(&data).await;
                }
                if fin {
                    self.inlets.remove(&stream);
                }
            }
            Frame::RstStream { stream } => drop(self.inlets.remove(&stream)),
            Frame::Ping { id } => self.say(Out::Ping { id }).await,
            Frame::GoAway | Frame::Other => {}
        }
        Ok(())
    }
}

async fn write_all(mut to: impl AsyncWrite + Unpin, mut outs: mpsc::Receiver<Out>, gone: CancellationToken) {
    let written = async {
        let mut deflater = Deflater::new().map_err(std::io::Error::other)?;
        let mut buffer = BytesMut::with_capacity(READ + 64);
        while let Some(out) = outs.recv().await {
            encode(out, &mut buffer, &mut deflater).map_err(std::io::Error::other)?;
            while buffer.len() < READ
                && let Ok(more) = outs.try_recv()
            {
                encode(more, &mut buffer, &mut deflater).map_err(std::io::Error::other)?;
            }
            to.write_all(&buffer).await?;
            to.flush().await?;
            buffer.clear();
        }
        to.shutdown().await
    };
    tokio::select! {
        result = written => match result {
            Ok(()) => {}
            Err(error) => {
                debug!(%error, "streaming session: not written");
                gone.cancel();
            }
        },
        () = gone.cancelled() => {}
    }
}

fn encode(out: Out, buffer: &mut BytesMut, deflater: &mut Deflater) -> Result<(), ProtocolError> {
    match out {
        Out::Opened { channel } => frame::syn_reply(buffer, channel, &deflater.write(&[])?),
        Out::Data { channel, data } => {
            frame::data_header(buffer, channel, false, data.len());
            buffer.extend_from_slice(&data);
        }
        Out::End { channel } => frame::data_header(buffer, channel, true, 0),
        Out::Reset { channel, status } => frame::rst_stream(buffer, channel, status),
        Out::Ping { id } => frame::ping(buffer, id),
        Out::GoAway { last, status } => frame::go_away(buffer, last, status),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    /// A stream the client has ended its side of at once.
    fn opening(id: u32, headers: &mut Deflater) -> Vec<u8> {
        let block = headers.write(&[("streamtype", "data")]).unwrap();
        let length = u32::try_from(block.len() + 10).unwrap() | 1 << 24;
        let parts = [&[0x80, 3, 0, 1][..], &length.to_be_bytes(), &id.to_be_bytes(), &[0; 6], &block];
        parts.concat()
    }

    #[tokio::test]
    async fn streams_count_though_the_client_sends_no_more_on_them() {
        let (client, server) = tokio::io::duplex(1 << 20);
        let mut session = Session::start(server);
        let (mut reader, mut writer) = tokio::io::split(client);
        // what is answered is taken
        let drained = tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
        let most = u32::try_from(MAX_STREAMS).unwrap();
        let sent = tokio::spawn(async move {
            let mut headers = Deflater::new().unwrap();
            for n in 0..most + 100 {
                writer.write_all(&opening(2 * n + 1, &mut headers)).await.unwrap();
            }
            writer
        });
        let mut held = Vec::new();
        while let Ok(Some(stream)) = timeout(std::time::Duration::from_millis(500), session.streams.recv()).await {
            held.push(stream);
        }
        assert_eq!(held.len(), MAX_STREAMS);
        drop((held, sent.await.unwrap()));
        drained.abort();
    }
}
