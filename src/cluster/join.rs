//! Becoming a member of a cluster, in each of the ways there are.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use ipnet::IpNet;
use kube::Client;
use reqwest::StatusCode;
use tokio::sync::watch;

use super::addresses::MoreAddresses;
use super::bootstrap::{Bootstrap, PAUSE, Source, server_of};
use super::client::{ClusterError, connect};
use super::clock::complain;
use super::complaint::Complaint;
use super::https::{self, Trust};
use super::k3s::{K3s, Token};
use crate::machine::clock::Floor;

/// How a cluster is joined.
#[derive(Debug, Clone)]
pub enum Join {
    /// With the credentials of a kubeconfig.
    Kubeconfig(PathBuf),
    /// With a certificate that the cluster's signer makes.
    Bootstrap {
        /// The right to ask for it.
        source: Source,
        /// Where the kubeconfig of the member is kept.
        kubeconfig: PathBuf,
    },
    /// As an agent of k3s.
    K3s {
        /// URL of a server.
        server: String,
        /// `None`: a member already.
        token: Option<Token>,
    },
    /// With a bootstrap token alone: the server shows whether it is one of k3s.
    Ask {
        /// The ways there are: as an agent of k3s ...
        k3s: Box<Join>,
        /// ... and as kubeadm does.
        bootstrap: Box<Join>,
    },
}

/// Tells the addresses of this node's pods: any port of one of its own, declared ports of one that has the node's.
#[derive(Clone)]
pub struct Pods(Arc<dyn Fn(SocketAddr) -> bool + Send + Sync>);

impl Pods {
    /// By a rule that is asked for every connection.
    pub fn new(rule: impl Fn(SocketAddr) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(rule))
    }

    /// Whether it is one.
    pub(super) fn have(&self, address: SocketAddr) -> bool {
        (self.0)(address)
    }
}

impl std::fmt::Debug for Pods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pods")
    }
}

/// Who joins.
#[derive(Debug, Clone)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// More of them, and names.
    pub more: MoreAddresses,
    /// Where its kubelet API listens.
    pub kubelet: SocketAddr,
    /// Which addresses are those of its pods.
    pub pods: Pods,
    /// What must last is kept below (`<root>`).
    pub root: PathBuf,
    /// A time this machine has seen, as what lay there told before anything was written.
    pub floor: Option<Floor>,
}

impl Node {
    pub(super) fn bootstrap(&self, source: &Source, kubeconfig: &Path) -> Bootstrap {
        Bootstrap {
            node: self.name.clone(),
            pki_dir: self.root.join("pki"),
            kubeconfig: kubeconfig.to_owned(),
            source: source.clone(),
            floor: self.floor.clone(),
        }
    }

    pub(super) fn k3s(&self, server: &str, token: Option<&Token>) -> K3s {
        K3s {
            server: server.to_owned(),
            token: token.cloned(),
            node: self.name.clone(),
            ips: self.ips.clone(),
            more: self.more.clone(),
            root: self.root.clone(),
            kubelet: self.kubelet,
            pods: self.pods.clone(),
            floor: self.floor.clone(),
        }
    }
}

/// What a cluster tells its members; what is configured on the node goes before.
#[derive(Default)]
pub struct Given {
    /// Name servers of pods.
    pub cluster_dns: Vec<IpAddr>,
    /// Cluster domain.
    pub cluster_domain: Option<String>,
    /// Ranges of all pods.
    pub cluster_cidrs: Vec<IpNet>,
    /// For the Node.
    pub annotations: BTreeMap<String, String>,
    /// For the Node.
    pub labels: BTreeMap<String, String>,
    /// CA of the kubelet API's clients.
    pub client_ca_file: Option<PathBuf>,
    /// Serving certificate and key of the kubelet API; and when there is another one.
    pub serving: Option<((PathBuf, PathBuf), watch::Receiver<()>)>,
}

/// What a member has.
pub struct Membership {
    /// Speaks to the API server, as soon as the node is a member.
    pub client: Client,
    /// The CA of a cluster joined as kubeadm does, whose clients have the same; there once the node is a member. `None`: its
    /// clients may have any.
    pub ca_file: Option<PathBuf>,
    /// From the cluster.
    pub given: Given,
    /// Ends once the node is a member.
    pub joined: BoxFuture<'static, ()>,
}

/// Joins as `node`.
pub async fn join(how: &Join, node: &Node) -> Result<Membership, ClusterError> {
    crate::crypto::install();
    match how {
        Join::Kubeconfig(file) => {
            let joined = std::future::ready(()).boxed();
            Ok(Membership { client: connect(file).await?, ca_file: None, given: Given::default(), joined })
        }
        Join::Bootstrap { source, kubeconfig } => {
            let bootstrap = node.bootstrap(source, kubeconfig);
            // a kubeconfig names the CA of the server, and says nothing about clients
            let ca_file = matches!(source, Source::Token { .. }).then(|| bootstrap.ca_file());
            let link = bootstrap.begin();
            let client = link.client("default".to_owned());
            let joined = async move { link.led().await }.boxed();
            Ok(Membership { client, ca_file, given: Given::default(), joined })
        }
        Join::K3s { server, token } => Ok(node.k3s(server, token.as_ref()).join().await),
        Join::Ask { k3s, bootstrap } => {
            let Join::K3s { server, .. } = &**k3s else { return Box::pin(join(bootstrap, node)).await };
            let chosen = if is_k3s(server, node).await { k3s } else { bootstrap };
            Box::pin(join(chosen, node)).await
        }
    }
}

/// The port of the API server, as far as the settings say it: it may be on this machine.
pub async fn server_port(how: &Join) -> Option<u16> {
    let server = match how {
        Join::Kubeconfig(file) => server_of(file).await.ok()?,
        Join::Bootstrap { source, .. } => source.server().await.ok()?,
        Join::K3s { server, .. } => server.clone(),
        Join::Ask { k3s, .. } => return Box::pin(server_port(k3s)).await,
    };
    reqwest::Url::parse(&server).ok()?.port_or_known_default()
}

/// Whether a server is one of k3s, by what a member of it kept.
pub(super) fn was_k3s(server: &str, node: &Node) -> Option<bool> {
    let kept = |name: &str| std::fs::read_to_string(node.root.join(name)).is_ok_and(|text| text.contains(server));
    kept("k3s-config.json").then_some(true).or(kept("kubeconfig").then_some(false))
}

/// Whether a server is one of k3s, by what only k3s shows to strangers.
pub(super) async fn shows_k3s(server: &str) -> Result<bool, String> {
    let answer = https::get(&https::client(Trust::Anybody, None)?, &format!("{server}/cacerts")).await?;
    Ok(answer.status == StatusCode::OK && https::bundle(&answer.body).is_ok())
}

/// The same by either. Waits for an answer.
async fn is_k3s(server: &str, node: &Node) -> bool {
    if let Some(known) = was_k3s(server, node) {
        return known;
    }
    let mut complaint = Complaint::default();
    loop {
        match shows_k3s(server).await {
            Ok(shown) => return shown,
            Err(error) => {
                complain(&mut complaint, &error, server).await;
                tokio::time::sleep(PAUSE.mul_f64(1.0 + rand::random::<f64>())).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_port_of_the_api_server_is_known_before_it_answers() {
        let k3s = |server: &str| Join::K3s { server: server.to_owned(), token: None };
        assert_eq!(server_port(&k3s("https://pi.example:6443")).await, Some(6443));
        assert_eq!(server_port(&k3s("https://pi.example")).await, Some(443));
        let source = Source::Token { server: "https://[fd00::1]:16443".to_owned(), token: None, pins: Vec::new() };
        let bootstrap = Join::Bootstrap { source, kubeconfig: PathBuf::from("/none") };
        assert_eq!(server_port(&bootstrap).await, Some(16443));
        let ask = Join::Ask { k3s: Box::new(k3s("https://pi.example:1")), bootstrap: Box::new(bootstrap) };
        assert_eq!(server_port(&ask).await, Some(1));
        assert_eq!(server_port(&Join::Kubeconfig("/none".into())).await, None);
    }
}
