//! Connections from the agent to `localhost` of a pod.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// How long a program in the pod may take to accept.
const CONNECT: Duration = Duration::from_secs(10);

/// A socket belongs to the network namespace it is made in: made there on a thread of its own, used from here.
async fn socket(netns: &Path, ip: IpAddr) -> io::Result<TcpSocket> {
    let netns = File::open(netns)?;
    let (sender, made) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("pod-socket".to_owned()).spawn(move || {
        let socket = setns(&netns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from).and_then(|()| match ip {
            IpAddr::V4(_) => TcpSocket::new_v4(),
            IpAddr::V6(_) => TcpSocket::new_v6(),
        });
        // who asked may have given up
        let _ = sender.send(socket);
    })?;
    made.await.map_err(io::Error::other)?
}

/// Connects to a port of the pod's own 127.0.0.1, else of its `::1`. The error is that of the first.
pub async fn dial(netns: &Path, port: u16) -> Result<TcpStream, String> {
    let mut first = None;
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let address = SocketAddr::new(ip, port);
        let connected = async { socket(netns, ip).await?.connect(address).await };
        match timeout(CONNECT, connected).await {
            Ok(Ok(stream)) => {
                // a delay is worse than a small packet
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => first.get_or_insert(format!("connecting to {address} in the pod: {error}")),
            Err(_) => first.get_or_insert(format!("connecting to {address} in the pod: no answer")),
        };
    }
    Err(first.unwrap_or_default())
}
