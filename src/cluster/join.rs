//! Becoming a member of a cluster, in each of the ways there are.

use std::path::{Path, PathBuf};

use kube::Client;

use super::bootstrap::{Bootstrap, Source};
use super::client::{ClusterError, connect};

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
}

/// What a member has.
pub struct Membership {
    /// Speaks to the API server, as soon as the node is a member.
    pub client: Client,
    /// The cluster's CA, there once the node is a member; `None`: not known.
    pub ca_file: Option<PathBuf>,
}

/// Joins as the node `node`; what must last is kept below `root`.
pub async fn join(how: &Join, node: &str, root: &Path) -> Result<Membership, ClusterError> {
    crate::crypto::install();
    match how {
        Join::Kubeconfig(file) => Ok(Membership { client: connect(file).await?, ca_file: None }),
        Join::Bootstrap { source, kubeconfig } => {
            let bootstrap = Bootstrap {
                node: node.to_owned(),
                pki_dir: root.join("pki"),
                kubeconfig: kubeconfig.clone(),
                source: source.clone(),
            };
            let ca_file = Some(bootstrap.ca_file());
            Ok(Membership { client: bootstrap.begin(), ca_file })
        }
    }
}
