//! What exec, attach and port-forward have in common, whatever protocol carries them: channels with bounded queues.

pub mod exec;
pub mod port_forward;
pub mod queue;
pub mod upgrade;
pub mod websocket;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::queue::Inlet;

/// Pieces that may wait in one direction of a channel or session; a piece is at most [`PIECE`] bytes.
pub const QUEUE: usize = 8;
/// Largest piece in bytes: with the header of its frame it fills what TLS writes at once, and leaves nothing over.
pub const PIECE: usize = (64 << 10) - 16;

/// SPDY's status of a stream that is not taken (draft section 2.6.3).
pub const REFUSED: u32 = 3;

/// What is sent to a client; each protocol writes it in its own way.
#[derive(Debug)]
pub enum Out {
    /// The channel the client opened is there.
    Opened {
        /// Channel or stream id.
        channel: u32,
    },
    /// A piece of data.
    Data {
        /// Channel or stream id.
        channel: u32,
        /// At most [`PIECE`] bytes.
        data: Bytes,
    },
    /// No more data comes on the channel.
    End {
        /// Channel or stream id.
        channel: u32,
    },
    /// The channel is refused or broken.
    Reset {
        /// Channel or stream id.
        channel: u32,
        /// SPDY's status.
        status: u32,
    },
    /// The answer to a ping.
    Ping {
        /// The ping's id.
        id: u32,
    },
    /// No more channels are taken.
    GoAway {
        /// The last one taken.
        last: u32,
        /// SPDY's status.
        status: u32,
    },
}

/// The way to a client on one channel. Waits while the client does not read.
#[derive(Debug, Clone)]
pub struct Outlet {
    channel: u32,
    out: mpsc::Sender<Out>,
    /// As long as it is there its stream counts.
    _counted: Option<Arc<()>>,
}

/// The client is gone.
#[derive(Debug)]
pub struct Gone;

impl Outlet {
    /// Of a session's channel.
    pub fn new(channel: u32, out: mpsc::Sender<Out>) -> Self {
        Self { channel, out, _counted: None }
    }

    /// Of a stream that counts among others until nobody has this any more.
    pub fn counted(channel: u32, out: mpsc::Sender<Out>, count: Arc<()>) -> Self {
        Self { channel, out, _counted: Some(count) }
    }

    /// Sends a piece.
    pub async fn send(&self, data: Bytes) -> Result<(), Gone> {
        self.out.send(Out::Data { channel: self.channel, data }).await.map_err(|_| Gone)
    }

    /// Says that the channel is not taken.
    pub async fn refuse(self) {
        // a client that is gone needs not know
        let _ = self.out.send(Out::Reset { channel: self.channel, status: REFUSED }).await;
    }

    /// Says that no more comes.
    pub async fn end(self) {
        // a client that is gone needs not know
        let _ = self.out.send(Out::End { channel: self.channel }).await;
    }
}

/// How long a client may take to close its side after the last word.
const FAREWELL: Duration = Duration::from_secs(10);

/// The connection all channels of a session share.
pub struct Connection {
    out: mpsc::Sender<Out>,
    /// Cancelled when the client is gone; cancelling it ends the session at once.
    pub gone: CancellationToken,
    writer: JoinHandle<()>,
}

impl Connection {
    /// `writer` ends when all senders of its queue are dropped.
    pub fn new(out: mpsc::Sender<Out>, gone: CancellationToken, writer: JoinHandle<()>) -> Self {
        Self { out, gone, writer }
    }

    /// An outlet on a channel the client did not open itself.
    pub fn outlet(&self, channel: u32) -> Outlet {
        Outlet::new(channel, self.out.clone())
    }

    /// Ends the session once everything is sent; every [`Outlet`] must be dropped before. Waits for the client to close,
    /// as closing a connection with unread data on it would take back what was sent.
    pub async fn finish(self) {
        drop(self.out);
        if self.writer.await.is_ok() {
            let _ = tokio::time::timeout(FAREWELL, self.gone.cancelled()).await;
        }
        self.gone.cancel();
    }
}
