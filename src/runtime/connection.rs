//! The agent's connection to one shim: calls with their replies, and the shim's own messages.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::protocol::{self, Call, Reply, Request, VERSION};
use super::types::{ContainerInfo, RuntimeEvent};

type Pending = Arc<Mutex<Option<BTreeMap<u64, oneshot::Sender<Result<i64, String>>>>>>;

/// See the module.
pub struct Connection {
    write: tokio::sync::Mutex<OwnedWriteHalf>,
    pending: Pending,
    next: AtomicU64,
}

async fn receive(from: &mut OwnedReadHalf) -> io::Result<Reply> {
    let mut prefix = [0; 4];
    from.read_exact(&mut prefix).await?;
    let mut frame = vec![0; protocol::frame_length(prefix)?];
    from.read_exact(&mut frame).await?;
    Ok(serde_json::from_slice(&frame)?)
}

impl Connection {
    /// Connects; returns what the shim holds. Its messages go to `events` until it is gone.
    pub async fn open(
        socket: &Path,
        sandbox: String,
        pod_uid: String,
        events: mpsc::Sender<RuntimeEvent>,
    ) -> io::Result<(Self, Vec<ContainerInfo>)> {
        let (mut read, write) = UnixStream::connect(socket).await?.into_split();
        let containers = match receive(&mut read).await? {
            Reply::Hello { version, containers } if version == VERSION => containers,
            Reply::Hello { version, .. } => {
                return Err(io::Error::other(format!("the shim speaks protocol {version}, this agent {VERSION}")));
            }
            _ => return Err(io::Error::other("the shim did not greet")),
        };
        let pending: Pending = Arc::new(Mutex::new(Some(BTreeMap::new())));
        let replies = pending.clone();
        tokio::spawn(async move {
            while let Ok(message) = receive(&mut read).await {
                match message {
                    Reply::Done { id, result } => {
                        let waiting =
                            replies.lock().unwrap_or_else(PoisonError::into_inner).as_mut().and_then(|p| p.remove(&id));
                        // the caller may have given up
                        let _ = waiting.map(|w| w.send(result));
                    }
                    Reply::Exited { container, exit } => {
                        let (sandbox, pod_uid) = (sandbox.clone(), pod_uid.clone());
                        let event = RuntimeEvent::ContainerExited { sandbox, pod_uid, container, exit };
                        if events.send(event).await.is_err() {
                            return;
                        }
                    }
                    Reply::Hello { .. } => {}
                }
            }
            // every call under way fails, and every later one
            let _ = replies.lock().unwrap_or_else(PoisonError::into_inner).take();
            // nobody listens when the agent ends
            let _ = events.send(RuntimeEvent::SandboxLost { sandbox, pod_uid }).await;
        });
        let connection = Self { write: tokio::sync::Mutex::new(write), pending, next: AtomicU64::new(1) };
        Ok((connection, containers))
    }

    /// Makes a call and waits for its reply.
    pub async fn call(&self, call: Call) -> io::Result<Result<i64, String>> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        match self.pending.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(pending) => drop(pending.insert(id, tx)),
            None => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        let frame = protocol::encode(&Request { id, call })?;
        self.write.lock().await.write_all(&frame).await?;
        rx.await.map_err(|_| io::Error::other("the shim ended during the call"))
    }
}
