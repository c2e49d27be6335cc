//! The agent's own unix socket (`<state dir>/agent.sock`, mode 0600) and how commands ask it.

use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use axum::routing::get;
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use super::api::Kubelet;
use super::orders::{self, Orders};
use super::{commands, images, inspect};
use crate::image::ImageStore;
use crate::pod::order::Order;

const SOCKET: &str = "agent.sock";

/// Serves until the agent ends.
pub async fn serve(
    state_dir: PathBuf,
    kubelet: Kubelet,
    store: ImageStore,
    manager: mpsc::Sender<Order>,
) -> std::io::Result<()> {
    let socket = state_dir.join(SOCKET);
    // left by an agent that was killed
    let _ = std::fs::remove_file(&socket);
    let dir = std::fs::File::open(&state_dir)?;
    // through a descriptor: a socket's path may have no more than 107 bytes
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
    // whoever may open the socket is root: all of the kubelet API, and what only a person on the machine may do
    let app = super::api::routes(kubelet.clone())
        .route("/forward/{namespace}/{pod}", get(commands::forward).with_state(kubelet.clone()))
        .route("/inspect/{namespace}/{pod}", get(inspect::inspect).with_state(kubelet.clone()))
        .merge(orders::routes(Orders { kubelet, manager }))
        .merge(images::routes(store));
    axum::serve(listener, app).await
}

/// A connection to the agent of `state_dir`.
pub fn connect(state_dir: &Path) -> Result<UnixStream, String> {
    let connect = || {
        let dir = std::fs::File::open(state_dir)?;
        UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
    };
    connect().map_err(|e| {
        let socket = state_dir.join(SOCKET);
        unanswered(&socket, &e)
    })
}

/// Why nobody answers on the socket, and what to do.
fn unanswered(socket: &Path, error: &std::io::Error) -> String {
    let (socket, other) = (socket.display(), "; one with another state directory is found with --state-dir");
    match error.kind() {
        ErrorKind::PermissionDenied => format!("{socket}: only root may talk to the agent: try again with sudo"),
        ErrorKind::NotFound => {
            format!("{socket}: no such socket: the agent does not run: start its service, or `pikelet run`{other}")
        }
        ErrorKind::ConnectionRefused => format!(
            "{socket}: nobody listens: the agent has ended, and its pods go on without it: start its service, or \
             `pikelet run`{other}"
        ),
        _ => format!("{socket}: {error}{other}"),
    }
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
        let why = body.trim();
        let why =
            if why.is_empty() { format!("the agent answered {status} to {method} {path}") } else { why.to_owned() };
        return Err(why.into());
    }
    Ok(body.to_owned())
}
