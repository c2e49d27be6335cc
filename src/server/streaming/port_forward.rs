//! Port-forward: a client's channels and connections into a pod's network namespace.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use axum::extract::ws::WebSocket;
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::debug;

use super::upgrade::Upgrade;
use super::websocket::{self, Framing};
use super::{Inlet, Outlet, PIECE};
use crate::network;
use crate::server::spdy::{Session, Stream};

/// How long the second stream of a pair may take.
const PAIRING: Duration = Duration::from_secs(30);
/// Streams that wait for their other half.
const MAX_WAITING: usize = 256;
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
                let framing = if version.contains("base64") { Framing::Base64 } else { Framing::Binary };
                channels(socket, framing, netns, ports).await;
            }
        }
    }
}

/// Streams come in pairs of one request: data and error.
async fn streams(mut session: Session, netns: PathBuf) {
    let gone = session.connection.gone.clone();
    let mut waiting: HashMap<String, Stream> = HashMap::new();
    let mut forwards = JoinSet::new();
    loop {
        let pairing = if waiting.is_empty() { None } else { Some(tokio::time::sleep(PAIRING)) };
        let stream = tokio::select! {
            stream = session.streams.recv() => stream,
            () = async { match pairing { Some(s) => s.await, None => std::future::pending().await } } => {
                debug!("port-forward: streams without their other half are dropped");
                waiting.clear();
                continue;
            }
            Some(_) = forwards.join_next() => continue,
            () = gone.cancelled() => break,
        };
        let Some(stream) = stream else { break };
        let kind = stream.header("streamtype").unwrap_or_default().to_owned();
        let own = if kind == "data" { stream.id.saturating_sub(2) } else { stream.id };
        let request = stream.header("requestid").map_or_else(|| own.to_string(), str::to_owned);
        let Some(other) = waiting.remove(&request) else {
            if waiting.len() < MAX_WAITING {
                waiting.insert(request, stream);
            }
            continue;
        };
        let (data, error) = if kind == "data" { (stream, other) } else { (other, stream) };
        let port = data.header("port").and_then(|p| p.parse().ok());
        let netns = netns.clone();
        forwards.spawn(async move {
            let outcome = match port {
                Some(port) => forward(&netns, port, data.inlet, data.outlet).await,
                None => Err("the stream names no port".to_owned()),
            };
            tell(error.outlet, outcome).await;
        });
    }
    forwards.shutdown().await;
    session.connection.finish().await;
}

/// Channel 2n carries the data of the n-th port, 2n + 1 its error; each begins with the port.
async fn channels(socket: WebSocket, framing: Framing, netns: PathBuf, ports: Vec<u16>) {
    let (mut inlets, mut arriving) = (Vec::new(), Vec::new());
    for _ in &ports {
        let (sender, inlet) = websocket::inlet();
        inlets.extend([sender, None]);
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

/// One connection, both ways, each of which may end before the other.
async fn forward(netns: &std::path::Path, port: u16, mut from: Inlet, to: Outlet) -> Result<(), String> {
    let connected = network::dial(netns, port).await;
    let stream = match connected {
        Ok(stream) => stream,
        Err(error) => {
            to.end().await;
            return Err(format!("error forwarding port {port} to the pod: {error}"));
        }
    };
    let (mut reader, mut writer) = stream.into_split();
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
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            match reader.read_buf(&mut piece).await {
                Ok(1..) if to.send(Bytes::from(piece)).await.is_ok() => {}
                _ => break,
            }
        }
        to.end().await;
    };
    tokio::join!(inward, outward);
    Ok(())
}
