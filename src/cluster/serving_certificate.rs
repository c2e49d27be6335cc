//! The kubelet API's serving certificate from the cluster's signer (Kubernetes "Certificate Signing Requests",
//! `kubernetes.io/kubelet-serving`), and the cluster's client CA.

use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use tracing::{info, warn};

use super::client::ClusterError;
use super::retry::Retry;
use crate::errors::causes;

const SIGNER: &str = "kubernetes.io/kubelet-serving";
/// How long an approval is waited for before a new request is made.
const APPROVAL: Duration = Duration::from_mins(15);

/// A certificate with its key, both in PEM.
pub struct Certificate {
    /// The chain.
    pub chain: String,
    /// The private key.
    pub key: String,
}

fn request(node: &str, ips: &[IpAddr]) -> Result<(String, KeyPair), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![node.to_owned()])?;
    params.subject_alt_names.extend(ips.iter().map(|ip| SanType::IpAddress(*ip)));
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    Ok((params.serialize_request(&key)?.pem()?, key))
}

/// Asks the cluster's signer, and waits for its approval by a person or controller.
pub async fn request_serving_certificate(client: Client, node: &str, ips: &[IpAddr]) -> Result<Certificate, String> {
    let (pem, key) = request(node, ips).map_err(|e| format!("making a certificate signing request: {e}"))?;
    let api: Api<CertificateSigningRequest> = Api::all(client);
    let csr = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("csr-".to_owned()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: SIGNER.to_owned(),
            usages: Some(vec!["digital signature".to_owned(), "server auth".to_owned()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let made = api.create(&PostParams::default(), &csr).await.map_err(|e| causes(&e))?;
    let name = made.metadata.name.unwrap_or_default();
    info!("the serving certificate waits for approval: kubectl certificate approve {name}");
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut seen = watcher(api, only).backoff(Retry::new()).applied_objects().boxed();
    let decided = async {
        while let Some(csr) = seen.next().await {
            let Some(status) = csr.ok().and_then(|c| c.status) else { continue };
            if let Some(refused) = status.conditions.iter().flatten().find(|c| c.type_ != "Approved") {
                let message = refused.message.clone().unwrap_or_default();
                return Err(format!("request {name} was refused ({}): {message}", refused.type_));
            }
            if let Some(ByteString(chain)) = status.certificate {
                return String::from_utf8(chain).map_err(|e| format!("certificate of request {name}: {e}"));
            }
        }
        Err(format!("the watch of request {name} ended"))
    };
    let chain = tokio::time::timeout(APPROVAL, decided);
    let chain = chain.await.map_err(|_| format!("request {name} was not approved in time"))??;
    Ok(Certificate { chain, key: key.serialize_pem() })
}

/// The CA of the cluster's client certificates, from `kube-system/extension-apiserver-authentication`; tried until the API
/// server answers. `None`: the node may not read it, or there is none.
pub async fn client_ca(client: Client) -> Option<String> {
    let api: Api<ConfigMap> = Api::namespaced(client, "kube-system");
    let mut retry = Retry::new();
    loop {
        match api.get("extension-apiserver-authentication").await {
            Ok(found) => return found.data.and_then(|mut d| d.remove("client-ca-file")),
            Err(kube::Error::Api(answer)) if matches!(answer.code, 403 | 404) => {
                let error = ClusterError::api("reading the cluster's client CA")(kube::Error::Api(answer));
                warn!(%error, "clients can log in by token only: set clientCAFile, or bind the role \
                    extension-apiserver-authentication-reader in kube-system to system:nodes");
                return None;
            }
            Err(_) => tokio::time::sleep(retry.next().unwrap_or_default()).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_as_the_signer_wants_them() {
        use x509_parser::prelude::FromDer;
        let (pem, _) = request("pi", &["10.0.0.1".parse().unwrap()]).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, csr) = x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents).unwrap();
        let subject = csr.certification_request_info.subject.to_string();
        assert!(subject.contains("O=system:nodes") && subject.contains("CN=system:node:pi"), "{subject}");
    }
}
