//! The kubelet API's serving certificate from the cluster's signer, and the cluster's client CA.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use rcgen::KeyPair;

use super::answer::{Answer, Api};
use super::client::ClusterError;
use super::csr::{self, Wanted};
use super::retry::Retry;

/// A certificate with its key, both in PEM.
pub struct Certificate {
    /// The chain.
    pub chain: String,
    /// The private key.
    pub key: String,
}

/// Asks the cluster's signer, and waits for its approval by a person or controller.
pub async fn request_serving_certificate(client: Client, node: &str, ips: &[IpAddr]) -> Result<Certificate, String> {
    let key = KeyPair::generate().map_err(|e| format!("making a key: {e}"))?;
    let wanted = Wanted { signer: csr::SERVING, node, ips };
    let chain = csr::request(client, &wanted, &key).await.map_err(|e| e.to_string())?;
    Ok(Certificate { chain, key: key.serialize_pem() })
}

/// The CA of the cluster's client certificates, from `kube-system/extension-apiserver-authentication`; tried until the API
/// server answers. An error: the node may not read it.
pub async fn client_ca(client: Client) -> Result<Option<String>, ClusterError> {
    let api: Api<ConfigMap> = Api::namespaced(client, "kube-system");
    let mut retry = Retry::default();
    loop {
        match api.get("extension-apiserver-authentication").await.and_then(Answer::read) {
            Ok(found) => return Ok(found.data.and_then(|mut d| d.remove("client-ca-file"))),
            Err(kube::Error::Api(answer)) if matches!(answer.code, 403 | 404) => {
                return Err(ClusterError::api("reading the cluster's client CA")(kube::Error::Api(answer)));
            }
            Err(_) => tokio::time::sleep(retry.next().unwrap_or_default()).await,
        }
    }
}
