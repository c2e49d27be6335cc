//! Certificates by the cluster's signers (Kubernetes "Certificate Signing Requests"): asking, and waiting for approval.

use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use sha2::{Digest, Sha256};
use tracing::info;

use super::answer::{Api, Reader};
use super::client::ClusterError;
use super::retry::patient;
use crate::hex::hex;

/// Signer of kubelets' client certificates.
pub(super) const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signer of kubelets' serving certificates.
pub(super) const SERVING: &str = "kubernetes.io/kubelet-serving";
/// How long an approval is waited for before a new request is made.
const APPROVAL: Duration = Duration::from_mins(15);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum CsrError {
    /// A person or controller said no, or the signer could not; asking the same again is of no use.
    #[error("request {name} was refused ({kind}): {message}")]
    Refused {
        /// Of the `CertificateSigningRequest`.
        name: String,
        /// `Denied` or `Failed`.
        kind: String,
        /// What they said.
        message: String,
    },
    /// Nobody decided.
    #[error("request {0} was not approved in time: kubectl certificate approve {0}")]
    Late(String),
    /// The API server does not take the credentials.
    #[error("{0}")]
    Unauthorized(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// What a certificate is for.
pub(super) struct Wanted<'a> {
    /// [`CLIENT`] or [`SERVING`].
    pub signer: &'static str,
    /// Name of the Node.
    pub node: &'a str,
    /// Addresses of the Node, for [`SERVING`].
    pub ips: &'a [IpAddr],
}

impl Wanted<'_> {
    /// A request in PEM: subject as the signers want it; names only for serving.
    fn pem(&self, key: &KeyPair) -> Result<String, rcgen::Error> {
        let names = if self.signer == SERVING { vec![self.node.to_owned()] } else { vec![] };
        let mut params = CertificateParams::new(names)?;
        params.subject_alt_names.extend(self.ips.iter().map(|ip| SanType::IpAddress(*ip)));
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, format!("system:node:{}", self.node));
        params.serialize_request(key)?.pem()
    }

    /// The same for the same key, so that a request is found again after a restart.
    fn name(&self, key: &KeyPair) -> String {
        let digest = Sha256::digest([key.public_key_raw(), self.signer.as_bytes(), self.node.as_bytes()].concat());
        format!("node-csr-{}", hex(digest.get(..16).unwrap_or(&digest)))
    }
}

/// Asks the cluster's signer, and waits for approval by a person or controller. Returns the chain in PEM.
pub(super) async fn request(client: Client, wanted: &Wanted<'_>, key: &KeyPair) -> Result<String, CsrError> {
    let other = |e: &dyn std::fmt::Display| CsrError::Other(format!("making a certificate signing request: {e}"));
    let pem = wanted.pem(key).map_err(|e| other(&e))?;
    let usage = if wanted.signer == SERVING { "server auth" } else { "client auth" };
    let api: Api<CertificateSigningRequest> = Api::all(client);
    let name = wanted.name(key);
    let csr = CertificateSigningRequest {
        metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: wanted.signer.to_owned(),
            usages: Some(vec!["digital signature".to_owned(), usage.to_owned()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    match api.create(&PostParams::default(), &csr.into()).await.map_err(ClusterError::api("asking for a certificate")) {
        Err(error) if error.is_unauthorized() => return Err(CsrError::Unauthorized(error.to_string())),
        Err(error) if !error.is_conflict() => return Err(CsrError::Other(error.to_string())),
        Ok(_) | Err(_) => {}
    }
    let decided = async {
        let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut seen = patient(None, watcher(api, only)).applied_objects().boxed();
        let (mut told, mut reader) = (false, Reader::default());
        while let Some(csr) = seen.next().await {
            let Some(status) = csr.ok().and_then(|c| reader.read(c).ok()).map(|c| c.status.unwrap_or_default()) else {
                continue;
            };
            if let Some(refused) = status.conditions.iter().flatten().find(|c| c.type_ != "Approved") {
                let message = refused.message.clone().unwrap_or_default();
                return Err(CsrError::Refused { name: name.clone(), kind: refused.type_.clone(), message });
            }
            if let Some(ByteString(chain)) = status.certificate {
                return String::from_utf8(chain).map_err(|e| CsrError::Other(format!("certificate of {name}: {e}")));
            }
            if !told && status.conditions.is_none() {
                info!(signer = wanted.signer, "waiting for approval: kubectl certificate approve {name}");
                told = true;
            }
        }
        Err(CsrError::Other(format!("the watch of request {name} ended")))
    };
    tokio::time::timeout(APPROVAL, decided).await.map_err(|_| CsrError::Late(name.clone()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_as_the_signers_want_them() {
        use x509_parser::prelude::FromDer;
        let key = KeyPair::generate().unwrap();
        for (signer, ips, sans) in [(SERVING, vec!["10.0.0.1".parse().unwrap()], true), (CLIENT, vec![], false)] {
            let wanted = Wanted { signer, node: "pi", ips: &ips };
            let pem = wanted.pem(&key).unwrap();
            let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
            let (_, csr) =
                x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents).unwrap();
            let subject = csr.certification_request_info.subject.to_string();
            assert!(subject.contains("O=system:nodes") && subject.contains("CN=system:node:pi"), "{subject}");
            // the approver refuses client certificates with names in them
            assert_eq!(csr.requested_extensions().is_some(), sans);
            assert_eq!(wanted.name(&key), wanted.name(&key));
        }
    }
}
