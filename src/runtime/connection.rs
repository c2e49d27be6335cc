//! The agent's connection to one shim.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;

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

/// How long the shim may take to say or signal something.
const SAY: Duration = Duration::from_secs(3);
/// How long it may take to tell what it holds; that of a new agent's first question above all.
const TELL: Duration = Duration::from_secs(10);
/// How long it may take to make a container or to start one: it gives up earlier by itself.
const MAKE: Duration = Duration::from_secs(75);
/// How long it may take to end a container; it gives up earlier by itself.
const END: Duration = Duration::from_secs(15);

/// How long a shim may take to answer.
fn limit(request: &Request) -> Duration {
    match request {
        Request::Kill { .. } => SAY,
        Request::Info => TELL,
        Request::Create { .. } | Request::Start { .. } => MAKE,
        Request::Remove { .. } | Request::Shutdown => END,
    }
}

/// A living shim.
pub struct Connection {
    sandbox: String,
    pod_uid: String,
    /// Process id of the shim.
    pub shim: i32,
    /// Whole frames with the number of the request each is of, to the task that writes them one after the other.
    outbox: mpsc::UnboundedSender<(u64, Vec<u8>)>,
    writer: AbortHandle,
    /// `None` once the shim is gone.
    pending: Pending,
    next_id: AtomicU64,
    /// Set when the end of the shim is wanted.
    pub removing: AtomicBool,
    /// It has not answered, and is being looked at.
    suspected: AtomicBool,
    events: mpsc::UnboundedSender<RuntimeEvent>,
}

type Pending = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>>;

fn locked(pending: &Pending) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Connection {
    fn drop(&mut self) {
        // it may wait for a shim that does not read
        self.writer.abort();
    }
}

/// A question that nobody waits for any more is forgotten.
struct Asked<'a> {
    connection: &'a Connection,
    id: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        locked(&self.connection.pending).as_mut().map(|p| p.remove(&self.id));
    }
}

impl Connection {
    /// Connects to the shim of the sandbox directory `dir` and starts passing on its events.
    pub async fn open(
        dir: &Path,
        spec: &SandboxSpec,
        shim: i32,
        events: mpsc::UnboundedSender<RuntimeEvent>,
    ) -> Result<Arc<Self>, RuntimeError> {
        let unreachable = |message: String| RuntimeError::Unreachable { sandbox: spec.id.clone(), message };
        let opened = async {
            let stream =
                connect(dir).await.map_err(|e| unreachable(format!("connecting to {}: {e}", store::SOCKET)))?;
            let (reader, mut writer) = stream.into_split();
            let hello = protocol::encode(&ClientMessage::Hello { version: protocol::VERSION }).map_err(unreachable)?;
            writer.write_all(&hello).await.map_err(|e| unreachable(format!("greeting the shim: {e}")))?;
            Ok((reader, writer))
        };
        let silent = |_| RuntimeError::Silent { sandbox: spec.id.clone(), seconds: SAY.as_secs() };
        let (reader, writer) = timeout(SAY, opened).await.map_err(silent)??;
        let (outbox, frames) = mpsc::unbounded_channel();
        let pending: Pending = Arc::new(Mutex::new(Some(HashMap::new())));
        let writer = tokio::spawn(write_all(writer, frames, pending.clone())).abort_handle();
        let connection = Arc::new(Self {
            sandbox: spec.id.clone(),
            pod_uid: spec.pod_uid.clone(),
            shim,
            outbox,
            writer,
            pending,
            next_id: AtomicU64::new(1),
            removing: AtomicBool::new(false),
            suspected: AtomicBool::new(false),
            events: events.clone(),
        });
        // Held weakly: the shim's end of file, or ours when the runtime is dropped, ends the task.
        tokio::spawn(read_all(Arc::downgrade(&connection), reader, events));
        Ok(connection)
    }

    /// The pod the sandbox belongs to.
    pub fn pod_uid(&self) -> &str {
        &self.pod_uid
    }

    /// Asks one thing and waits for the answer, as long as that kind of question may take. May be given up at any time:
    /// only whole frames are written, and none of a question that was given up before its turn.
    pub async fn ask(&self, request: Request) -> Result<Reply, RuntimeError> {
        let limit = limit(&request);
        self.ask_within(request, limit).await
    }

    async fn ask_within(&self, request: Request, limit: Duration) -> Result<Reply, RuntimeError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let frame = protocol::encode(&ClientMessage::Request { id, request }).map_err(|e| self.unreachable(e))?;
        let (sender, answer) = oneshot::channel();
        match locked(&self.pending).as_mut() {
            Some(pending) => pending.insert(id, sender),
            None => return Err(self.unreachable("the shim has ended".into())),
        };
        let _asked = Asked { connection: self, id };
        if self.outbox.send((id, frame)).is_err() {
            return Err(self.unreachable("sending a request: the shim has ended".into()));
        }
        match timeout(limit, answer).await {
            Ok(Ok(result)) => result.map_err(RuntimeError::Shim),
            Ok(Err(_)) => Err(self.unreachable("the shim ended before it answered".into())),
            Err(_) => Err(RuntimeError::Silent { sandbox: self.sandbox.clone(), seconds: limit.as_secs() }),
        }
    }

    /// After an answer that did not come: true when the shim is stuck, and not just busy making a container. False also
    /// while somebody else asks that already.
    pub async fn is_stuck(&self) -> bool {
        if self.suspected.swap(true, Ordering::AcqRel) {
            return false;
        }
        let answer = self.ask_within(Request::Info, MAKE).await;
        self.suspected.store(false, Ordering::Release);
        matches!(answer, Err(RuntimeError::Silent { .. }))
    }

    /// True while an answer is late: nothing that is urgent is asked.
    pub fn is_suspected(&self) -> bool {
        self.suspected.load(Ordering::Acquire)
    }

    /// The shim counts as ended: whoever waits for an answer gets an error, and the pod hears that its sandbox is lost.
    pub fn lose(&self) {
        locked(&self.pending).take();
        if !self.removing.swap(true, Ordering::AcqRel) {
            let event = RuntimeEvent::SandboxLost { sandbox: self.sandbox.clone(), pod_uid: self.pod_uid.clone() };
            // No receiver: the agent is ending.
            let _ = self.events.send(event);
        }
    }

    fn unreachable(&self, message: String) -> RuntimeError {
        RuntimeError::Unreachable { sandbox: self.sandbox.clone(), message }
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
                let waiting = locked(&self.pending).as_mut().and_then(|p| p.remove(&id));
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

/// Writes one frame after the other, those of questions that were given up left out.
async fn write_all(mut writer: OwnedWriteHalf, mut frames: mpsc::UnboundedReceiver<(u64, Vec<u8>)>, pending: Pending) {
    while let Some((id, frame)) = frames.recv().await {
        if !locked(&pending).as_ref().is_some_and(|p| p.contains_key(&id)) {
            continue;
        }
        if let Err(e) = writer.write_all(&frame).await {
            // the reader hears of its end as well
            tracing::debug!("writing to a shim: {e}");
            return;
        }
    }
}

async fn read_all(
    connection: std::sync::Weak<Connection>,
    mut reader: OwnedReadHalf,
    events: mpsc::UnboundedSender<RuntimeEvent>,
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
                    return lost(&connection);
                }
            };
            if let Some(event) = event
                && events.send(event).is_err()
            {
                return;
            }
        }
    }
    lost(&connection);
}

fn lost(connection: &std::sync::Weak<Connection>) {
    if let Some(connection) = connection.upgrade() {
        connection.lose();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shim that accepts and says nothing until told to, and the connection to it.
    async fn mute(name: &str) -> (UnixStream, Arc<Connection>, mpsc::UnboundedReceiver<RuntimeEvent>) {
        let dir = std::env::temp_dir().join(format!("pikelet-connection-{name}-{}", std::process::id()));
        crate::files::dir(&dir, 0o700).unwrap();
        let listener = tokio::net::UnixListener::bind(dir.join(store::SOCKET)).unwrap();
        let (tx, events) = mpsc::unbounded_channel();
        let spec = SandboxSpec { id: "s".into(), pod_uid: "u".into(), ..SandboxSpec::default() };
        let connection = Connection::open(&dir, &spec, 1, tx).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        std::fs::remove_file(dir.join(store::SOCKET)).unwrap();
        std::fs::remove_dir(&dir).unwrap();
        (stream, connection, events)
    }

    async fn heard(stream: &mut UnixStream, received: &mut Vec<u8>) -> ClientMessage {
        loop {
            if let Some(message) = protocol::decode(received).unwrap() {
                return message;
            }
            assert!(stream.read_buf(received).await.unwrap() > 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_shim_that_says_nothing_is_not_waited_for() {
        let (_stream, connection, _events) = mute("silent").await;
        let asked = connection.ask(Request::Info).await;
        assert!(matches!(asked, Err(RuntimeError::Silent { seconds: 10, .. })), "{asked:?}");
        assert!(connection.is_stuck().await);
        assert!(locked(&connection.pending).as_ref().unwrap().is_empty(), "nothing is left of a question");
    }

    #[tokio::test]
    async fn a_question_given_up_spoils_nothing() {
        let (mut stream, connection, _events) = mute("given-up").await;
        // more than the socket holds: its frame is cut wherever the socket is full when it is given up
        let spec = crate::runtime::ContainerSpec { args: vec!["x".repeat(3 << 20)], ..Default::default() };
        let long = connection.ask(Request::Create { spec: Box::new(spec) });
        assert!(timeout(Duration::from_millis(100), long).await.is_err());
        let unheard = connection.ask(Request::Shutdown);
        assert!(timeout(Duration::from_millis(100), unheard).await.is_err());
        let asking = tokio::spawn({
            let connection = connection.clone();
            async move { connection.ask(Request::Info).await }
        });
        tokio::task::yield_now().await;
        let mut received = Vec::new();
        assert!(matches!(heard(&mut stream, &mut received).await, ClientMessage::Hello { .. }));
        let ClientMessage::Request { request: Request::Create { .. }, .. } = heard(&mut stream, &mut received).await
        else {
            panic!("the frame that was begun is whole");
        };
        let ClientMessage::Request { id, request: Request::Info } = heard(&mut stream, &mut received).await else {
            panic!("what was given up before it was written is not asked");
        };
        let answer = protocol::encode(&ShimMessage::Response { id, result: Ok(Reply::Done) }).unwrap();
        stream.write_all(&answer).await.unwrap();
        assert!(matches!(asking.await.unwrap(), Ok(Reply::Done)));
    }

    #[tokio::test]
    async fn a_lost_shim_is_told_once() {
        let (stream, connection, mut events) = mute("lost").await;
        connection.lose();
        drop(stream);
        assert!(matches!(events.recv().await, Some(RuntimeEvent::SandboxLost { .. })));
        assert!(matches!(connection.ask(Request::Info).await, Err(RuntimeError::Unreachable { .. })));
        drop(connection);
        assert!(events.recv().await.is_none(), "once");
    }
}
