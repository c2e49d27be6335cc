//! A tunnel to every server of the cluster, kept open.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Endpoints;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use reqwest::{Method, StatusCode, Url};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tracing::{info, warn};

use super::session;
use super::targets::Targets;
use crate::cluster::complaint::Complaint;
use crate::cluster::https::{self, Trust};
use crate::json;

/// How long connecting may take, TLS and upgrade included.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause after a tunnel broke.
const AGAIN: Duration = Duration::from_secs(1);
/// How often the servers of the cluster are listed, and again after a failure.
const LIST: Duration = Duration::from_mins(1);
/// Bytes the kernel holds of a tunnel: they still come when the server has been told to pause. By itself it would hold many
/// times that.
const ON_THE_WAY: usize = 512 << 10;
/// Largest message taken, in bytes.
const MESSAGE: usize = 4 << 20;

/// Certificate and key of the node, and the CAs of servers, in PEM.
pub(super) type Identity = Option<(String, String)>;

/// What tunnels need.
pub(super) struct Tunnels {
    /// URL of the server that was configured: it always has one.
    pub server: String,
    /// A new one is shown by tunnels that open from then on.
    pub identity: watch::Receiver<Identity>,
    /// What servers may reach.
    pub targets: Targets,
    /// Servers whose tunnel is open.
    pub healthy: watch::Sender<Vec<String>>,
}

impl Tunnels {
    /// Keeps one to the configured server and to all that it lists.
    pub async fn keep(self) {
        let mut identity = self.identity.clone();
        if identity.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let targets = Arc::new(self.targets);
        let start = |url: &str| start(url.to_owned(), identity.clone(), targets.clone(), self.healthy.clone());
        let mut open: BTreeMap<String, AbortHandle> = BTreeMap::new();
        open.insert(self.server.clone(), start(&self.server));
        let mut complaint = Complaint::default();
        loop {
            let now = identity.borrow().clone();
            // any server may be asked: the configured one may be away
            let asked = self.healthy.borrow().first().cloned().unwrap_or_else(|| self.server.clone());
            match list(&asked, &self.server, now.as_ref()).await {
                Ok(others) => {
                    open.retain(|url, task| {
                        let wanted = *url == self.server || others.contains(url);
                        if !wanted {
                            task.abort();
                            self.healthy.send_modify(|servers| servers.retain(|s| s != url));
                            info!(url, "tunnel closed: no longer a server of the cluster");
                        }
                        wanted
                    });
                    for url in others {
                        if !open.keys().any(|known| same(known, &url)) {
                            open.insert(url.clone(), start(&url));
                        }
                    }
                }
                // the servers that are known stay
                Err(error) => {
                    if complaint.is_due(&error) {
                        warn!(error, "servers of the cluster not listed");
                    }
                }
            }
            tokio::time::sleep(LIST).await;
        }
    }
}

/// The servers there are, as URLs. One that has no list of them (before 1.22) passes the question on to its API server,
/// which forbids it: there they are the addresses of the Service `kubernetes`.
async fn list(server: &str, configured: &str, identity: Option<&(String, String)>) -> Result<Vec<String>, String> {
    let Some((pem, ca)) = identity else { return Ok(Vec::new()) };
    let client = https::client(Trust::Roots(ca.as_bytes()), Some(pem))?;
    let (own, api) = ("/v1-k3s/apiservers", "/api/v1/namespaces/default/endpoints/kubernetes");
    let ask = async |path| https::send(client.request(Method::GET, format!("{server}{path}"))).await;
    let mut asked = own;
    let mut answer = ask(own).await?;
    if matches!(answer.status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) {
        asked = api;
        answer = ask(api).await?;
    }
    if !answer.status.is_success() {
        return Err(format!("{server}{asked}: {}: {}", answer.status, answer.text()));
    }
    let damaged = |e: serde_json::Error| format!("{server}{asked}: {e}");
    let hosts = if asked == own {
        serde_json::from_slice::<Option<Vec<String>>>(&answer.body).map_err(damaged)?.unwrap_or_default()
    } else {
        hosts(&json::from_slice(&answer.body).map_err(damaged)?, configured)
    };
    Ok(hosts.iter().map(|host| format!("https://{host}")).collect())
}

/// Servers at the addresses of the Service `kubernetes`, with the port of the one that was configured: it is the supervisor's.
fn hosts(endpoints: &Endpoints, configured: &str) -> Vec<String> {
    let port = Url::parse(configured).ok().and_then(|url| url.port_or_known_default()).unwrap_or(443);
    let addresses = endpoints.subsets.iter().flatten().flat_map(|subset| subset.addresses.iter().flatten());
    let ips = addresses.filter_map(|address| address.ip.parse::<IpAddr>().ok());
    ips.map(|ip| SocketAddr::new(ip, port).to_string()).collect()
}

fn same(a: &str, b: &str) -> bool {
    Url::parse(a).ok().zip(Url::parse(b).ok()).is_some_and(|(a, b)| a == b)
}

fn start(
    url: String,
    identity: watch::Receiver<Identity>,
    targets: Arc<Targets>,
    healthy: watch::Sender<Vec<String>>,
) -> AbortHandle {
    tokio::spawn(async move {
        let mut complaint = Complaint::default();
        loop {
            let now = identity.borrow().clone();
            let ended = match &now {
                Some(identity) => one(&url, identity, &targets, &healthy).await,
                None => Ok(()),
            };
            if let Err(error) = ended
                && complaint.is_due(&error)
            {
                warn!(
                    url,
                    error, "tunnel ended: opening it again; until then kubectl logs and exec fail by this server"
                );
            }
            tokio::time::sleep(AGAIN).await;
        }
    })
    .abort_handle()
}

/// Opens a tunnel and serves it until it breaks.
async fn one(
    url: &str,
    (pem, ca): &(String, String),
    targets: &Targets,
    healthy: &watch::Sender<Vec<String>>,
) -> Result<(), String> {
    let parsed = Url::parse(url).map_err(|e| e.to_string())?;
    let host = parsed.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = parsed.port_or_known_default().unwrap_or(443);
    let tls = TlsConnector::from(Arc::new(https::tls(Trust::Roots(ca.as_bytes()), Some(pem))?));
    let connecting = async {
        let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(|e| e.to_string())?;
        tcp.set_nodelay(true).map_err(|e| e.to_string())?;
        setsockopt(&tcp, RcvBufForce, &ON_THE_WAY).map_err(|e| format!("bounding its receive buffer: {e}"))?;
        let name = ServerName::try_from(host.clone()).map_err(|e| e.to_string())?;
        let stream = tls.connect(name, tcp).await.map_err(|e| e.to_string())?;
        let config = WebSocketConfig::default().max_message_size(Some(MESSAGE)).max_frame_size(Some(MESSAGE));
        let address = format!("{}/v1-k3s/connect", url.replacen("https://", "wss://", 1));
        client_async_with_config(address, stream, Some(config)).await.map_err(|e| e.to_string())
    };
    let connected = timeout(HANDSHAKE, connecting).await;
    let (socket, _) = connected.map_err(|_| "no connection in time".to_owned())??;
    info!(url, "tunnel open");
    healthy.send_modify(|servers| servers.push(url.to_owned()));
    let ended = session::serve(socket, targets).await;
    healthy.send_modify(|servers| servers.retain(|s| s != url));
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_addresses_of_the_service_kubernetes() {
        let endpoints = serde_json::json!({"subsets": [{
            "addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}, {"ip": "no address"}],
            "ports": [{"name": "https", "port": 6443}],
        }, {"notReadyAddresses": [{"ip": "10.0.0.2"}]}]});
        let found = hosts(&json::convert(&endpoints).unwrap(), "https://s:9345");
        assert_eq!(found, ["10.0.0.1:9345", "[fd00::1]:9345"]);
        assert!(hosts(&Endpoints::default(), "https://s:9345").is_empty());
    }
}
