//! Which cluster a server belongs to, by a bootstrap token: kubeadm's discovery (Kubernetes "Authenticating with Bootstrap
//! Tokens", ConfigMap Signing).
//!
//! `kube-public/cluster-info` is read from a server nobody vouches for yet. Its signature shows that it was written by
//! somebody who knows the token; a hash of the CA's public key shows more, as everybody who joins knows the token. The
//! token itself is not sent.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::config::Kubeconfig;
use reqwest::StatusCode;
use ring::hmac;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::https::{self, Trust};
use crate::config::mistake::explain_kubeconfig;
use crate::pki;

const PATH: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";

/// A bootstrap token, `[a-z0-9]{6}.[a-z0-9]{16}`.
#[derive(Clone, PartialEq, Eq)]
pub struct BootstrapToken {
    id: String,
    secret: String,
}

impl BootstrapToken {
    /// `None`: it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.split_once('.')?;
        let valid = |s: &str, n| s.len() == n && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        (valid(id, 6) && valid(secret, 16)).then(|| Self { id: id.to_owned(), secret: secret.to_owned() })
    }

    /// As it is sent.
    pub fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }
}

// the secret does not get into logs
impl std::fmt::Debug for BootstrapToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.<secret>", self.id)
    }
}

/// The SHA-256 of a CA's public key (`SubjectPublicKeyInfo`), as kubeadm writes it: `sha256:<64 hex digits>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl Pin {
    /// `None`: it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:")?;
        let byte = |i: usize| u8::from_str_radix(hex.get(i..i + 2)?, 16).ok();
        let bytes = (0..32).map(|i| byte(2 * i)).collect::<Option<Vec<u8>>>()?;
        Some(Self(bytes.try_into().ok().filter(|_| hex.len() == 64 && hex.is_ascii())?))
    }

    fn of(certificate: &[u8]) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        Some(Self(Sha256::digest(parsed.tbs_certificate.subject_pki.raw).into()))
    }
}

/// A cluster that showed who it is.
#[derive(Debug)]
pub(super) struct Cluster {
    /// URL of its API server.
    pub server: String,
    /// Its CA, in PEM.
    pub ca: Vec<u8>,
}

/// Finds the cluster that `server` (a URL) belongs to; with `pins`, only CAs that have one of them are believed.
pub(super) async fn discover(server: &str, token: &BootstrapToken, pins: &[Pin]) -> Result<Cluster, String> {
    let url = format!("{}{PATH}", server.trim_end_matches('/'));
    let answer = https::get(&https::client(Trust::Anybody, None)?, &url).await?;
    match answer.status {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => {
            return Err(format!(
                "{server} has no ConfigMap cluster-info in kube-public: it was not made by kubeadm; \
                write one, or use --bootstrap-kubeconfig"
            ));
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            return Err(format!(
                "{server} does not show kube-public/cluster-info to strangers ({}): bind a role that may \
                get it to system:unauthenticated, or use --bootstrap-kubeconfig; of k3s, use a token with the hash of \
                its CA in it, K10<hash>::...",
                answer.status
            ));
        }
        other => return Err(format!("GET {url}: {other}: {}", answer.text())),
    }
    let kubeconfig = signed(&answer.body, token)?;
    let mut cluster = cluster(&kubeconfig)?;
    cluster.ca = pinned(&cluster.ca, pins).map_err(|e| format!("the CA of {server}: {e}"))?;
    // what was said by anybody is said again by a server of that CA
    let url = format!("{}{PATH}", cluster.server.trim_end_matches('/'));
    let client = https::client(Trust::Roots(&cluster.ca), None)?;
    let again = https::get(&client, &url).await.map_err(|e| format!("the API server of cluster-info: {e}"))?;
    if again.status != StatusCode::OK || signed(&again.body, token)? != kubeconfig {
        return Err(format!("{server} and {} do not agree on cluster-info", cluster.server));
    }
    Ok(cluster)
}

/// Which CAs of a PEM bundle are believed: with `pins` only those that have one of them, as whoever knows the token can put
/// another one beside.
fn pinned(ca: &[u8], pins: &[Pin]) -> Result<Vec<u8>, String> {
    let found = https::bundle(ca).map_err(|e| format!("in cluster-info: {e}"))?;
    if pins.is_empty() {
        return Ok(ca.to_vec());
    }
    let ours = found.iter().filter(|ca| Pin::of(ca).is_some_and(|pin| pins.contains(&pin)));
    let believed: String = ours.map(|ca| pki::pem("CERTIFICATE", ca)).collect();
    if believed.is_empty() {
        return Err(
            "it has none of the hashes of --ca-cert-hash: it is another cluster, or somebody is between; nothing \
                    was sent"
                .to_owned(),
        );
    }
    Ok(believed.into_bytes())
}

/// The kubeconfig in a cluster-info, if it is signed with the token.
fn signed(body: &[u8], token: &BootstrapToken) -> Result<String, String> {
    let object: ConfigMap = crate::json::from_slice(body).map_err(|e| format!("cluster-info is damaged: {e}"))?;
    let mut data = object.data.unwrap_or_default();
    let kubeconfig = data.remove("kubeconfig").ok_or("cluster-info has no kubeconfig in it")?;
    let Some(jws) = data.get(&format!("jws-kubeconfig-{}", token.id)) else {
        return Err(format!(
            "cluster-info is not signed for the token {}: it does not exist, or expired; \
            `kubeadm token create` makes another",
            token.id
        ));
    };
    if !verifies(jws, &kubeconfig, token) {
        return Err(format!(
            "the signature of cluster-info was not made with this token ({}): its secret is another one, \
            or somebody is between; nothing was sent",
            token.id
        ));
    }
    Ok(kubeconfig)
}

/// Checks a detached JWS (RFC 7515, appendix F) made with HS256 and the token's secret.
fn verifies(jws: &str, content: &str, token: &BootstrapToken) -> bool {
    #[derive(Deserialize)]
    struct Header {
        alg: String,
        kid: String,
    }
    let Some((header, signature)) = jws.split_once("..") else { return false };
    let read = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
    let Some((Ok(fields), signature)) = read(header).map(|h| serde_json::from_slice::<Header>(&h)).zip(read(signature))
    else {
        return false;
    };
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.secret.as_bytes());
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    fields.alg == "HS256" && fields.kid == token.id && hmac::verify(&key, signed.as_bytes(), &signature).is_ok()
}

fn cluster(kubeconfig: &str) -> Result<Cluster, String> {
    let wrong = |e: &dyn std::fmt::Display| format!("the kubeconfig of cluster-info: {e}");
    let file = Kubeconfig::from_yaml(kubeconfig).map_err(|e| wrong(&explain_kubeconfig(&e)))?;
    let found = file.clusters.into_iter().find_map(|c| c.cluster).ok_or_else(|| wrong(&"no cluster in it"))?;
    let server = found.server.filter(|s| s.starts_with("https://")).ok_or_else(|| wrong(&"no https server in it"))?;
    let data = found.certificate_authority_data.ok_or_else(|| wrong(&"no certificate-authority-data in it"))?;
    let ca = base64::engine::general_purpose::STANDARD.decode(data).map_err(|e| wrong(&e))?;
    Ok(Cluster { server, ca })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(header: &str, content: &str, secret: &str) -> String {
        let header = URL_SAFE_NO_PAD.encode(header);
        let input = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        format!("{header}..{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, input.as_bytes())))
    }

    #[test]
    fn tokens_and_pins_are_of_their_form() {
        assert_eq!(BootstrapToken::parse("abcdef.0123456789abcdef").unwrap().bearer(), "abcdef.0123456789abcdef");
        for wrong in ["", "abcdef", "abcdef.0123456789abcdeF", "abcde.0123456789abcdef", "abcdef.0123456789abcdef0"] {
            assert!(BootstrapToken::parse(wrong).is_none(), "{wrong}");
        }
        assert!(Pin::parse(&format!("sha256:{}", "0f".repeat(32))).is_some());
        for wrong in ["sha256:00", "00", &format!("sha256:{}", "0g".repeat(32)), &format!("sha256:{}", "é".repeat(32))]
        {
            assert!(Pin::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_hash_vouches_for_its_own_ca_only() {
        let made = || rcgen::generate_simple_self_signed(vec![]).unwrap().cert;
        let (ours, evil) = (made(), made());
        let text = |cert: &rcgen::Certificate| pki::pem("CERTIFICATE", cert.der());
        let bundle = format!("{}{}", text(&evil), text(&ours));
        let pin = Pin::of(ours.der()).unwrap();
        assert_eq!(pinned(bundle.as_bytes(), &[pin]).unwrap(), text(&ours).into_bytes());
        assert_eq!(pinned(bundle.as_bytes(), &[]).unwrap(), bundle.into_bytes());
        let other = Pin::parse(&format!("sha256:{}", "0".repeat(64))).unwrap();
        assert!(pinned(text(&ours).as_bytes(), &[other]).unwrap_err().contains("none of the hashes"));
        assert!(pinned(b"", &[]).is_err());
    }

    #[test]
    fn only_the_tokens_own_signature_counts() {
        let token = BootstrapToken::parse("abcdef.0123456789abcdef").unwrap();
        let header = r#"{"alg":"HS256","kid":"abcdef"}"#;
        assert!(verifies(&sign(header, "c", "0123456789abcdef"), "c", &token));
        assert!(!verifies(&sign(header, "c", "0123456789abcdef"), "d", &token));
        assert!(!verifies(&sign(header, "c", "another"), "c", &token));
        assert!(!verifies(&sign(r#"{"alg":"none","kid":"abcdef"}"#, "c", "0123456789abcdef"), "c", &token));
        assert!(!verifies(&sign(r#"{"alg":"HS256","kid":"other1"}"#, "c", "0123456789abcdef"), "c", &token));
        for damaged in ["", ".", "..", "a..b", "a.b.c"] {
            assert!(!verifies(damaged, "c", &token), "{damaged}");
        }
    }
}
