//! Tokens of k3s, and the hash of the cluster's CA in them.

use sha2::{Digest, Sha256};
use x509_parser::prelude::X509Certificate;

use crate::cluster::discovery::BootstrapToken;
use crate::hex::hex;

const PREFIX: &str = "K10";
/// The user that agents are, whatever their token says.
const USER: &str = "node";

/// What a server is shown.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::cluster) enum Credentials {
    /// The password of all agents.
    Basic {
        /// Always `node`.
        user: &'static str,
        /// From the token.
        password: String,
    },
    /// A token made for one or a few joins.
    Bearer(BootstrapToken),
}

/// `[K10<hash>::][<user>:]<password>`, with a bootstrap token in the place of user and password if so wished.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the CA, in 64 hexadecimal digits; `None`: the token says nothing of it.
    pub(in crate::cluster) hash: Option<String>,
    /// Without a hash it is shown to whoever answers: a person has said so.
    pub(in crate::cluster) for_anybody: bool,
    pub(in crate::cluster) credentials: Credentials,
}

// the secret does not get into logs
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token {{ hash: {:?}, .. }}", self.hash)
    }
}

impl Token {
    /// Reads a token; the message never has the token in it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let basic = |password: &str| match password {
            "" => Err("the token has no password in it".to_owned()),
            password => Ok(Credentials::Basic { user: USER, password: password.to_owned() }),
        };
        let Some(rest) = text.strip_prefix(PREFIX) else {
            let credentials = BootstrapToken::parse(text).map(Credentials::Bearer).map_or_else(|| basic(text), Ok)?;
            return Ok(Self { hash: None, for_anybody: false, credentials });
        };
        let (hash, secret) =
            rest.split_once("::").ok_or("a token that begins with K10 is written K10<hash>::<user>:<password>")?;
        let whole = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
        if !hash.is_empty() && !whole {
            return Err("the hash in the token is not 64 hexadecimal digits: was the token copied whole?".to_owned());
        }
        let credentials = match BootstrapToken::parse(secret) {
            Some(bootstrap) => Credentials::Bearer(bootstrap),
            None => basic(secret.split_once(':').map_or(secret, |(_, password)| password))?,
        };
        Ok(Self { hash: Some(hash.to_lowercase()).filter(|h| !h.is_empty()), for_anybody: false, credentials })
    }

    /// The same, shown to a server nobody vouches for if `yes`.
    #[must_use]
    pub fn shown_to_anybody(self, yes: bool) -> Self {
        Self { for_anybody: yes, ..self }
    }

    /// Which certificates (DER) of a bundle the hash vouches for; without a hash all of them. An error: it vouches for
    /// none.
    ///
    /// The hash is that of the bundle as served; when there are several certificates, of the root at the end of the chain
    /// that begins with the first. Then only CAs on that chain are believed: whatever else was put in the bundle is not.
    pub(super) fn vouched(&self, pem: &[u8], bundle: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, String> {
        let Some(wanted) = &self.hash else { return Ok(bundle) };
        if digest(pem) == *wanted {
            return Ok(bundle);
        }
        match chain(&bundle) {
            Some(chain) if chain.last().is_some_and(|root| digest(root) == *wanted) => Ok(chain),
            _ => Err("its CA is not the one the token was made for: it is another cluster, or somebody is between; \
                      the token was not sent"
                .to_owned()),
        }
    }
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// From the first certificate to its root, each a CA and signed by the next.
fn chain(bundle: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    let parsed: Option<Vec<X509Certificate<'_>>> =
        bundle.iter().map(|der| x509_parser::parse_x509_certificate(der).ok().map(|(_, c)| c)).collect();
    let parsed = parsed?;
    let mut chain = Vec::new();
    let mut at = 0;
    // a chain is no longer than its bundle: circles end
    while chain.len() < bundle.len() {
        let certificate = parsed.get(at)?;
        if !certificate.is_ca() {
            return None;
        }
        chain.push(bundle.get(at)?.clone());
        if certificate.issuer() == certificate.subject() {
            certificate.verify_signature(None).ok()?;
            return Some(chain);
        }
        at = parsed.iter().position(|issuer| {
            issuer.subject() == certificate.issuer() && certificate.verify_signature(Some(issuer.public_key())).is_ok()
        })?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    #[test]
    fn each_form_of_token_is_read() {
        let hash = "ab".repeat(32);
        let basic = |password: &str| Credentials::Basic { user: "node", password: password.to_owned() };
        let token = Token::parse(&format!("K10{hash}::server:secret:x")).unwrap();
        assert_eq!((token.hash, token.credentials == basic("secret:x")), (Some(hash.clone()), true));
        let token = Token::parse(&format!("K10{hash}::abcdef.0123456789abcdef")).unwrap();
        assert!(matches!(token.credentials, Credentials::Bearer(_)));
        let token = Token::parse("just-a-password").unwrap();
        assert_eq!((token.hash, token.credentials == basic("just-a-password")), (None, true));
        assert!(matches!(Token::parse("abcdef.0123456789abcdef").unwrap().credentials, Credentials::Bearer(_)));
        for wrong in ["", "K10abc", "K10abc::node:p", &format!("K10{hash}::node:"), &format!("K10{hash}::")] {
            assert!(Token::parse(wrong).is_err(), "{wrong}");
        }
    }

    fn authority(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    #[test]
    fn a_hash_vouches_for_its_root_and_no_stranger_beside_it() {
        let root = CertifiedIssuer::self_signed(authority("root"), KeyPair::generate().unwrap()).unwrap();
        let middle = CertifiedIssuer::signed_by(authority("middle"), KeyPair::generate().unwrap(), &root).unwrap();
        let stranger = CertifiedIssuer::self_signed(authority("root"), KeyPair::generate().unwrap()).unwrap();
        let forged = CertifiedIssuer::signed_by(authority("middle"), KeyPair::generate().unwrap(), &stranger).unwrap();
        let leaf = CertificateParams::default().signed_by(&KeyPair::generate().unwrap(), &root).unwrap();
        let der = |c: &dyn AsRef<rcgen::Certificate>| c.as_ref().der().to_vec();
        let token = Token::parse(&format!("K10{}::node:p", digest(&der(&root)))).unwrap();
        let (good, evil) = (vec![der(&middle), der(&root)], vec![der(&middle), der(&root), der(&stranger)]);
        assert_eq!(token.vouched(b"", good.clone()).unwrap(), good);
        assert_eq!(token.vouched(b"", evil).unwrap(), good);
        // an issuer of the right name is not enough, nor is a node's own certificate
        assert!(token.vouched(b"", vec![der(&forged), der(&root)]).is_err());
        assert!(token.vouched(b"", vec![leaf.der().to_vec(), der(&root)]).is_err());
        assert!(token.vouched(b"", vec![]).is_err());
        let raw = Token::parse(&format!("K10{}::node:p", digest(b"bundle as served"))).unwrap();
        assert!(raw.vouched(b"bundle as served", good.clone()).is_ok());
        assert!(raw.vouched(b"another bundle", good).is_err());
    }
}
