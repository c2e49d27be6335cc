//! What a k3s server offers its agents beside the API server: CAs, settings, certificates.

use std::net::IpAddr;

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use reqwest::{Client, Method, StatusCode};

use super::token::{Credentials, Token};
use crate::cluster::https::{self, Answer, Trust};
use crate::pki;

/// Where k3s keeps the password of this machine; kept there, so that `k3s agent` and this agent can take turns.
pub(super) const PASSWORD_FILE: &str = "/etc/rancher/node/password";

/// By what a server showed that it is the one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cluster) enum Proof {
    /// Its CA is the one whose hash is in the token.
    Hash,
    /// Its CA is the one this node knows since it joined.
    Kept,
    /// Its certificate is by a CA of this system.
    System,
    /// By nothing: a person said that anybody may have the token.
    Nothing,
}

/// A server that showed it is the one the token is for, and what it is shown.
pub(in crate::cluster) struct Supervisor {
    base: String,
    /// How it showed that.
    pub proof: Proof,
    /// The CAs its certificate is checked against, in PEM; `None`: those of the system.
    ca: Option<Vec<u8>>,
    credentials: Option<Credentials>,
    /// Certificate and key of this node, in PEM, once there are any.
    identity: Option<String>,
}

/// A certificate and its key, in PEM.
pub(super) struct Issued {
    pub chain: String,
    pub key: String,
}

impl Supervisor {
    /// Finds the CA of `server` (a URL) as k3s does, and who vouches for it: always the hash in the token, if there is one;
    /// else the CA that was `kept` (PEM), then this system's. The token is not sent, and never will be to a server nobody
    /// vouches for, unless a person said so.
    pub async fn discover(server: &str, token: &Token, kept: Option<&str>) -> Result<Self, String> {
        let url = format!("{server}/cacerts");
        let with = |proof, ca: Option<&[u8]>| Self {
            base: server.to_owned(),
            proof,
            ca: ca.map(<[u8]>::to_vec),
            credentials: Some(token.credentials.clone()),
            identity: None,
        };
        let answer = https::get(&https::client(Trust::Anybody, None)?, &url).await?;
        if answer.status != StatusCode::OK {
            return Err(format!("GET {url}: {}: is this a k3s server? {}", answer.status, answer.text()));
        }
        let bundle = https::bundle(&answer.body).map_err(|e| format!("{url}: {e}"))?;
        if token.hash.is_none() {
            let holds = async |trust| match https::client(trust, None) {
                Ok(client) => https::get(&client, &url).await.is_ok(),
                Err(_) => false,
            };
            if let Some(ca) = kept.map(str::as_bytes)
                && holds(Trust::Roots(ca)).await
            {
                return Ok(with(Proof::Kept, Some(ca)));
            }
            if holds(Trust::System).await {
                return Ok(with(Proof::System, None));
            }
            if !token.for_anybody {
                return Err(format!(
                    "{server}: nothing vouches for its CA, and the token does not say which one it has: the token was not \
                    sent; use a whole one, K10<hash>::..., as `k3s token create` prints on the server; or, where nobody can \
                    be between, say unsafeSkipCAVerification: true (--unsafe-skip-ca-verification)"
                ));
            }
        }
        let proof = if token.hash.is_some() { Proof::Hash } else { Proof::Nothing };
        let vouched = token.vouched(&answer.body, bundle.iter().map(|c| c.to_vec()).collect());
        let ca = pem(&vouched.map_err(|e| format!("{server}: {e}"))?);
        // the server has to hold a certificate of that CA
        https::get(&https::client(Trust::Roots(ca.as_bytes()), None)?, &url).await?;
        Ok(with(proof, Some(ca.as_bytes())))
    }

    /// A server known from before, by its CA, for a node that has a certificate.
    pub fn known(server: &str, ca: &str, identity: String, token: Option<&Token>) -> Self {
        Self {
            base: server.to_owned(),
            proof: Proof::Kept,
            ca: Some(ca.as_bytes().to_vec()),
            credentials: token.map(|t| t.credentials.clone()),
            identity: Some(identity),
        }
    }

    /// What its certificate is checked against.
    fn trust(&self) -> Trust<'_> {
        self.ca.as_deref().map_or(Trust::System, Trust::Roots)
    }

    async fn ask(&self, method: Method, path: &str, csr: Option<(&[u8], &NodeHeaders<'_>)>) -> Result<Answer, String> {
        let send = |client: Client, credentials: Option<&Credentials>| {
            let mut request = client.request(method.clone(), format!("{}{path}", self.base));
            if let Some((body, node)) = csr {
                let ips = node.ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
                let named = [("k3s-Node-Name", node.name), ("k3s-Node-Password", node.password), ("k3s-Node-IP", &ips)];
                request = named.into_iter().fold(request, |r, (key, value)| r.header(key, value)).body(body.to_vec());
            }
            https::send(match credentials {
                Some(Credentials::Basic { user, password }) => request.basic_auth(user, Some(password)),
                Some(Credentials::Bearer(token)) => request.bearer_auth(token.bearer()),
                None => request,
            })
        };
        if self.identity.is_some() {
            let answer = send(https::client(self.trust(), self.identity.as_deref())?, None).await?;
            // the Node was deleted, or the certificate's CA replaced: the token may still do
            if answer.status != StatusCode::UNAUTHORIZED || self.credentials.is_none() {
                return Ok(answer);
            }
        }
        send(https::client(self.trust(), None)?, self.credentials.as_ref()).await
    }

    fn refused(&self, path: &str, answer: &Answer) -> String {
        let server = &self.base;
        match answer.status {
            StatusCode::UNAUTHORIZED if self.credentials.is_none() => format!(
                "{server} does not know this node's certificate (401), and there is no token: set --token or K3S_TOKEN"
            ),
            StatusCode::UNAUTHORIZED => {
                format!(
                    "{server} does not accept the token (401): it is another one, or expired; `k3s token create` there \
                    prints a new one"
                )
            }
            StatusCode::FORBIDDEN => format!("{server} forbids {path} to this node (403): {}", answer.text()),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::INTERNAL_SERVER_ERROR => {
                format!("{server} is not ready ({}): {}", answer.status, answer.text())
            }
            other => format!("{server}{path}: {other}: {}", answer.text()),
        }
    }

    /// GET of a document.
    pub async fn get(&self, path: &str) -> Result<Vec<u8>, String> {
        let answer = self.ask(Method::GET, path, None).await?;
        if answer.status == StatusCode::OK { Ok(answer.body) } else { Err(self.refused(path, &answer)) }
    }

    /// True once the server can serve; other refusals are left to what is asked next.
    pub async fn ready(&self) -> Result<(), String> {
        let answer = self.ask(Method::GET, "/v1-k3s/readyz", None).await?;
        if answer.status.is_server_error() { Err(self.refused("/v1-k3s/readyz", &answer)) } else { Ok(()) }
    }

    /// GET of a PEM bundle.
    pub async fn bundle(&self, path: &str) -> Result<String, String> {
        let body = self.get(path).await?;
        https::bundle(&body).map_err(|e| format!("{}{path}: {e}", self.base))?;
        String::from_utf8(body).map_err(|e| format!("{}{path}: {e}", self.base))
    }

    /// A certificate for a key made here. Older servers take no request and answer with a key of theirs: that one is used.
    pub(super) async fn certificate(&self, path: &str, node: &NodeHeaders<'_>) -> Result<Issued, String> {
        let (key, csr) = request().map_err(|e| format!("making a certificate request: {e}"))?;
        let answer = self.ask(Method::POST, path, Some((&csr, node))).await?;
        match answer.status {
            StatusCode::OK => {}
            StatusCode::FORBIDDEN => {
                return Err(format!(
                    "{} knows a node {} with another password (403): put the machine's old {PASSWORD_FILE} back, or \
                     on the server: kubectl delete secret -n kube-system {}.node-password.k3s; or choose another --node-name",
                    self.base, node.name, node.name
                ));
            }
            _ => return Err(self.refused(path, &answer)),
        }
        let text = String::from_utf8(answer.body).map_err(|e| format!("{}{path}: {e}", self.base))?;
        let (keys, chain) = split(&text);
        https::bundle(chain.as_bytes()).map_err(|e| format!("{}{path}: {e}", self.base))?;
        Ok(Issued { chain, key: if keys.is_empty() { key.serialize_pem() } else { keys } })
    }
}

/// How a node introduces itself.
pub(super) struct NodeHeaders<'a> {
    pub name: &'a str,
    pub password: &'a str,
    pub ips: &'a [IpAddr],
}

/// A key, and a request without a subject (DER): the server fills it in.
fn request() -> Result<(KeyPair, Vec<u8>), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![])?;
    params.distinguished_name = DistinguishedName::new();
    let der = params.serialize_request(&key)?.der().to_vec();
    Ok((key, der))
}

/// PEM blocks of private keys, and the others.
fn split(text: &str) -> (String, String) {
    let (mut keys, mut others, mut block) = (String::new(), String::new(), String::new());
    for line in text.lines() {
        block.push_str(line);
        block.push('\n');
        if line.starts_with("-----END") {
            if line.contains("PRIVATE KEY") {
                keys.push_str(&block);
            } else {
                others.push_str(&block);
            }
            block.clear();
        }
    }
    (keys, others)
}

fn pem(certificates: &[Vec<u8>]) -> String {
    certificates.iter().map(|der| pki::pem("CERTIFICATE", der)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use rcgen::{BasicConstraints, CertifiedIssuer, IsCa};
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject;
    use sha2::{Digest, Sha256};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    #[test]
    fn keys_are_told_from_certificates() {
        let made = rcgen::generate_simple_self_signed(vec![]).unwrap();
        let (cert, key) = (pem(&[made.cert.der().to_vec()]), made.signing_key.serialize_pem());
        let (keys, others) = split(&format!("{cert}{}", key.replace("\r\n", "\n")));
        assert_eq!(keys.lines().collect::<Vec<_>>(), key.lines().collect::<Vec<_>>());
        assert_eq!(https::bundle(others.as_bytes()).unwrap().len(), 1);
        assert!(split(&cert).0.is_empty());
    }

    /// What a stand-in for a server was sent: the lines of each request.
    struct Server {
        url: String,
        ca: String,
        heard: Arc<Mutex<String>>,
    }

    /// A server with a certificate of its own CA, which answers everything with that CA.
    async fn server() -> Server {
        crate::crypto::install();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
        let der = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let tls =
            ServerConfig::builder().with_no_client_auth().with_single_cert(vec![leaf.der().clone()], der).unwrap();
        let tls = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let ca = pki::pem("CERTIFICATE", ca.as_ref().der());
        let heard = Arc::new(Mutex::new(String::new()));
        let (body, log) = (ca.clone(), heard.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = tls.accept(stream).await else { continue };
                let mut request = vec![0; 4096];
                let size = stream.read(&mut request).await.unwrap_or(0);
                log.lock().unwrap().push_str(&String::from_utf8_lossy(&request[..size]));
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        Server { url, ca, heard }
    }

    impl Server {
        /// How it is joined with `token`, and whether it was shown it.
        async fn joined(&self, token: &Token, kept: Option<&str>) -> (Result<Proof, String>, bool) {
            let found = Supervisor::discover(&self.url, token, kept).await;
            let proof = match found {
                Ok(found) => found.ready().await.map(|()| found.proof),
                Err(error) => Err(error),
            };
            (proof, self.heard.lock().unwrap().to_lowercase().contains("authorization"))
        }
    }

    #[tokio::test]
    async fn a_token_goes_to_no_server_that_nobody_vouches_for() {
        let server = server().await;
        let token = |text: &str| Token::parse(text).unwrap();
        for text in ["abcdef.0123456789abcdef", "password", "K10::node:password"] {
            let (error, shown) = server.joined(&token(text), None).await;
            assert!(error.unwrap_err().contains("unsafeSkipCAVerification") && !shown, "{text}");
            let other = rcgen::generate_simple_self_signed(vec![]).unwrap().cert.pem();
            assert!(!server.joined(&token(text), Some(&other)).await.1, "{text}");
        }
        // what a person says of servers nobody vouches for does not make a hash go away
        let wrong = token(&format!("K10{}::node:password", "0".repeat(64))).shown_to_anybody(true);
        let (error, shown) = server.joined(&wrong, Some(&server.ca)).await;
        assert!(error.unwrap_err().contains("not the one the token was made for") && !shown);
    }

    #[tokio::test]
    async fn a_server_is_known_by_hash_by_what_was_kept_or_not_at_all() {
        let server = server().await;
        let hash = crate::hex::hex(&Sha256::digest(&server.ca));
        let whole = Token::parse(&format!("K10{hash}::abcdef.0123456789abcdef")).unwrap();
        assert_eq!(server.joined(&whole, None).await, (Ok(Proof::Hash), true));
        let bare = Token::parse("password").unwrap();
        assert_eq!(server.joined(&bare, Some(&server.ca)).await, (Ok(Proof::Kept), true));
        assert_eq!(server.joined(&bare.shown_to_anybody(true), None).await, (Ok(Proof::Nothing), true));
    }
}
