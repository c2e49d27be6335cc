//! A client for exec by websocket (`v5.channel.k8s.io`) that is nobody else's: no forwarder on the way, a connection of
//! its own for every command, and no waiting to fill packets.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::Outcome;

/// Largest piece sent.
const PIECE: usize = 64 << 10;

/// How the API server of a test cluster is reached.
pub struct Access {
    address: String,
    netns: PathBuf,
    tls: TlsConnector,
}

/// A command that runs.
pub struct Exec(WebSocketStream<TlsStream<TcpStream>>);

/// What it says.
pub enum Said {
    /// On standard output.
    Output(Bytes),
    /// At its end: that all is well.
    Success,
}

impl Access {
    /// As the admin of the cluster in that folder; `netns` is the control plane's network namespace.
    pub fn new(cluster: &Path, netns: &Path, address: &str) -> Outcome<Self> {
        let pki = |file: &str| cluster.join("pki").join(file);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(pki("ca.crt"))?)?;
        let own = vec![CertificateDer::from_pem_file(pki("admin.crt"))?];
        let key = PrivateKeyDer::from_pem_file(pki("admin.key"))?;
        let config = ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(own, key)?;
        Ok(Self { address: address.to_owned(), netns: netns.to_owned(), tls: Arc::new(config).into() })
    }

    /// A socket stays in the network namespace it was made in.
    async fn connect(&self) -> Outcome<TcpStream> {
        let (netns, address) = (self.netns.clone(), self.address.clone());
        let connected = std::thread::spawn(move || -> std::io::Result<std::net::TcpStream> {
            nix::sched::setns(std::fs::File::open(netns)?.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET)?;
            std::net::TcpStream::connect(address)
        });
        let stream = tokio::task::spawn_blocking(|| connected.join()).await?.map_err(|_| "connecting panicked")??;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(TcpStream::from_std(stream)?)
    }

    /// Starts a command in the first container of a pod.
    pub async fn exec(&self, pod: &str, command: &[&str], stdin: bool) -> Outcome<Exec> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("stdout", "true");
        if stdin {
            query.append_pair("stdin", "true");
        }
        for word in command {
            query.append_pair("command", word);
        }
        let path = format!("/api/v1/namespaces/default/pods/{pod}/exec?{}", query.finish());
        let mut request = format!("wss://{}{path}", self.address).into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", "v5.channel.k8s.io".parse()?);
        let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host).to_owned();
        let stream = self.tls.connect(ServerName::try_from(host)?, self.connect().await?).await?;
        Ok(Exec(tokio_tungstenite::client_async(request, stream).await?.0))
    }
}

impl Exec {
    /// Waits for what it says next.
    pub async fn next(&mut self) -> Outcome<Said> {
        loop {
            let message = self.0.next().await.ok_or("the connection ended before the command")??;
            let Message::Binary(mut data) = message else { continue };
            match data.split_to(1.min(data.len())).first() {
                Some(1) => return Ok(Said::Output(data)),
                Some(3) => {
                    let status: serde_json::Value = serde_json::from_slice(&data)?;
                    return if status["status"] == "Success" {
                        Ok(Said::Success)
                    } else {
                        Err(status.to_string().into())
                    };
                }
                _ => {}
            }
        }
    }

    /// Sends `count` zeros to its standard input and closes that.
    pub async fn send_zeros(&mut self, count: usize) -> Outcome<()> {
        let mut left = count;
        // the first byte is the channel's: 0 too
        let piece = Bytes::from(vec![0; PIECE + 1]);
        while left > 0 {
            let size = left.min(PIECE);
            self.0.feed(Message::Binary(piece.slice(..=size))).await?;
            left -= size;
        }
        self.0.send(Message::Binary(Bytes::from_static(&[255, 0]))).await?;
        Ok(())
    }
}
