//! The agent's own unix socket (`<state dir>/agent.sock`, mode 0600) and how commands ask it.

use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::routing::get;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, socket};
use nix::sys::stat::{Mode, fchmod};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tracing::warn;

use super::api::Kubelet;
use super::orders::{self, Orders};
use super::{commands, connection, images, inspect};
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
    let listener = listen(&state_dir)?;
    // whoever may open the socket is root: all of the kubelet API, and what only a person on the machine may do
    let app = super::api::routes(kubelet.clone())
        .route("/forward/{namespace}/{pod}", get(commands::forward).with_state(kubelet.clone()))
        .route("/inspect/{namespace}/{pod}", get(inspect::inspect).with_state(kubelet.clone()))
        .merge(orders::routes(Orders { kubelet, manager }))
        .merge(images::routes(store));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(connection::serve(stream, app.clone()))),
            Err(error) => {
                // such as too many open files: others must end first
                warn!(%error, "a connection to the agent's socket is not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The socket, which is root's alone from the first moment on: Linux makes its file with the mode of the descriptor.
fn listen(state_dir: &Path) -> std::io::Result<UnixListener> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let dir = std::fs::File::open(state_dir)?;
    // through a descriptor: a socket's path may have no more than 107 bytes
    bind(socket.as_raw_fd(), &UnixAddr::new(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()).as_str())?)?;
    nix::sys::socket::listen(&socket, Backlog::MAXCONN)?;
    UnixListener::from_std(socket.into())
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn the_socket_is_roots_from_its_first_moment() {
        let dir = std::env::temp_dir().join(format!("pikelet-socket-{}", std::process::id()));
        crate::files::dir(&dir, 0o755).unwrap();
        let listener = listen(&dir).unwrap();
        assert_eq!(std::fs::metadata(dir.join(SOCKET)).unwrap().permissions().mode() & 0o777, 0o600);
        let (accepted, connected) = (listener.accept(), connect(&dir));
        assert!(connected.is_ok() && accepted.await.is_ok());
        crate::files::remove_tree(&dir).unwrap();
    }
}
