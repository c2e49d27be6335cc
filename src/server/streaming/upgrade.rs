//! From an HTTP request to the channels of exec and attach: SPDY or websocket, and which version.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::queue::{self, Budget};
use super::websocket::{self, Framing};
use super::{Connection, Inlet, Outlet};
use crate::runtime::Wanted;
use crate::server::spdy::{Session, Stream};

/// How long a client may take to open the streams it has announced.
const OPENING: Duration = Duration::from_secs(30);
const STREAM_VERSION: &str = "X-Stream-Protocol-Version";
const ACCEPTED_VERSIONS: &str = "X-Accepted-Stream-Protocol-Versions";

/// Why a request goes no further: HTTP status and message.
pub type Refused = (StatusCode, String);

/// A connection that becomes something else once its answer is sent.
pub enum Upgrade {
    /// SPDY/3.1, and the negotiated stream protocol.
    Spdy(hyper::upgrade::OnUpgrade, String),
    /// A websocket, and the negotiated subprotocol.
    Websocket(tokio::sync::oneshot::Receiver<WebSocket>, String),
}

/// Chooses among what both sides speak; `spdy` and `websocket` list what is spoken here, best first.
pub async fn negotiate(
    request: Request<axum::body::Body>,
    spdy: &[&'static str],
    websocket: &[&'static str],
) -> Result<(Response, Upgrade), Response> {
    let asked = request.headers().get(header::UPGRADE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let asked = asked.to_ascii_lowercase();
    if asked.starts_with("websocket") {
        return negotiate_websocket(request, websocket).await;
    }
    if !asked.starts_with("spdy/3.1") {
        let message = "Upgrade request required: SPDY/3.1 or websocket".to_owned();
        return Err((StatusCode::BAD_REQUEST, message).into_response());
    }
    let Some(version) = choose(request.headers(), spdy) else {
        let message = format!("unable to upgrade: no {STREAM_VERSION} that is spoken here: {}", spdy.join(", "));
        let mut refused = (StatusCode::FORBIDDEN, message).into_response();
        for version in spdy {
            refused.headers_mut().append(ACCEPTED_VERSIONS, HeaderValue::from_static(version));
        }
        return Err(refused);
    };
    tracing::debug!(protocol = version, "SPDY");
    let answer = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1")
        .header(STREAM_VERSION, version)
        .body(axum::body::Body::empty())
        .map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response())?;
    Ok((answer, Upgrade::Spdy(hyper::upgrade::on(request), version.to_owned())))
}

fn choose(headers: &HeaderMap, spoken: &[&'static str]) -> Option<&'static str> {
    let offered = headers.get_all(STREAM_VERSION).iter().filter_map(|v| v.to_str().ok());
    let offered: Vec<&str> = offered.flat_map(|v| v.split(',')).map(str::trim).collect();
    // in the client's order: it names the best first
    offered.iter().find_map(|o| spoken.iter().find(|s| *s == o)).copied()
}

async fn negotiate_websocket(
    request: Request<axum::body::Body>,
    spoken: &[&'static str],
) -> Result<(Response, Upgrade), Response> {
    let (mut parts, _) = request.into_parts();
    let offered = parts.headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL);
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await.map_err(IntoResponse::into_response)?;
    let upgrade = upgrade
        .max_message_size(websocket::MAX_MESSAGE)
        .max_frame_size(websocket::MAX_MESSAGE)
        .protocols(spoken.iter().copied());
    let chosen = upgrade.selected_protocol().and_then(|p| p.to_str().ok()).unwrap_or_default().to_owned();
    if offered && chosen.is_empty() {
        let message = format!("no websocket subprotocol that is spoken here: {}", spoken.join(", "));
        return Err((StatusCode::BAD_REQUEST, message).into_response());
    }
    tracing::debug!(protocol = chosen, "websocket");
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let answer = upgrade.on_upgrade(|socket| async move {
        // a handler that has ended closes the socket
        let _ = sender.send(socket);
    });
    Ok((answer, Upgrade::Websocket(receiver, chosen)))
}

/// The channels of exec and attach.
pub struct Channels {
    /// Standard input.
    pub stdin: Option<Inlet>,
    /// Standard output.
    pub stdout: Option<Outlet>,
    /// Standard error.
    pub stderr: Option<Outlet>,
    /// How it ended.
    pub error: Outlet,
    /// The end is told as a `Status` object (v4 and later), not as text.
    pub status: bool,
    /// Sizes of the terminal.
    pub resize: Option<Inlet>,
    /// What they share.
    pub connection: Connection,
}

/// SPDY's versions of the remote command protocol.
pub const SPDY_COMMAND: [&str; 4] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
/// Websocket's versions of it.
pub const WEBSOCKET_COMMAND: [&str; 5] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io"];

/// The channels of an upgraded connection; `None` when the client did not open them.
pub async fn channels(upgrade: Upgrade, wanted: Wanted, tty: bool) -> Option<Channels> {
    match upgrade {
        Upgrade::Spdy(on, version) => {
            let upgraded = timeout(OPENING, on).await.ok()?.ok()?;
            let session = Session::start(TokioIo::new(upgraded));
            let gone = session.connection.gone.clone();
            let opened = timeout(OPENING, spdy_channels(session, &version, wanted, tty)).await;
            let Ok(Some(channels)) = opened else {
                gone.cancel();
                return None;
            };
            Some(channels)
        }
        Upgrade::Websocket(socket, version) => {
            let socket = timeout(OPENING, socket).await.ok()?.ok()?;
            Some(websocket_channels(socket, &version, wanted, tty).await)
        }
    }
}

async fn spdy_channels(mut session: Session, version: &str, wanted: Wanted, tty: bool) -> Option<Channels> {
    let status = version == "v4.channel.k8s.io";
    let resizable = tty && (status || version == "v3.channel.k8s.io");
    let expected = 1 + usize::from(wanted.stdin) + usize::from(wanted.stdout);
    let expected = expected + usize::from(wanted.stderr) + usize::from(resizable);
    let (mut stdin, mut stdout, mut stderr, mut error, mut resize) = (None, None, None, None, None);
    for _ in 0..expected {
        let stream: Stream = session.streams.recv().await?;
        match stream.header("streamtype")? {
            "stdin" => stdin = Some(stream.inlet),
            "stdout" => stdout = Some(stream.outlet),
            "stderr" => stderr = Some(stream.outlet),
            "error" => error = Some(stream.outlet),
            "resize" => resize = Some(stream.inlet),
            _ => return None,
        }
    }
    Some(Channels { stdin, stdout, stderr, error: error?, status, resize, connection: session.connection })
}

async fn websocket_channels(socket: WebSocket, version: &str, wanted: Wanted, tty: bool) -> Channels {
    let framing = if version.contains("base64") { Framing::Base64 } else { Framing::Binary };
    let budget = Budget::default();
    let (stdin, stdin_inlet) = queue::channel(&budget);
    let (resize, resize_inlet) = queue::channel(&budget);
    let inlets = vec![wanted.stdin.then_some(stdin), None, None, None, tty.then_some(resize)];
    let connection = websocket::start(socket, framing, inlets);
    let (stdout, stderr, error) = (connection.outlet(1), connection.outlet(2), connection.outlet(3));
    // tells the client that the connection stands, as the kubelet does
    let first = [(wanted.stdout, &stdout), (wanted.stderr, &stderr), (true, &error)];
    if let Some((_, outlet)) = first.iter().find(|(wanted, _)| *wanted) {
        // a client that is gone is seen later
        let _ = outlet.send(bytes::Bytes::new()).await;
    }
    Channels {
        stdin: wanted.stdin.then_some(stdin_inlet),
        stdout: wanted.stdout.then_some(stdout),
        stderr: wanted.stderr.then_some(stderr),
        error,
        status: version.starts_with("v4") || version.starts_with("v5"),
        resize: tty.then_some(resize_inlet),
        connection,
    }
}
