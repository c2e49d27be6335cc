//! Membership of a k3s cluster, as `k3s agent` has it: the server is asked for settings and certificates, and reaches this
//! node's kubelet API through a tunnel that the node opens.

mod annotations;
mod config;
mod frame;
mod session;
mod supervisor;
mod targets;
mod token;
mod tunnel;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use futures::FutureExt;
use kube::Client;
use reqwest::Url;
use tokio::sync::watch;
use tracing::{info, warn};

use super::addresses::MoreAddresses;
use super::bootstrap::{PAUSE, config as client_config, kubeconfig};
use super::client::way;
use super::client_certificate::ClientCertificate;
use super::clock::{complain, not_behind, too_early};
use super::complaint::Complaint;
use super::discovery::Cluster;
use super::join::{Given, Membership, Pods};
use super::link::{Link, Replaced};
use crate::hex::hex;
use crate::machine::clock::Floor;
use crate::metrics;
use crate::pki::{LOOK_AGAIN, Standing, write_secret};
use config::ServerConfig;
pub(super) use supervisor::Proof;
use supervisor::{NodeHeaders, PASSWORD_FILE, Supervisor};
pub use targets::Egress;
pub use token::Token;

/// A membership: what it is for, and where it is kept.
#[derive(Debug, Clone)]
pub struct K3s {
    /// URL of a server.
    pub server: String,
    /// `None`: a member already, without a way back once its certificate has expired.
    pub token: Option<Token>,
    /// Name of the Node.
    pub node: String,
    /// Addresses of the Node.
    pub ips: Vec<IpAddr>,
    /// More of them, and names.
    pub more: MoreAddresses,
    /// Below it certificates and settings are kept (`<root>`).
    pub root: PathBuf,
    /// Where the kubelet API of this node is reached.
    pub kubelet: SocketAddr,
    /// Which addresses are those of its pods.
    pub pods: Pods,
    /// A time this machine has seen.
    pub floor: Option<Floor>,
}

impl K3s {
    fn pki(&self, name: &str) -> PathBuf {
        self.root.join("pki").join(name)
    }

    fn kept_config(&self) -> PathBuf {
        self.root.join("k3s-config.json")
    }

    fn certificate(&self) -> ClientCertificate {
        ClientCertificate::new(&self.root.join("pki"))
    }

    /// Joins: a node that was a member goes on with what it kept, another one waits here until the server lets it in.
    pub async fn join(self) -> Membership {
        let mut complaint = Complaint::default();
        let config = loop {
            if let Some(config) = self.kept() {
                break config;
            }
            let enrolled = match not_behind(self.floor.as_ref()) {
                Ok(()) => self.enroll(&self.server, true).await,
                behind => behind,
            };
            if let Err(error) = enrolled {
                complain(&mut complaint, &error, &self.server).await;
                pause().await;
            }
        };
        if matches!(config.flannel.as_str(), "vxlan" | "wireguard-native" | "tailscale") {
            warn!(
                backend = config.flannel,
                "pods of other nodes are not reached: this agent does not have the pod network \
                of this cluster; it works with routes of your own"
            );
        }
        let link = Link::new();
        let (serving_tx, serving) = watch::channel(());
        let ips = self.ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let annotations = [
            ("k3s.io/hostname", self.node.clone()),
            ("k3s.io/internal-ip", ips.clone()),
            ("alpha.kubernetes.io/provided-node-ip", ips),
        ];
        let variables = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        let arguments = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned());
        let process = annotations::of_process(arguments, variables);
        let serving_file = self.pki("serving-kubelet.pem");
        let labels = match config.egress() {
            Egress::Cluster | Egress::Pod => BTreeMap::from([("egress.k3s.io/cluster".to_owned(), "true".to_owned())]),
            _ => BTreeMap::new(),
        };
        let membership = Membership {
            client: link.client("default".to_owned()),
            ca_file: Some(self.pki("client-ca.crt")),
            given: Given {
                cluster_dns: config.dns(),
                cluster_domain: Some(config.domain.clone()).filter(|d| !d.is_empty()),
                cluster_cidrs: config.pods(),
                annotations: annotations
                    .into_iter()
                    .chain(self.more.of_k3s())
                    .chain(process)
                    .map(|(k, v)| (k.to_owned(), v))
                    .collect(),
                labels,
                client_ca_file: Some(self.pki("client-ca.crt")),
                serving: Some(((serving_file.clone(), serving_file), serving)),
            },
            joined: std::future::ready(()).boxed(),
        };
        tokio::spawn(self.keep(config, link, serving_tx));
        membership
    }

    /// A client of the member that the node is already.
    pub(super) async fn client(&self) -> Result<Option<Client>, String> {
        let Some(config) = self.kept() else { return Ok(None) };
        let link = Link::new();
        let mut used = Used { server: self.server.clone(), identity: None };
        self.lead(&config, &link, &[], &mut used).await?;
        Ok(Some(link.client("default".to_owned())))
    }

    /// Settings from before, if everything else was kept, too.
    fn kept(&self) -> Option<ServerConfig> {
        let kept = fs::read(self.kept_config()).ok()?;
        let (server, json) = kept.split_at_checked(kept.iter().position(|b| *b == b'\n')?)?;
        let whole = server == self.server.as_bytes() && self.certificate().standing().is_some();
        let files = ["client-ca.crt", "server-ca.crt", "serving-kubelet.pem"];
        if !whole || files.iter().any(|name| !self.pki(name).exists()) {
            return None;
        }
        ServerConfig::parse(json).inspect_err(|error| warn!(error, "kept settings are asked for again")).ok()
    }

    /// Asks a server for everything a member has, and keeps it: the settings last, so that they stand for all. With
    /// `anew` as a stranger with a token, else as the member it is.
    async fn enroll(&self, server: &str, anew: bool) -> Result<(), String> {
        let certificate = self.certificate();
        let known = if anew { None } else { certificate.read().ok().zip(self.server_ca().ok()) };
        let supervisor = match (known, &self.token) {
            (Some((identity, ca)), token) => Supervisor::known(server, &ca, identity, token.as_ref()),
            (None, Some(token)) => {
                let found = self.discover(server, token).await.map_err(|e| format!("joining {server}: {e}"))?;
                if found.proof == Proof::Nothing {
                    warn!(
                        "cannot verify {server}, as nothing vouches for its CA: whoever answers there gets the token and \
                        this node, because unsafeSkipCAVerification is set"
                    );
                }
                found
            }
            (None, None) => {
                return Err(format!(
                    "this node has no valid certificate and no token for {server}: set --token or \
                    K3S_TOKEN (`k3s token create` on the server prints one)"
                ));
            }
        };
        supervisor.ready().await.map_err(|e| format!("joining {server}: {e}"))?;
        let settings = supervisor.get("/v1-k3s/config").await?;
        ServerConfig::parse(&settings)?;
        let client_ca = supervisor.bundle("/v1-k3s/client-ca.crt").await?;
        let server_ca = supervisor.bundle("/v1-k3s/server-ca.crt").await?;
        let password = password()?;
        let node = NodeHeaders { name: &self.node, password: &password, ips: &self.ips };
        let serving = supervisor.certificate("/v1-k3s/serving-kubelet.crt", &node).await?;
        let client = supervisor.certificate("/v1-k3s/client-kubelet.crt", &node).await?;
        let write = |path: &Path, text: &str| write_secret(path, text).map_err(|e| format!("{}: {e}", path.display()));
        write(&self.pki("client-ca.crt"), &client_ca)?;
        write(&self.pki("server-ca.crt"), &server_ca)?;
        write(&self.pki("serving-kubelet.pem"), &format!("{}{}", serving.chain, serving.key))?;
        certificate.keep(&client.chain, &client.key)?;
        let settings = format!("{}\n{}", self.server, String::from_utf8_lossy(&settings));
        if fs::read_to_string(self.kept_config()).ok().as_ref() != Some(&settings) {
            write(&self.kept_config(), &settings)?;
        }
        info!(node = self.node, server, "the server gave this node its certificates");
        Ok(())
    }

    /// The server the token is for, if it is that: see [`Supervisor::discover`].
    pub(super) async fn discover(&self, server: &str, token: &Token) -> Result<Supervisor, String> {
        // the CA it was a member of is believed before any that has only the same name
        Supervisor::discover(server, token, self.server_ca().ok().as_deref()).await
    }

    fn server_ca(&self) -> Result<String, String> {
        let file = self.pki("server-ca.crt");
        fs::read_to_string(&file).map_err(|e| format!("reading {}: {e}", file.display()))
    }

    /// Keeps link, tunnels and certificates, as long as the agent runs.
    async fn keep(self, config: ServerConfig, link: Link, serving: watch::Sender<()>) {
        let (mut complaint, mut replaced) = (Complaint::default(), Replaced::default());
        let mut used = Used { server: self.server.clone(), identity: None };
        let (identities, identity) = watch::channel(None);
        // the sender stays here, too: without tunnels nothing changes
        let healthy = watch::Sender::new(Vec::new());
        let mut servers = healthy.subscribe();
        if config.egress() != Egress::Disabled {
            let ranges = if config.egress() == Egress::Cluster { self.reachable(&config) } else { Vec::new() };
            let pods = (config.egress() == Egress::Pod).then(|| self.pods.clone());
            let targets = targets::Targets { kubelet: self.kubelet, ranges, pods };
            let tunnels = tunnel::Tunnels { server: self.server.clone(), identity, targets, healthy: healthy.clone() };
            tokio::spawn(tunnels.keep());
        }
        loop {
            let certificate = self.certificate();
            let behind = not_behind(self.floor.as_ref()).err();
            let outcome = match certificate.standing() {
                _ if behind.is_some() => Err(behind.unwrap_or_default()),
                Some(Standing::Valid { renew_in }) => {
                    let healthy = servers.borrow_and_update().clone();
                    let led = self.lead(&config, &link, &healthy, &mut used).await;
                    identities.send_if_modified(|old| {
                        let new = *old != used.identity;
                        old.clone_from(&used.identity);
                        new
                    });
                    if led.is_err() {
                        led
                    } else if link.is_refused().await {
                        replaced.by(self.enroll(&used.server, true)).await
                    } else if renew_in.is_zero() {
                        let renewed = self.enroll(&used.server, false).await;
                        renewed.inspect_err(|_| metrics::CLIENT_NOT_RENEWED.add([]))
                    } else {
                        tokio::select! {
                            () = tokio::time::sleep(renew_in.min(LOOK_AGAIN)) => {}
                            _ = servers.changed() => {}
                            () = link.refused() => {}
                        }
                        continue;
                    }
                }
                Some(Standing::NotYet(from)) => Err(too_early(from)),
                Some(Standing::Expired(_)) | None => self.enroll(&used.server, true).await,
            };
            match outcome {
                Ok(()) => serving.send_replace(()),
                Err(error) => complain(&mut complaint, &error, &used.server).await,
            }
            // also after a success: a server whose certificates are due at once is not asked all the time
            pause().await;
        }
    }

    /// With `--egress-selector-mode=cluster`: all pods, and this node.
    fn reachable(&self, config: &ServerConfig) -> Vec<ipnet::IpNet> {
        let mut ranges = config.pods();
        ranges.extend(self.ips.iter().map(|ip| ipnet::IpNet::from(*ip)));
        ranges
    }

    /// Leads requests to an API server whose tunnel is open, by the certificate on disk, if they do not go so already.
    async fn lead(
        &self,
        config: &ServerConfig,
        link: &Link,
        healthy: &[String],
        used: &mut Used,
    ) -> Result<(), String> {
        let server = match healthy.first() {
            Some(other) if !healthy.contains(&used.server) => other.clone(),
            _ => used.server.clone(),
        };
        let (pem, ca) = (self.certificate().read()?, self.server_ca()?);
        let identity = Some((pem.clone(), ca.clone()));
        if used.server == server && used.identity == identity {
            return Ok(());
        }
        let cluster = Cluster { server: api_server(&server, config)?, ca: ca.into_bytes() };
        link.lead(way(&client_config(kubeconfig("k3s", &cluster, super::bootstrap::identity(&pem))).await?)?);
        if used.server != server {
            info!(server, before = used.server, "requests go to another server from now on");
        }
        *used = Used { server, identity };
        Ok(())
    }
}

/// How requests go now.
struct Used {
    /// To which server.
    server: String,
    /// By which certificate and key, and which CAs are believed.
    identity: tunnel::Identity,
}

/// Where the API server is: with k3s where the supervisor is, else at its own port.
fn api_server(server: &str, config: &ServerConfig) -> Result<String, String> {
    let mut url = Url::parse(server).map_err(|e| format!("{server}: {e}"))?;
    if config.https_port != 0 && config.supervisor_port != 0 && config.https_port != config.supervisor_port {
        url.set_port(Some(config.https_port)).map_err(|()| format!("{server}: no port can be set"))?;
    }
    Ok(url.to_string().trim_end_matches('/').to_owned())
}

/// The password of this machine: made once, kept for ever.
fn password() -> Result<String, String> {
    let file = Path::new(PASSWORD_FILE);
    match fs::read_to_string(file) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("reading {PASSWORD_FILE}: {error}"));
        }
        Ok(_) | Err(_) => {}
    }
    let password = hex(&rand::random::<[u8; 16]>());
    write_secret(file, &format!("{password}\n")).map_err(|e| format!("writing {PASSWORD_FILE}: {e}"))?;
    Ok(password)
}

async fn pause() {
    tokio::time::sleep(PAUSE.mul_f64(1.0 + rand::random::<f64>())).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_server_may_have_a_port_of_its_own() {
        let at = |json: &str| api_server("https://s:9345", &ServerConfig::parse(json.as_bytes()).unwrap()).unwrap();
        assert_eq!(at(r#"{"HTTPSPort":6443,"SupervisorPort":9345}"#), "https://s:6443");
        assert_eq!(at(r#"{"HTTPSPort":6443,"SupervisorPort":6443}"#), "https://s:9345");
        assert_eq!(at("{}"), "https://s:9345");
    }
}
