//! Membership by TLS bootstrapping (Kubernetes "TLS bootstrapping"): a token gets the node a certificate, the certificate
//! is renewed while it holds, and one that expired while the board was off, or is no longer taken, is asked for anew by the
//! token.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::client::ClientBuilder;
use kube::config::{AuthInfo, Cluster as Entry, Context, KubeConfigOptions, Kubeconfig};
use kube::config::{NamedAuthInfo, NamedCluster, NamedContext};
use kube::{Client, Config};
use tracing::info;

use super::client::way;
use super::client_certificate::ClientCertificate;
use super::clock::{complain, not_behind, too_early};
use super::complaint::Complaint;
use super::csr::CsrError;
use super::discovery::{BootstrapToken, Cluster, Pin, discover};
use super::link::{Link, Replaced};
use crate::config::mistake::explain_kubeconfig;
use crate::machine::clock::Floor;
use crate::metrics;
use crate::pki::{LOOK_AGAIN, Standing, write_secret};

/// Pause between two tries, and what is added to it by chance.
pub(super) const PAUSE: Duration = Duration::from_secs(5);

/// Where the right to ask for a certificate comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A bootstrap kubeconfig, as the kubelet takes it.
    Kubeconfig(PathBuf),
    /// A server, a token, and hashes one of which the CA must have (none: the token's signature is enough).
    Token {
        /// URL.
        server: String,
        /// `None`: a member already, without a way back once its certificate has expired.
        token: Option<BootstrapToken>,
        /// From `--ca-cert-hash`.
        pins: Vec<Pin>,
    },
}

/// URL of the API server of a kubeconfig.
pub(super) async fn server_of(file: &Path) -> Result<String, String> {
    let wrong = |e: &dyn std::fmt::Display| format!("kubeconfig {}: {e}", file.display());
    let read = Kubeconfig::read_from(file).map_err(|e| wrong(&explain_kubeconfig(&e)))?;
    let config = config(read).await.map_err(|e| wrong(&e))?;
    Ok(config.cluster_url.to_string().trim_end_matches('/').to_owned())
}

impl Source {
    /// URL of the server that is asked first.
    pub(super) async fn server(&self) -> Result<String, String> {
        match self {
            Self::Token { server, .. } => Ok(server.clone()),
            Self::Kubeconfig(file) => server_of(file).await,
        }
    }

    /// What the cluster is called in the kubeconfig that is kept: another source is another cluster.
    fn name(&self) -> String {
        match self {
            Self::Kubeconfig(file) => file.display().to_string(),
            Self::Token { server, .. } => server.clone(),
        }
    }
}

/// What is kept of a membership, and where.
pub(super) struct Bootstrap {
    /// Name of the Node.
    pub node: String,
    /// Where certificates are kept.
    pub pki_dir: PathBuf,
    /// Kubeconfig of the member, written once it is one.
    pub kubeconfig: PathBuf,
    /// The right to become one.
    pub source: Source,
    /// A time this machine has seen.
    pub floor: Option<Floor>,
}

impl Bootstrap {
    /// A way that is there as soon as the node is a member. Keeps the membership as long as the agent runs.
    pub fn begin(self) -> Link {
        let link = Link::new();
        tokio::spawn(self.keep(link.clone()));
        link
    }

    /// The cluster's CA, once the node is a member.
    pub fn ca_file(&self) -> PathBuf {
        self.pki_dir.join("ca.crt")
    }

    async fn keep(self, link: Link) {
        let certificate = ClientCertificate::new(&self.pki_dir);
        let (mut complaint, mut used) = (Complaint::default(), None);
        let mut replaced = Replaced::default();
        loop {
            let behind = not_behind(self.floor.as_ref()).err();
            let outcome = match (certificate.standing(), self.member()) {
                _ if behind.is_some() => Err(behind.unwrap_or_default()),
                (Some(Standing::Valid { renew_in }), Some(file)) => {
                    if let Err(error) = self.lead(&link, &certificate, file, &mut used).await {
                        Err(error)
                    } else if link.is_refused().await {
                        replaced.by(self.bootstrap(&certificate, None)).await
                    } else if renew_in.is_zero() {
                        self.renew(&link, &certificate).await
                    } else {
                        tokio::select! {
                            () = tokio::time::sleep(renew_in.min(LOOK_AGAIN)) => {}
                            () = link.refused() => {}
                        }
                        continue;
                    }
                }
                (Some(Standing::NotYet(from)), Some(_)) => Err(too_early(from)),
                (standing, _) => self.bootstrap(&certificate, standing).await,
            };
            if let Err(error) = outcome {
                complain(&mut complaint, &error, &self.source.server().await.unwrap_or_default()).await;
                tokio::time::sleep(PAUSE.mul_f64(1.0 + rand::random::<f64>())).await;
            }
        }
    }

    /// A client of the member that the node is already.
    pub async fn client(&self) -> Result<Option<Client>, String> {
        let Some(file) = self.member() else { return Ok(None) };
        let link = Link::new();
        self.lead(&link, &ClientCertificate::new(&self.pki_dir), file, &mut None).await?;
        Ok(Some(link.client("default".to_owned())))
    }

    /// The kubeconfig of a member of this very cluster.
    fn member(&self) -> Option<Kubeconfig> {
        let file = Kubeconfig::read_from(&self.kubeconfig).ok()?;
        let ours = file.clusters.first().is_some_and(|c| c.name == self.source.name());
        ours.then_some(file)
    }

    /// Leads requests by the certificate on disk, if they do not go by it already.
    async fn lead(
        &self,
        link: &Link,
        certificate: &ClientCertificate,
        mut file: Kubeconfig,
        used: &mut Option<String>,
    ) -> Result<(), String> {
        let pem = certificate.read()?;
        if used.as_ref() == Some(&pem) {
            return Ok(());
        }
        let user = identity(&pem);
        for named in &mut file.auth_infos {
            named.auth_info = Some(user.clone());
        }
        link.lead(way(&config(file).await?)?);
        *used = Some(pem);
        Ok(())
    }

    async fn renew(&self, link: &Link, certificate: &ClientCertificate) -> Result<(), String> {
        let client = link.client("default".to_owned());
        let renewed = certificate.obtain(client, &self.node).await.inspect_err(|_| metrics::CLIENT_NOT_RENEWED.add([]));
        renewed.map_err(|e| format!("the certificate was not renewed: {e}"))?;
        info!("this node's certificate was renewed");
        Ok(())
    }

    async fn bootstrap(&self, certificate: &ClientCertificate, standing: Option<Standing>) -> Result<(), String> {
        if let Some(Standing::Expired(since)) = standing {
            info!(%since, "this node's certificate has expired: asking for another as a new node does");
        }
        let (config, cluster) = self.admission().await?;
        let client = ClientBuilder::new(way(&config)?, "default").build();
        match certificate.obtain(client, &self.node).await {
            Ok(()) => {}
            Err(CsrError::Unauthorized(error)) => {
                return Err(format!(
                    "{} does not accept the token ({error}): it is another one, or expired; \
                    `kubeadm token create` makes a new one",
                    cluster.server
                ));
            }
            Err(other) => return Err(other.to_string()),
        }
        let ca = String::from_utf8_lossy(&cluster.ca);
        write_secret(&self.ca_file(), &ca)
            .and_then(|()| write_secret(&self.kubeconfig, &self.text(&cluster, &certificate.file())))
            .map_err(|e| format!("keeping the membership in {}: {e}", self.kubeconfig.display()))?;
        info!(node = self.node, server = cluster.server, "joined: the cluster gave this node a certificate");
        Ok(())
    }

    /// A client's configuration with the right to ask for a certificate, and the cluster it is for.
    pub async fn admission(&self) -> Result<(Config, Cluster), String> {
        let (server, token, pins) = match &self.source {
            Source::Kubeconfig(path) => {
                let wrong = |e: &dyn std::fmt::Display| format!("bootstrap kubeconfig {}: {e}", path.display());
                let file = Kubeconfig::read_from(path).map_err(|e| {
                    let why = wrong(&explain_kubeconfig(&e));
                    format!("{why}; this node has no valid certificate, and so no other way to join")
                })?;
                let ca = authority(&file).map_err(|e| wrong(&e))?;
                let config = config(file).await.map_err(|e| wrong(&e))?;
                let server = config.cluster_url.to_string();
                return Ok((config, Cluster { server, ca }));
            }
            Source::Token { server, token, pins } => (server, token, pins),
        };
        let Some(token) = token else {
            return Err(format!(
                "this node has no valid certificate and no token: give it one with --token or in K3S_TOKEN \
                (`kubeadm token create` on the control plane of {server})"
            ));
        };
        let cluster = discover(server, token, pins).await.map_err(|e| format!("joining {server}: {e}"))?;
        let user = AuthInfo { token: Some(token.bearer().into()), ..AuthInfo::default() };
        Ok((config(kubeconfig("bootstrap", &cluster, user)).await?, cluster))
    }

    /// The kubeconfig of the member. Its certificate is named, not copied: it changes.
    fn text(&self, cluster: &Cluster, certificate: &Path) -> String {
        let path = Some(certificate.display().to_string());
        let user = AuthInfo { client_certificate: path.clone(), client_key: path, ..AuthInfo::default() };
        let file = kubeconfig(&self.source.name(), cluster, user);
        // JSON is YAML
        serde_json::to_string_pretty(&file).unwrap_or_default()
    }
}

/// The holder of a certificate, from chain and key in one PEM text.
pub(super) fn identity(pem: &str) -> AuthInfo {
    // a key's kind may stand before the word PRIVATE
    let key = pem
        .match_indices("-----BEGIN ")
        .map(|(i, _)| i)
        .find(|i| pem.get(*i..).and_then(|rest| rest.lines().next()).is_some_and(|line| line.contains("PRIVATE KEY")));
    let (chain, key) = pem.split_at(key.unwrap_or(pem.len()));
    AuthInfo {
        client_certificate_data: Some(STANDARD.encode(chain)),
        client_key_data: Some(STANDARD.encode(key).into()),
        ..AuthInfo::default()
    }
}

/// A kubeconfig for one user of one cluster.
pub(super) fn kubeconfig(name: &str, cluster: &Cluster, user: AuthInfo) -> Kubeconfig {
    let entry = Entry {
        server: Some(cluster.server.clone()),
        certificate_authority_data: Some(STANDARD.encode(&cluster.ca)),
        ..Entry::default()
    };
    let context = Context { cluster: name.to_owned(), user: Some("node".to_owned()), ..Context::default() };
    Kubeconfig {
        clusters: vec![NamedCluster { name: name.to_owned(), cluster: Some(entry), ..NamedCluster::default() }],
        auth_infos: vec![NamedAuthInfo { name: "node".to_owned(), auth_info: Some(user), ..NamedAuthInfo::default() }],
        contexts: vec![NamedContext { name: name.to_owned(), context: Some(context), ..NamedContext::default() }],
        current_context: Some(name.to_owned()),
        kind: Some("Config".to_owned()),
        api_version: Some("v1".to_owned()),
        ..Kubeconfig::default()
    }
}

/// The CA of the first cluster of a kubeconfig, in PEM.
fn authority(file: &Kubeconfig) -> Result<Vec<u8>, String> {
    let entry = file.clusters.iter().find_map(|c| c.cluster.as_ref()).ok_or("no cluster in it")?;
    match (&entry.certificate_authority_data, &entry.certificate_authority) {
        (Some(data), _) => STANDARD.decode(data).map_err(|e| format!("certificate-authority-data: {e}")),
        (None, Some(path)) => std::fs::read(path).map_err(|e| format!("{path}: {e}")),
        (None, None) => Err("no certificate-authority in it".to_owned()),
    }
}

pub(super) async fn config(file: Kubeconfig) -> Result<Config, String> {
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(|e| explain_kubeconfig(&e))
}
