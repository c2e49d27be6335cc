//! Port-forward: a client's channels and connections into a pod's network namespace.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use axum::extract::ws::WebSocket;
use bytes::Bytes;
use http::StatusCode;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::queue::{self, Budget};
use super::upgrade::{Refused, Upgrade};
use super::websocket::{self, Framing};
use super::{Inlet, Outlet, PIECE};
use crate::network;
use crate::server::spdy::{Session, Stream};

/// How long the second stream of a pair may take.
const PAIRING: Duration = Duration::from_secs(30);
/// Streams that wait for their other half. What they were sent counts for the session's budget; kubectl opens the streams of
/// many connections at once in any order.
const MAX_WAITING: usize = 128;
/// Longest id of a request in bytes; kubectl's are numbers.
const MAX_ID: usize = 64;
/// Most ports of a websocket: each is dialled at once.
const MAX_PORTS: usize = 32;
/// Most connections of one session, and of all: each has a descriptor of the agent's, and of the pod.
const MAX_OF_SESSION: usize = 256;
const MAX_OF_ALL: usize = 1024;
static CONNECTIONS: Semaphore = Semaphore::const_new(MAX_OF_ALL);
/// How long a client may take after the upgrade.
const OPENING: Duration = Duration::from_secs(30);

/// SPDY's version.
pub const SPDY: [&str; 1] = ["portforward.k8s.io"];
/// Websocket's versions: SPDY inside, or channels of its own.
pub const WEBSOCKET: [&str; 5] =
    [TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "portforward.k8s.io", "base64.portforward.k8s.io"];
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Serves an upgraded connection until its client goes; `netns` is the pod's network namespace.
pub async fn serve(upgrade: Upgrade, netns: PathBuf, ports: Vec<u16>) {
    match upgrade {
        Upgrade::Spdy(on, _) => {
            if let Ok(Ok(upgraded)) = timeout(OPENING, on).await {
                streams(Session::start(TokioIo::new(upgraded)), netns).await;
            }
        }
        Upgrade::Websocket(socket, version) => {
            let Ok(Ok(socket)) = timeout(OPENING, socket).await else { return };
            if version == TUNNEL {
                streams(Session::start(websocket::tunnel(socket)), netns).await;
            } else {
                let framing = framing(&version);
                channels(socket, framing, netns, ports).await;
            }
        }
    }
}

fn framing(version: &str) -> Framing {
    if version.contains("base64") { Framing::Base64 } else { Framing::Binary }
}

/// Whether so many ports can be forwarded by what was negotiated; only websockets with channels of their own name ports.
pub fn check(upgrade: &Upgrade, ports: &[u16]) -> Result<(), Refused> {
    let Upgrade::Websocket(_, version) = upgrade else { return Ok(()) };
    // two channels for each
    let most = (framing(version).channels() as usize / 2).min(MAX_PORTS);
    if version == TUNNEL || ports.len() <= most {
        return Ok(());
    }
    let message = format!(
        "{} ports to forward by one websocket of {version:?}: at most {most} can be: use a websocket for each port",
        ports.len()
    );
    Err((StatusCode::BAD_REQUEST, message))
}

/// Half of a request.
struct Half {
    request: String,
    /// Of a data stream.
    port: Option<Result<u16, String>>,
    inlet: Inlet,
    outlet: Outlet,
}

impl Half {
    /// What of a stream's headers is of use; the rest is not kept.
    fn of(stream: Stream) -> Self {
        let data = stream.header("streamtype") == Some("data");
        let own = if data { stream.id.saturating_sub(2) } else { stream.id };
        let request = stream.header("requestid").map_or_else(|| own.to_string(), str::to_owned);
        let port = stream.header("port").and_then(|p| p.parse().ok());
        let port = data.then(|| port.ok_or_else(|| "the stream names no port".to_owned()));
        Self { request, port, inlet: stream.inlet, outlet: stream.outlet }
    }
}

/// Streams come in pairs of one request: data and error.
async fn streams(mut session: Session, netns: PathBuf) {
    let gone = session.connection.gone.clone();
    // the oldest first
    let mut waiting: VecDeque<(Instant, Half)> = VecDeque::new();
    let mut forwards = JoinSet::new();
    loop {
        let end = waiting.front().map(|(end, _)| *end);
        let stream = tokio::select! {
            stream = session.streams.recv() => stream,
            () = async { match end { Some(end) => sleep_until(end).await, None => std::future::pending().await } } => {
                if let Some((_, half)) = waiting.pop_front() {
                    debug!(half.request, "port-forward: a stream without its other half is dropped");
                    half.outlet.refuse().await;
                }
                continue;
            }
            Some(_) = forwards.join_next() => continue,
            () = gone.cancelled() => break,
        };
        let Some(stream) = stream else { break };
        let half = Half::of(stream);
        let other = waiting.iter().position(|(_, other)| other.request == half.request);
        let Some((_, other)) = other.and_then(|at| waiting.remove(at)) else {
            if waiting.len() < MAX_WAITING && half.request.len() <= MAX_ID {
                waiting.push_back((Instant::now() + PAIRING, half));
            } else {
                debug!(half.request, "port-forward: too many streams without their other half, or no request's id");
                half.outlet.refuse().await;
            }
            continue;
        };
        let (mut data, error) = if half.port.is_some() { (half, other) } else { (other, half) };
        let port = data.port.take().unwrap_or_else(|| Err("the request has two error streams".to_owned()));
        let port = if forwards.len() < MAX_OF_SESSION { port } else { Err(too_many("session", MAX_OF_SESSION)) };
        let netns = netns.clone();
        let error = error.outlet;
        forwards.spawn(async move {
            let outcome = match port {
                Ok(port) => forward(&netns, port, data.inlet, data.outlet).await,
                Err(message) => Err(message),
            };
            tell(error, outcome).await;
        });
    }
    forwards.shutdown().await;
    // what they hold ends with them
    drop(waiting);
    session.connection.finish().await;
}

/// Channel 2n carries the data of the n-th port, 2n + 1 its error; each begins with the port.
async fn channels(socket: WebSocket, framing: Framing, netns: PathBuf, ports: Vec<u16>) {
    let (mut inlets, mut arriving) = (Vec::new(), Vec::new());
    let budget = Budget::default();
    for _ in &ports {
        let (feeder, inlet) = queue::channel(&budget);
        inlets.extend([Some(feeder), None]);
        arriving.push(inlet);
    }
    let connection = websocket::start(socket, framing, inlets);
    let gone = connection.gone.clone();
    let mut forwards = JoinSet::new();
    for ((number, port), inlet) in ports.into_iter().enumerate().zip(arriving) {
        let number = u32::try_from(number).unwrap_or_default();
        let (data, error) = (connection.outlet(2 * number), connection.outlet(2 * number + 1));
        let netns = netns.clone();
        forwards.spawn(async move {
            let named = Bytes::copy_from_slice(&port.to_le_bytes());
            if data.send(named.clone()).await.is_ok() && error.send(named).await.is_ok() {
                let outcome = forward(&netns, port, inlet, data).await;
                tell(error, outcome).await;
            }
        });
    }
    tokio::select! {
        () = async { while forwards.join_next().await.is_some() {} } => {}
        () = gone.cancelled() => {}
    }
    forwards.shutdown().await;
    connection.finish().await;
}

async fn tell(error: Outlet, outcome: Result<(), String>) {
    if let Err(message) = outcome {
        // a client that is gone needs not know
        let _ = error.send(Bytes::from(message)).await;
    }
    error.end().await;
}

fn too_many(whose: &str, most: usize) -> String {
    format!("more than {most} connections are forwarded by this {whose} at once")
}

/// One connection, both ways, each of which may end before the other.
async fn forward(netns: &std::path::Path, port: u16, mut from: Inlet, to: Outlet) -> Result<(), String> {
    let Ok(_place) = CONNECTIONS.try_acquire() else {
        to.end().await;
        return Err(too_many("node", MAX_OF_ALL));
    };
    let connected = network::dial(netns, port).await;
    let stream = match connected {
        Ok(stream) => stream,
        Err(error) => {
            to.end().await;
            return Err(format!("error forwarding port {port} to the pod: {error}"));
        }
    };
    let (reader, mut writer) = stream.into_split();
    let inward = async {
        while let Some(data) = from.recv().await {
            if writer.write_all(&data).await.is_err() {
                return;
            }
        }
        // the program may have ended already
        let _ = writer.shutdown().await;
    };
    let outward = async {
        // no memory is taken for a program that says nothing
        while reader.readable().await.is_ok() {
            let mut piece = Vec::with_capacity(PIECE);
            match reader.try_read_buf(&mut piece) {
                Ok(1..) if to.send(Bytes::from(piece)).await.is_ok() => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                _ => break,
            }
        }
        to.end().await;
    };
    tokio::join!(inward, outward);
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::server::spdy::frame;
    use crate::server::spdy::headers::Deflater;

    fn opened(stream: u32, headers: &[(&str, &str)], deflater: &mut Deflater) -> BytesMut {
        let block = deflater.write(headers).unwrap();
        let mut out = BytesMut::new();
        out.put_slice(&[0x80, 3, 0, 1]);
        out.put_u32(10 + u32::try_from(block.len()).unwrap());
        out.put_u32(stream);
        out.put_slice(&[0; 6]);
        out.put_slice(&block);
        out
    }

    /// What a session answers within a while: kinds of its control frames, with the streams they are about.
    async fn answers(client: &mut DuplexStream, within: Duration) -> Vec<(u16, u32)> {
        let mut found = Vec::new();
        let end = Instant::now() + within;
        while let Ok(Ok(kind)) = tokio::time::timeout_at(end, client.read_u32()).await {
            let mut body = vec![0; client.read_u32().await.unwrap() as usize & 0xff_ffff];
            client.read_exact(&mut body).await.unwrap();
            found.push((kind as u16, u32::from_be_bytes(body[..4].try_into().unwrap())));
        }
        found
    }

    const REPLY: u16 = 2;
    const RESET: u16 = 3;

    #[tokio::test(start_paused = true)]
    async fn each_stream_waits_for_its_own_time() {
        let (mut client, server) = duplex(1 << 20);
        let serving = tokio::spawn(streams(Session::start(server), "/none".into()));
        let mut deflater = Deflater::new().unwrap();
        let error = |id| [("streamtype", "error"), ("requestid", id)];
        client.write_all(&opened(1, &error("a"), &mut deflater)).await.unwrap();
        assert_eq!(answers(&mut client, Duration::from_secs(20)).await, [(REPLY, 1)]);
        client.write_all(&opened(3, &error("b"), &mut deflater)).await.unwrap();
        assert_eq!(answers(&mut client, Duration::from_secs(15)).await, [(REPLY, 3), (RESET, 1)]);
        assert_eq!(answers(&mut client, Duration::from_secs(20)).await, [(RESET, 3)]);
        drop(client);
        serving.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn streams_without_their_other_half_are_few_and_hold_little() {
        let (mut client, server) = duplex(64 << 10);
        let _serving = tokio::spawn(streams(Session::start(server), "/none".into()));
        let mut deflater = Deflater::new().unwrap();
        let mut replies = Vec::new();
        for n in 0..=u32::try_from(MAX_WAITING).unwrap() {
            let id = n.to_string();
            let headers = [("streamtype", "data"), ("requestid", id.as_str()), ("port", "80")];
            client.write_all(&opened(2 * n + 1, &headers, &mut deflater)).await.unwrap();
            replies.extend(answers(&mut client, Duration::from_millis(1)).await);
        }
        let last = 2 * u32::try_from(MAX_WAITING).unwrap() + 1;
        assert_eq!(replies.iter().filter(|(kind, _)| *kind == RESET).collect::<Vec<_>>(), [&(RESET, last)]);
        // what nobody reads is taken up to the session's budget, and then no more
        let mut taken = 0;
        let piece = vec![0; 16 << 10];
        for n in 0..128 {
            let mut data = BytesMut::new();
            frame::data_header(&mut data, 2 * n + 1, false, piece.len());
            data.put_slice(&piece);
            match timeout(Duration::from_millis(10), client.write_all(&data)).await {
                Ok(written) => written.unwrap(),
                Err(_) => break,
            }
            taken += piece.len();
        }
        assert!(taken < (1 << 20) + (256 << 10), "{taken} bytes were taken");
    }

    #[test]
    fn ports_of_a_websocket_are_bounded() {
        let websocket = |version: &str| Upgrade::Websocket(tokio::sync::oneshot::channel().1, version.to_owned());
        assert!(check(&websocket("v4.channel.k8s.io"), &[80; 32]).is_ok());
        let (status, message) = check(&websocket("v4.channel.k8s.io"), &[80; 33]).unwrap_err();
        assert_eq!(status, 400);
        assert!(message.contains("33 ports"), "{message}");
        assert!(check(&websocket("v4.base64.channel.k8s.io"), &[80; 5]).is_ok());
        assert!(check(&websocket("v4.base64.channel.k8s.io"), &[80; 6]).is_err());
        assert!(check(&websocket(TUNNEL), &[80; 600]).is_ok());
    }
}
