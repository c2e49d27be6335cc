//! The agent's connection to one shim.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::protocol::{self, ClientMessage, Reply, Request, ShimMessage};
use super::store;
use super::types::{RuntimeError, RuntimeEvent, SandboxSpec};

type Answer = Result<Reply, String>;

/// Connects to the shim of the sandbox directory `dir`.
pub async fn connect(dir: &Path) -> std::io::Result<UnixStream> {
    // By way of a descriptor: the whole path may be longer than a socket address can be.
    let dir = std::fs::File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), store::SOCKET)).await
}

/// A living shim.
pub struct Connection {
    sandbox: String,
    pod_uid: String,
    /// Process id of the shim.
    pub shim: i32,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    /// `None` once the shim is gone.
    pending: Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>,
    next_id: AtomicU64,
    /// Set when the end of the shim is wanted.
    pub removing: AtomicBool,
}

impl Connection {
    /// Connects to the shim of the sandbox directory `dir` and starts passing on its events.
    pub async fn open(
        dir: &Path,
        spec: &SandboxSpec,
        shim: i32,
        events: mpsc::Sender<RuntimeEvent>,
    ) -> Result<Arc<Self>, RuntimeError> {
        let unreachable = |message: String| RuntimeError::Unreachable { sandbox: spec.id.clone(), message };
        let stream = connect(dir).await.map_err(|e| unreachable(format!("connecting to {}: {e}", store::SOCKET)))?;
        let (reader, mut writer) = stream.into_split();
        let hello = protocol::encode(&ClientMessage::Hello { version: protocol::VERSION }).map_err(unreachable)?;
        writer.write_all(&hello).await.map_err(|e| unreachable(format!("greeting the shim: {e}")))?;
        let connection = Arc::new(Self {
            sandbox: spec.id.clone(),
            pod_uid: spec.pod_uid.clone(),
            shim,
            writer: tokio::sync::Mutex::new(writer),
            pending: Mutex::new(Some(HashMap::new())),
            next_id: AtomicU64::new(1),
            removing: AtomicBool::new(false),
        });
        // Held weakly: the shim's end of file, or ours when the runtime is dropped, ends the task.
        tokio::spawn(read_all(Arc::downgrade(&connection), reader, events));
        Ok(connection)
    }

    /// The pod the sandbox belongs to.
    pub fn pod_uid(&self) -> &str {
        &self.pod_uid
    }

    /// Asks one thing and waits for the answer.
    pub async fn ask(&self, request: Request) -> Result<Reply, RuntimeError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let frame = protocol::encode(&ClientMessage::Request { id, request }).map_err(|e| self.unreachable(e))?;
        let (sender, answer) = oneshot::channel();
        match self.pending().as_mut() {
            Some(pending) => pending.insert(id, sender),
            None => return Err(self.unreachable("the shim has ended".into())),
        };
        let written = self.writer.lock().await.write_all(&frame).await;
        if let Err(e) = written {
            self.pending().as_mut().map(|p| p.remove(&id));
            return Err(self.unreachable(format!("sending a request: {e}")));
        }
        match answer.await {
            Ok(result) => result.map_err(RuntimeError::Shim),
            Err(_) => Err(self.unreachable("the shim ended before it answered".into())),
        }
    }

    fn unreachable(&self, message: String) -> RuntimeError {
        RuntimeError::Unreachable { sandbox: self.sandbox.clone(), message }
    }

    fn pending(&self) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The event of one message, if it is one; answers are handed to who waits for them.
    fn take(&self, message: ShimMessage) -> Option<RuntimeEvent> {
        match message {
            ShimMessage::Hello { version } => {
                if version != protocol::VERSION {
                    tracing::warn!(sandbox = self.sandbox, version, "shim of another protocol version");
                }
                None
            }
            // only on stream sessions
            ShimMessage::Streaming { .. } | ShimMessage::Ended { .. } => None,
            ShimMessage::Response { id, result } => {
                let waiting = self.pending().as_mut().and_then(|p| p.remove(&id));
                // Whoever asked may have given up.
                let _ = waiting.map(|w| w.send(result));
                None
            }
            ShimMessage::Exited { container, exit } => Some(RuntimeEvent::ContainerExited {
                sandbox: self.sandbox.clone(),
                pod_uid: self.pod_uid.clone(),
                container,
                exit,
            }),
        }
    }
}

async fn read_all(
    connection: std::sync::Weak<Connection>,
    mut reader: OwnedReadHalf,
    events: mpsc::Sender<RuntimeEvent>,
) {
    let mut received = Vec::new();
    loop {
        let read = tokio::select! {
            read = reader.read_buf(&mut received) => read,
            () = events.closed() => return,
        };
        match read {
            Ok(count) if count > 0 => {}
            Ok(_) => break,
            Err(e) => {
                tracing::warn!("reading from a shim: {e}");
                break;
            }
        }
        loop {
            let event = match protocol::decode(&mut received) {
                Ok(Some(message)) => match connection.upgrade() {
                    Some(connection) => connection.take(message),
                    None => return,
                },
                Ok(None) => break,
                Err(e) => {
                    tracing::warn!("reading from a shim: {e}");
                    return lost(&connection, &events).await;
                }
            };
            if let Some(event) = event
                && events.send(event).await.is_err()
            {
                return;
            }
        }
    }
    lost(&connection, &events).await;
}

async fn lost(connection: &std::sync::Weak<Connection>, events: &mpsc::Sender<RuntimeEvent>) {
    let Some(connection) = connection.upgrade() else { return };
    // Everyone waiting for an answer gets an error.
    connection.pending().take();
    if !connection.removing.load(Ordering::Acquire) {
        let event =
            RuntimeEvent::SandboxLost { sandbox: connection.sandbox.clone(), pod_uid: connection.pod_uid.clone() };
        // No receiver: the agent is ending.
        let _ = events.send(event).await;
    }
}
