//! One tunnel: connections a server asks for, carried over one websocket.
//!
//! Whoever does not read is felt at the other end by Pause and Resume; a server that does not heed them loses the
//! connection, not the tunnel.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tracing::debug;

use super::frame::Frame;
use super::targets::Targets;

/// How often the server is asked whether it is there, and how long silence is borne.
const PING: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_mins(1);
/// How often the server hears which connections there are.
const SYNC: Duration = Duration::from_mins(1);
/// How long connecting to a target may take.
const CONNECT: Duration = Duration::from_mins(1);
/// Bytes on their way to one target at which the server is asked to pause, and to go on.
const PAUSE_AT: usize = 2 << 20;
const RESUME_AT: usize = PAUSE_AT / 8;
/// Bytes on their way to all targets: above, nothing more is read from the server for a while, and a connection whose
/// bytes find no room even then ends.
const MOST: usize = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at once.
const CONNECTIONS: usize = 256;
/// Largest piece read from a target, and messages that wait to be sent.
const PIECE: usize = 32 << 10;
const QUEUE: usize = 32;

/// What the tasks of a session share.
struct Shared {
    out: mpsc::Sender<Message>,
    ids: AtomicI64,
    waiting: AtomicUsize,
    drained: Notify,
}

impl Shared {
    /// Waits until there is room for so many bytes more; false: there was none in time.
    async fn room(&self, length: usize) -> bool {
        let found = async {
            loop {
                let drained = self.drained.notified();
                if self.waiting.load(Ordering::Relaxed) + length <= MOST {
                    return;
                }
                drained.await;
            }
        };
        timeout(PATIENCE, found).await.is_ok()
    }

    /// Sends; an error: the tunnel is gone, or stuck.
    async fn send(&self, frame: Frame) -> Result<(), String> {
        let message = Message::Binary(frame.write(self.ids.fetch_add(1, Ordering::Relaxed)));
        match timeout(SILENCE, self.out.send(message)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err("the tunnel takes no messages".to_owned()),
        }
    }
}

/// The end of a connection that the session holds.
struct Held {
    bytes: mpsc::UnboundedSender<Bytes>,
    flow: Arc<Flow>,
    paused: watch::Sender<bool>,
}

/// What waits to be written to one target, and whether the server was asked to pause for it.
#[derive(Default)]
struct Flow {
    waiting: AtomicUsize,
    pausing: AtomicBool,
}

impl Flow {
    /// Whether the server is to be asked to go on: once for each time it was asked to pause.
    fn resumes(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) < RESUME_AT && self.pausing.swap(false, Ordering::SeqCst)
    }
}

/// Serves a tunnel until it breaks.
pub(super) async fn serve<S>(socket: WebSocketStream<S>, targets: &Targets) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sink, mut stream) = socket.split();
    let (out, mut outs) = mpsc::channel::<Message>(QUEUE);
    let shared = Arc::new(Shared { out, ids: AtomicI64::new(1), waiting: AtomicUsize::new(0), drained: Notify::new() });
    let writing = async move {
        while let Some(message) = outs.recv().await {
            sink.feed(message).await.map_err(|e| e.to_string())?;
            if outs.is_empty() {
                sink.flush().await.map_err(|e| e.to_string())?;
            }
        }
        Ok::<(), String>(())
    };
    let reading = async {
        let mut connections: BTreeMap<i64, Held> = BTreeMap::new();
        let mut tasks = tokio::task::JoinSet::new();
        let (mut ping, mut sync) = (tokio::time::interval(PING), tokio::time::interval(SYNC));
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                message = stream.next() => {
                    heard = Instant::now();
                    match message {
                        Some(Ok(Message::Binary(bytes))) => {
                            let frame = Frame::read(bytes)?;
                            if let Frame::Connect(id, target) = frame {
                                // those the server has ended count until they are gone
                                match begin(targets, tasks.len(), &target) {
                                    Ok(address) => {
                                        let (held, task) = open(shared.clone(), id, address);
                                        connections.insert(id, held);
                                        tasks.spawn(task);
                                    }
                                    Err(error) => {
                                        debug!(target, error, "tunnel: not connected");
                                        shared.send(Frame::Error(id, error)).await?;
                                    }
                                }
                            } else {
                                handle(&shared, &mut connections, frame).await?;
                            }
                        }
                        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                        Some(Ok(Message::Text(_))) => return Err("the server sends text in the tunnel".to_owned()),
                        Some(Ok(Message::Close(_))) | None => return Err("the server closed the tunnel".to_owned()),
                        Some(Err(error)) => return Err(error.to_string()),
                    }
                }
                Some(ended) = tasks.join_next() => {
                    if let Ok(id) = ended {
                        connections.remove(&id);
                    }
                }
                _ = ping.tick() => {
                    if heard.elapsed() > SILENCE {
                        return Err(format!("the server was silent for {} s", SILENCE.as_secs()));
                    }
                    // a full queue is no silence
                    let _ = shared.out.try_send(Message::Ping(Bytes::new()));
                }
                _ = sync.tick() => shared.send(Frame::Sync(connections.keys().copied().collect())).await?,
            }
        }
    };
    tokio::select! {
        ended = writing => ended,
        ended = reading => ended,
    }
}

/// Whether a connection may be made, and to where.
fn begin(targets: &Targets, count: usize, target: &str) -> Result<SocketAddr, String> {
    if count >= CONNECTIONS {
        return Err(format!("more than {CONNECTIONS} connections at once"));
    }
    targets.allowed(target).ok_or_else(|| "connect not allowed".to_owned())
}

async fn handle(shared: &Shared, connections: &mut BTreeMap<i64, Held>, frame: Frame) -> Result<(), String> {
    match frame {
        Frame::Data(id, bytes) => {
            let Some(held) = connections.get(&id) else {
                return shared.send(Frame::Error(id, format!("connection not found {id}"))).await;
            };
            let length = bytes.len();
            if !shared.room(length).await {
                connections.remove(&id);
                return shared.send(Frame::Error(id, "too much data while paused".to_owned())).await;
            }
            shared.waiting.fetch_add(length, Ordering::Relaxed);
            let waiting = held.flow.waiting.fetch_add(length, Ordering::SeqCst) + length;
            if held.bytes.send(bytes).is_err() {
                shared.waiting.fetch_sub(length, Ordering::Relaxed);
            } else if waiting > PAUSE_AT && !held.flow.pausing.load(Ordering::SeqCst) {
                // on its way before anybody may ask to go on: the other way round the server would pause for ever
                shared.send(Frame::Pause(id)).await?;
                held.flow.pausing.store(true, Ordering::SeqCst);
                // and all may be written by now, with nothing left that would ask
                if held.flow.resumes() {
                    return shared.send(Frame::Resume(id)).await;
                }
            }
        }
        // what has arrived still goes to the target
        Frame::Error(id, _) => drop(connections.remove(&id)),
        Frame::Pause(id) | Frame::Resume(id) => {
            if let Some(held) = connections.get(&id) {
                held.paused.send_replace(matches!(frame, Frame::Pause(_)));
            }
        }
        Frame::Connect(..) | Frame::Sync(_) | Frame::Other(_) => {}
    }
    Ok(())
}

/// A connection, and the task that carries it until it ends.
fn open(shared: Arc<Shared>, id: i64, address: SocketAddr) -> (Held, impl Future<Output = i64> + Send + use<>) {
    let (bytes, arrived) = mpsc::unbounded_channel();
    let (paused, pauses) = watch::channel(false);
    let held = Held { bytes, flow: Arc::default(), paused };
    let flow = held.flow.clone();
    let task = async move {
        let mut down = Down { shared: shared.clone(), id, arrived, flow };
        let outcome = carry(&shared, id, address, pauses, &mut down).await;
        down.forget();
        let text = outcome.err().unwrap_or_else(|| "EOF".to_owned());
        let _ = shared.send(Frame::Error(id, text.chars().take(100).collect())).await;
        id
    };
    (held, task)
}

async fn carry(
    shared: &Shared,
    id: i64,
    address: SocketAddr,
    mut paused: watch::Receiver<bool>,
    down: &mut Down,
) -> Result<(), String> {
    let connected = timeout(CONNECT, TcpStream::connect(address)).await;
    let stream = connected.map_err(|_| format!("{address} does not answer"))?.map_err(|e| format!("{address}: {e}"))?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let (mut from, mut to) = stream.into_split();
    let up = async {
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            if from.read_buf(&mut piece).await.map_err(|e| e.to_string())? == 0 {
                return Ok(());
            }
            if paused.wait_for(|paused| !*paused).await.is_err() {
                return Ok(());
            }
            shared.send(Frame::Data(id, piece.into())).await?;
        }
    };
    tokio::select! {
        ended = up => ended,
        ended = down.carry(&mut to) => ended,
    }
}

/// The way to a target: bytes that have arrived and are not written yet.
struct Down {
    shared: Arc<Shared>,
    id: i64,
    arrived: mpsc::UnboundedReceiver<Bytes>,
    flow: Arc<Flow>,
}

impl Down {
    async fn carry(&mut self, to: &mut (impl AsyncWrite + Unpin)) -> Result<(), String> {
        while let Some(bytes) = self.arrived.recv().await {
            let written = to.write_all(&bytes).await;
            self.count(bytes.len());
            if self.flow.resumes() {
                self.shared.send(Frame::Resume(self.id)).await?;
            }
            written.map_err(|e| e.to_string())?;
        }
        to.shutdown().await.map_err(|e| e.to_string())
    }

    /// Bytes that no longer wait.
    fn count(&self, length: usize) {
        self.shared.waiting.fetch_sub(length, Ordering::Relaxed);
        self.shared.drained.notify_waiters();
        self.flow.waiting.fetch_sub(length, Ordering::SeqCst);
    }

    /// Gives up what is left.
    fn forget(&mut self) {
        self.arrived.close();
        while let Ok(bytes) = self.arrived.try_recv() {
            self.count(bytes.len());
        }
    }
}
