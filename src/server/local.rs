//! The agent's own unix socket (`<state dir>/agent.sock`, mode 0600) and how commands ask it.

use std::error::Error;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use super::api::Kubelet;

const SOCKET: &str = "agent.sock";

/// Asks the manager to stop every pod; answered when none is left.
pub type Drain = mpsc::Sender<oneshot::Sender<()>>;

/// Serves until the agent ends.
pub async fn serve(state_dir: PathBuf, kubelet: Kubelet, drain: Drain) -> std::io::Result<()> {
    let socket = state_dir.join(SOCKET);
    // left by an agent that was killed
    let _ = std::fs::remove_file(&socket);
    let dir = std::fs::File::open(&state_dir)?;
    // through a descriptor: a socket's path may have no more than 107 bytes
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
    // whoever may open the socket is root: all of the kubelet API, and what only a person on the machine may do
    let app = super::api::routes(kubelet.clone())
        .route("/forward/{namespace}/{pod}", get(super::commands::forward).with_state(kubelet))
        .route("/drain", post(drain_all).with_state(drain));
    axum::serve(listener, app).await
}

async fn drain_all(State(drain): State<Drain>) -> StatusCode {
    let (done, gone) = oneshot::channel();
    match drain.send(done).await {
        Ok(()) if gone.await.is_ok() => StatusCode::OK,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A connection to the agent of `state_dir`.
pub fn connect(state_dir: &Path) -> Result<UnixStream, String> {
    let connect = || {
        let dir = std::fs::File::open(state_dir)?;
        UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
    };
    connect().map_err(|e| {
        let socket = state_dir.join(SOCKET);
        format!("no agent answers on {}: {e} (is `pikelet run` up, and are you root?)", socket.display())
    })
}

/// One request to the agent of `state_dir`; the body of its answer.
pub fn ask(state_dir: &Path, method: &str, path: &str) -> Result<String, Box<dyn Error + Send + Sync>> {
    let mut stream = connect(state_dir)?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: local\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the agent ended during the call")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        return Err(format!("the agent answered {status} to {method} {path}").into());
    }
    Ok(body.to_owned())
}
