//! Certificates for pods (`PodCertificateRequest`): asked of a signer, waited for, renewed when the signer says so.
//!
//! Rules: KEP-4317. Keys are made here and never leave the node; with what was issued they are kept for a start with no
//! API server like all else pods use of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1beta1::{
    PodCertificateRequest, PodCertificateRequestSpec, PodCertificateRequestStatus,
};
use k8s_openapi::api::core::v1::{Node, Pod, PodCertificateProjection, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Client;
use kube::api::PostParams;
use kube::runtime::watcher;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SignatureAlgorithm};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::answer::{Answer, Api, Reader};
use super::client::said;
use super::kept::{Kept, Slot};
use super::retry::patient;
use crate::pki;
use crate::volume::PodCertificate;

/// How long a signer may take before it is asked anew.
const ISSUE: Duration = Duration::from_mins(10);
/// Wait between two tries.
const AGAIN: Duration = Duration::from_secs(10);
/// Renewals of many pods are spread over this many seconds.
const SPREAD: u64 = 300;

/// What a signer gave. Times are unix seconds.
#[derive(Clone, Serialize, Deserialize)]
struct Issued {
    key: String,
    chain: String,
    renew_at: i64,
    expires: i64,
}

/// Why there is no certificate.
enum Trouble {
    /// The signer said no: asking again is of no use.
    Refused(String),
    /// It may come yet.
    Later(String),
}

#[derive(Default)]
struct Entry {
    issued: Option<Issued>,
    trouble: Option<Trouble>,
    asking: Option<AbortHandle>,
}

/// Pod uid, and volume with the place of the source in it.
type Key = (String, String);

/// The certificates of this node's pods; cheap to clone.
#[derive(Clone)]
pub(super) struct PodCertificates {
    node: String,
    kept: Kept,
    changed: watch::Sender<u64>,
    entries: Arc<Mutex<BTreeMap<Key, Entry>>>,
}

/// What a request says.
struct Wanted {
    namespace: String,
    pod: (String, String),
    account: String,
    source: PodCertificateProjection,
}

impl PodCertificates {
    /// None yet; `changed` is woken when one is issued.
    pub fn new(node: String, kept: Kept, changed: watch::Sender<u64>) -> Self {
        Self { node, kept, changed, entries: Arc::default() }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The certificate of a source, if there is one; else it is asked for, and the error says so.
    pub fn get(
        &self,
        client: Client,
        pod: &Pod,
        place: &str,
        source: &PodCertificateProjection,
    ) -> Result<PodCertificate, String> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let key = (uid.clone(), place.to_owned());
        let now = jiff::Timestamp::now().as_second();
        let mut entries = self.entries();
        let entry = entries.entry(key.clone()).or_insert_with(|| {
            let kept = self.kept.get::<Issued>(Slot("podcertificate", &uid, place));
            Entry { issued: kept.filter(|k| k.expires > now), ..Entry::default() }
        });
        let due = entry.issued.as_ref().is_none_or(|issued| now >= issued.renew_at);
        if due && entry.asking.is_none() && !matches!(entry.trouble, Some(Trouble::Refused(_))) {
            let text = |value: &Option<String>| value.clone().filter(|v| !v.is_empty());
            let wanted = Wanted {
                namespace: text(&pod.metadata.namespace).unwrap_or_else(|| "default".to_owned()),
                pod: (pod.metadata.name.clone().unwrap_or_default(), uid),
                account: pod.spec.as_ref().and_then(|s| text(&s.service_account_name)).unwrap_or("default".to_owned()),
                source: source.clone(),
            };
            let this = self.clone();
            entry.asking = Some(tokio::spawn(async move { this.ask(client, key, wanted).await }).abort_handle());
        }
        match (&entry.issued, &entry.trouble) {
            (Some(issued), _) => Ok(PodCertificate { key: issued.key.clone(), chain: issued.chain.clone() }),
            (None, Some(Trouble::Refused(why) | Trouble::Later(why))) => Err(why.clone()),
            (None, None) => Err(format!("waiting for a certificate of signer {}", source.signer_name)),
        }
    }

    /// The pod of that uid is gone.
    pub fn release(&self, pod_uid: &str) {
        for (_, entry) in self.entries().extract_if(.., |(uid, _), _| uid == pod_uid) {
            if let Some(task) = entry.asking {
                task.abort();
            }
        }
    }

    /// Asks until there is an answer.
    async fn ask(self, client: Client, key: Key, wanted: Wanted) {
        loop {
            let answer = self.issue(&client, &wanted).await;
            if let Ok(issued) = &answer {
                self.kept.put(Slot("podcertificate", &key.0, &key.1), issued).await;
            }
            let later = matches!(answer, Err(Trouble::Later(_)));
            if let Some(entry) = self.entries().get_mut(&key) {
                match answer {
                    Ok(issued) => (entry.issued, entry.trouble) = (Some(issued), None),
                    Err(trouble) => entry.trouble = Some(trouble),
                }
                if !later {
                    entry.asking = None;
                }
            }
            self.changed.send_modify(|n| *n += 1);
            if !later {
                return;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn issue(&self, client: &Client, wanted: &Wanted) -> Result<Issued, Trouble> {
        let Wanted { namespace, pod: (name, uid), account, source } = wanted;
        let later = |what: &str| {
            let what = what.to_owned();
            move |e: kube::Error| Trouble::Later(format!("{what}: {}", said(&e)))
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
        let account_uid = accounts
            .get(account)
            .await
            .and_then(Answer::read)
            .map_err(later(&format!("service account {account}")))?
            .metadata
            .uid;
        let node = Api::<Node>::all(client.clone()).get(&self.node).await.and_then(Answer::read);
        let node = node.map_err(later("reading the Node"))?;
        let (key, request) = proof(&source.key_type).map_err(Trouble::Refused)?;
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: name.clone(),
            uid: uid.clone(),
            ..OwnerReference::default()
        };
        let request = PodCertificateRequest {
            metadata: ObjectMeta {
                generate_name: Some("req-".to_owned()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: PodCertificateRequestSpec {
                signer_name: source.signer_name.clone(),
                pod_name: name.clone(),
                pod_uid: uid.clone(),
                service_account_name: account.clone(),
                service_account_uid: account_uid.unwrap_or_default(),
                node_name: self.node.clone(),
                node_uid: node.metadata.uid.unwrap_or_default(),
                max_expiration_seconds: source.max_expiration_seconds,
                stub_pkc_s10_request: ByteString(request),
                unverified_user_annotations: source.user_annotations.clone(),
                ..PodCertificateRequestSpec::default()
            },
            status: None,
        };
        let api: Api<PodCertificateRequest> = Api::namespaced(client.clone(), namespace);
        let made = api.create(&PostParams::default(), &request.into()).await.and_then(Answer::read);
        let made = made.map_err(later("creating a PodCertificateRequest"))?.metadata.name.unwrap_or_default();
        let waiting = tokio::time::timeout(ISSUE, decided(api, &made, &self.node));
        let late = || Trouble::Later(format!("PodCertificateRequest {made} was not answered in time"));
        let status = waiting.await.map_err(|_| late())?.ok_or_else(late)?;
        read(&made, &key, &status)
    }
}

/// The status of a request once somebody has decided on it.
async fn decided(api: Api<PodCertificateRequest>, name: &str, node: &str) -> Option<PodCertificateRequestStatus> {
    // a node may watch those of its pods only
    let fields = format!("metadata.name={name},spec.nodeName={node}");
    let mut events = patient(None, watcher(api, watcher::Config::default().fields(&fields))).boxed();
    let mut reader = Reader::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(request) | watcher::Event::InitApply(request)) => {
                let Ok(request) = reader.read(request) else { continue };
                let status = request.status.filter(|s| s.conditions.as_ref().is_some_and(|c| !c.is_empty()));
                if status.is_some() {
                    return status;
                }
            }
            Ok(watcher::Event::Delete(_)) => return None,
            _ => {}
        }
    }
    None
}

/// What the signer decided.
fn read(name: &str, key: &KeyPair, status: &PodCertificateRequestStatus) -> Result<Issued, Trouble> {
    for condition in status.conditions.iter().flatten() {
        let refused = |what: &str| {
            let (reason, message) = (&condition.reason, &condition.message);
            Err(Trouble::Refused(format!("PodCertificateRequest {name} {what}: {reason}: {message}")))
        };
        match condition.type_.as_str() {
            "Denied" => return refused("was denied"),
            "Failed" => return refused("failed"),
            _ => {}
        }
    }
    let second = |time: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
        time.as_ref().map_or(0, |t| t.0.as_second())
    };
    let text = status.certificate_chain.as_deref().unwrap_or_default();
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let chain = chain.map_err(|e| Trouble::Later(format!("PodCertificateRequest {name}: certificate: {e}")))?;
    Ok(Issued {
        key: key_pem(key),
        chain: chain.iter().map(|der| pki::pem("CERTIFICATE", der)).collect(),
        renew_at: second(&status.begin_refresh_at) + (rand::random::<u64>() % SPREAD) as i64,
        expires: second(&status.not_after),
    })
}

/// The key as PKCS #8. An Ed25519 key is made with its public half beside it (RFC 5958), which OpenSSL before 3.2 does not
/// read: it is written without (RFC 8410).
fn key_pem(key: &KeyPair) -> String {
    const SEED_BEHIND: [u8; 16] = [48, 46, 2, 1, 0, 48, 5, 6, 3, 43, 101, 112, 4, 34, 4, 32];
    let der = key.serialize_der();
    match der.get(16..48).filter(|_| key.algorithm() == &rcgen::PKCS_ED25519) {
        Some(seed) => pki::pem("PRIVATE KEY", &[&SEED_BEHIND, seed].concat()),
        None => pki::pem("PRIVATE KEY", &der),
    }
}

/// A key, and a request signed with it that says nothing else.
fn proof(key_type: &str) -> Result<(KeyPair, Vec<u8>), String> {
    let algorithm: &'static SignatureAlgorithm = match key_type {
        "ECDSAP256" => &rcgen::PKCS_ECDSA_P256_SHA256,
        "ECDSAP384" => &rcgen::PKCS_ECDSA_P384_SHA384,
        "ED25519" => &rcgen::PKCS_ED25519,
        other => {
            return Err(format!(
                "keyType {other}: this agent makes ECDSAP256, ECDSAP384 and ED25519 keys; use one of them"
            ));
        }
    };
    let wrong = |e: rcgen::Error| format!("making a {key_type} key: {e}");
    let key = KeyPair::generate_for(algorithm).map_err(wrong)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(wrong)?;
    Ok((key, request.der().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_signers_decide() {
        let (key, request) = proof("ED25519").unwrap();
        assert!(!request.is_empty() && proof("RSA3072").is_err_and(|e| e.contains("ECDSAP256")));
        let status = |status: serde_json::Value| {
            let now = "2030-01-01T00:00:00Z";
            let mut status = status;
            status["conditions"][0]["lastTransitionTime"] = now.into();
            read("req-x", &key, &serde_json::from_value(status).unwrap())
        };
        let denied = status(serde_json::json!({"conditions": [
            {"type": "Denied", "status": "True", "reason": "No", "message": "not you"}]}));
        assert!(matches!(denied, Err(Trouble::Refused(why)) if why.contains("was denied: No: not you")));
        let chain = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
        let issued = status(serde_json::json!({
            "conditions": [{"type": "Issued", "status": "True", "reason": "R", "message": ""}],
            "certificateChain": format!("text\n{chain}"), "beginRefreshAt": "2030-01-01T12:00:00Z",
            "notAfter": "2030-01-02T00:00:00Z"}));
        let Ok(issued) = issued else { panic!() };
        assert!(issued.chain.starts_with("-----BEGIN") && issued.key.contains("PRIVATE KEY"));
        assert!((0..300).contains(&(issued.renew_at - (issued.expires - 43_200))));
    }
}
