//! What a k3s server offers its agents beside the API server: CAs, settings, certificates.

use std::net::IpAddr;

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use reqwest::{Client, Method, StatusCode};

use super::token::{Credentials, Token};
use crate::cluster::https::{self, Answer, Trust};

/// Where k3s keeps the password of this machine; kept there, so that `k3s agent` and this agent can take turns.
pub(super) const PASSWORD_FILE: &str = "/etc/rancher/node/password";

/// A server that showed it is the one the token is for, and what it is shown.
pub(in crate::cluster) struct Supervisor {
    base: String,
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
    /// Finds the CA of `server` (a URL) as k3s does, and checks it by the token. The token is not sent.
    pub async fn discover(server: &str, token: &Token) -> Result<Self, String> {
        let url = format!("{server}/cacerts");
        let with =
            |ca| Self { base: server.to_owned(), ca, credentials: Some(token.credentials.clone()), identity: None };
        if let Ok(answer) = https::get(&https::client(Trust::System, None)?, &url).await
            && answer.status == StatusCode::OK
        {
            return Ok(with(None));
        }
        let answer = https::get(&https::client(Trust::Anybody, None)?, &url).await?;
        if answer.status != StatusCode::OK {
            return Err(format!("GET {url}: {}: is this a k3s server? {}", answer.status, answer.text()));
        }
        let bundle = https::bundle(&answer.body).map_err(|e| format!("{url}: {e}"))?;
        let vouched = token.vouched(&answer.body, bundle.iter().map(|c| c.to_vec()).collect());
        let ca = pem(&vouched.map_err(|e| format!("{server}: {e}"))?);
        // the server has to hold a certificate of that CA
        https::get(&https::client(Trust::Roots(ca.as_bytes()), None)?, &url).await?;
        Ok(with(Some(ca.into_bytes())))
    }

    /// A server known from before, by its CA, for a node that has a certificate.
    pub fn known(server: &str, ca: &str, identity: String, token: Option<&Token>) -> Self {
        Self {
            base: server.to_owned(),
            ca: Some(ca.as_bytes().to_vec()),
            credentials: token.map(|t| t.credentials.clone()),
            identity: Some(identity),
        }
    }

    /// What its certificate is checked against.
    pub fn trust(&self) -> Trust<'_> {
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
                format!("{server} does not accept the token (401): compare it with the server's node-token file")
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
    use base64::Engine;
    let block = |der: &Vec<u8>| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|c| std::str::from_utf8(c).ok()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    };
    certificates.iter().map(block).collect()
}

#[cfg(test)]
mod tests {
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
}
