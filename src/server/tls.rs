//! TLS of the kubelet API: serving certificate, and who a client certificate names.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::access::User;
use crate::pki::{self, Standing, certificates, write_secret};
use crate::{files, metrics};

/// What the server's certificate is made from.
pub struct TlsSettings {
    /// Certificate chain and key in PEM; `None`: self-signed, kept in `pki_dir`.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Where a self-signed certificate is kept (`<root>/pki`).
    pub pki_dir: PathBuf,
    /// CAs whose client certificates are accepted; `None`: no client certificates.
    pub client_ca_file: Option<PathBuf>,
    /// The cluster's own CA where that is its clients' as well (kubeadm), which may be written later: accepted when the cluster
    /// does not tell which one its clients have.
    pub cluster_ca: Option<PathBuf>,
    /// Names of the Node.
    pub names: Vec<String>,
    /// Addresses of the Node.
    pub ips: Vec<IpAddr>,
}

/// Days a self-signed certificate is valid, as a kubelet's own.
const SELF_SIGNED_DAYS: i64 = 365;

/// How often files are looked at again, at most: handshakes and requests ask for it.
const LOOK: Duration = Duration::from_secs(1);

/// TLS as it is now. Files that have changed are read again when somebody comes.
pub struct Tls {
    state: Mutex<State>,
    doubted: Notify,
}

struct State {
    settings: TlsSettings,
    now: Now,
    seen: Vec<Seen>,
    member: Seen,
    looked: Instant,
}

/// Most certificates of issuers a client may show: a way to the CA among many takes seconds, before it is known who asks.
const MOST_ISSUERS: usize = 4;

/// What connections are served with.
#[derive(Clone)]
struct Now {
    acceptor: TlsAcceptor,
    /// Knows client certificates.
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

/// What tells a file from another one of the same name; `None`: there is none.
type Seen = Option<(u64, u64, i64, i64, u64)>;

fn seen(file: &Path) -> Seen {
    let found = fs::metadata(file).ok()?;
    Some((found.dev(), found.ino(), found.mtime(), found.mtime_nsec(), found.size()))
}

impl TlsSettings {
    fn seen(&self) -> Vec<Seen> {
        let serving = self.certificate.iter().flat_map(|(cert, key)| [cert, key]);
        serving.chain(&self.client_ca_file).map(|file| seen(file)).collect()
    }

    fn member(&self) -> Seen {
        seen(&self.pki_dir.join("kubelet-client-current.pem"))
    }
}

impl Tls {
    /// By what is there: files, or a self-signed certificate.
    pub fn new(settings: TlsSettings) -> Result<Self, String> {
        let (seen, member) = (settings.seen(), settings.member());
        let now = build(&settings)?;
        let state = State { settings, now, seen, member, looked: Instant::now() };
        Ok(Self { state: Mutex::new(state), doubted: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        let mut state = self.state();
        if state.looked.elapsed() >= LOOK {
            self.look_again(&mut state);
        }
        state.now.clone()
    }

    fn look_again(&self, state: &mut State) {
        state.looked = Instant::now();
        let (seen, member) = (state.settings.seen(), state.settings.member());
        if member != std::mem::replace(&mut state.member, member) {
            self.doubted.notify_one();
        }
        if seen != state.seen {
            state.rebuild();
        }
    }

    /// Looks at the files now.
    pub fn look(&self) {
        self.look_again(&mut self.state());
    }

    /// For the next handshake.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.now().acceptor
    }

    /// Changes the settings.
    pub fn change(&self, change: impl FnOnce(&mut TlsSettings)) {
        let mut state = self.state();
        change(&mut state.settings);
        state.rebuild();
    }

    /// Waits until the client CA should be asked for again: this node's membership was renewed, or somebody has shown a
    /// certificate of another one.
    pub async fn doubted(&self) {
        self.doubted.notified().await;
    }

    /// Whom certificates name now that a client has shown, with proof of the first one's key; `None`: nobody, as they are of
    /// another CA, or have expired (the kubelet's `AuthenticateRequest` verifies for each request as well).
    pub fn user(&self, shown: &[CertificateDer<'_>]) -> Option<User> {
        let (first, others) = shown.split_first()?;
        let clients = self.now().clients;
        let verified = match &clients {
            Some(clients) => clients.verify_client_cert(first, others, UnixTime::now()).map_err(|e| e.to_string()),
            None => Err("no client CA is known".to_owned()),
        };
        if let Err(error) = verified {
            debug!(error, "client certificate not accepted");
            self.doubted.notify_one();
            return None;
        }
        user_of(first)
    }
}

impl State {
    fn rebuild(&mut self) {
        self.seen = self.settings.seen();
        match build(&self.settings) {
            Ok(now) => {
                info!("kubelet API: certificate and client CA read");
                self.now = now;
            }
            Err(error) => warn!(error, "kubelet API: files not read: certificate and client CA stay as they were"),
        }
    }
}

/// TLS 1.2 and 1.3.
fn build(settings: &TlsSettings) -> Result<Now, String> {
    crate::crypto::install();
    let (cert, key) = match &settings.certificate {
        Some((cert, key)) => (cert.clone(), key.clone()),
        None => self_signed(settings)?,
    };
    let chain = certificates(&cert)?;
    metrics::SERVING_CERTIFICATE.set(chain.first().and_then(|leaf| pki::ends(leaf)));
    let key = PrivateKeyDer::from_pem_file(&key).map_err(|e| format!("reading the key {}: {e}", key.display()))?;
    let clients = settings.client_ca_file.as_deref().map(verifier).transpose()?;
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    let proof = Proof { clients: clients.clone(), algorithms };
    let builder = rustls::ServerConfig::builder().with_client_cert_verifier(Arc::new(proof));
    let mut config =
        builder.with_single_cert(chain, key).map_err(|e| format!("serving certificate {}: {e}", cert.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // nothing is kept of who has gone; Kubernetes' clients do not resume sessions
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Now { acceptor: TlsAcceptor::from(Arc::new(config)), clients })
}

fn verifier(file: &Path) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let failed = |e: &dyn std::fmt::Display| format!("client CA {}: {e}", file.display());
    let mut roots = RootCertStore::empty();
    for ca in certificates(file).map_err(|e| failed(&e))? {
        roots.add(ca).map_err(|e| failed(&e))?;
    }
    WebPkiClientVerifier::builder(Arc::new(roots)).build().map_err(|e| failed(&e))
}

/// Asks for a client certificate, and whether the client holds its key; which CA it is of is asked for each request, so that a
/// client with a certificate for others still has its token (Go's `tls.RequestClientCert`, as the kubelet).
#[derive(Debug)]
struct Proof {
    clients: Option<Arc<dyn ClientCertVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for Proof {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.as_ref().map_or(&[], |clients| clients.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if others.len() > MOST_ISSUERS {
            return Err(rustls::Error::General(format!("more than {MOST_ISSUERS} certificates of issuers")));
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The kept certificate, or a new one when there is none for these names that is still valid.
fn self_signed(settings: &TlsSettings) -> Result<(PathBuf, PathBuf), String> {
    let (cert, key) = (settings.pki_dir.join("kubelet.crt"), settings.pki_dir.join("kubelet.key"));
    let names = settings.pki_dir.join("kubelet.names");
    let wanted = format!("{:?} {:?}", settings.names, settings.ips);
    if fs::read_to_string(&names).is_ok_and(|n| n == wanted)
        && key.exists()
        && matches!(pki::standing(&cert), Ok(Standing::Valid { .. }))
    {
        return Ok((cert, key));
    }
    let failed = |e: &dyn std::fmt::Display| format!("making a serving certificate in {}: {e}", cert.display());
    let pair = KeyPair::generate().map_err(|e| failed(&e))?;
    let mut params = CertificateParams::new(settings.names.clone()).map_err(|e| failed(&e))?;
    params.subject_alt_names.extend(settings.ips.iter().map(|ip| SanType::IpAddress(*ip)));
    let name = settings.names.first().map_or("pikelet", String::as_str);
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // a board without a clock may be far behind: valid from the epoch
    params.not_before = rcgen::date_time_ymd(1970, 1, 1);
    let end = jiff::Timestamp::now().as_second() + SELF_SIGNED_DAYS * 86_400;
    let end = jiff::Timestamp::from_second(end).unwrap_or_default().to_zoned(jiff::tz::TimeZone::UTC);
    params.not_after = rcgen::date_time_ymd(i32::from(end.year()), end.month() as u8, end.day() as u8);
    let made = params.self_signed(&pair).map_err(|e| failed(&e))?;
    files::dir(&settings.pki_dir, 0o700)
        .and_then(|()| write_secret(&key, &pair.serialize_pem()))
        .and_then(|()| write_secret(&cert, &made.pem()))
        .and_then(|()| write_secret(&names, &wanted))
        .map_err(|e| failed(&e))?;
    Ok((cert, key))
}

/// Whom a verified client certificate names: its last common name is the user, as Go has it, organizations are groups.
fn user_of(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().last()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned);
    let groups = groups.chain(["system:authenticated".to_owned()]).collect();
    Some(User { name, uid: String::new(), groups, extra: BTreeMap::new() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rcgen::{BasicConstraints, CertifiedIssuer, IsCa};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    type Ca = CertifiedIssuer<'static, KeyPair>;

    fn settings(name: &str) -> TlsSettings {
        let dir = std::env::temp_dir().join(format!("pikelet-tls-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        TlsSettings {
            certificate: None,
            pki_dir: dir,
            client_ca_file: None,
            cluster_ca: None,
            names: vec!["pi".into()],
            ips: vec!["10.0.0.1".parse().unwrap()],
        }
    }

    fn ca(name: &str) -> Ca {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    #[test]
    fn few_certificates_of_issuers_are_looked_at() {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        let proof = Proof { clients: None, algorithms };
        let shown = vec![CertificateDer::from(vec![0]); MOST_ISSUERS + 1];
        let try_with = |others| proof.verify_client_cert(&shown[0], others, UnixTime::now());
        assert!(try_with(&shown[..MOST_ISSUERS]).is_ok());
        assert!(try_with(&shown).unwrap_err().to_string().contains("certificates of issuers"));
    }

    /// A client's certificate of a CA, and its key.
    fn client(ca: &Ca, ends: i32) -> (CertificateDer<'static>, KeyPair) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "admin");
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = rcgen::date_time_ymd(ends, 1, 1);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, ca).unwrap().der().clone(), key)
    }

    #[test]
    fn a_self_signed_certificate_is_kept_and_renewed_for_new_names() {
        let mut settings = settings("own");
        let dir = settings.pki_dir.clone();
        assert!(build(&settings).is_ok());
        let first = fs::read(dir.join("kubelet.crt")).unwrap();
        assert!(build(&settings).is_ok());
        assert_eq!(first, fs::read(dir.join("kubelet.crt")).unwrap());
        settings.ips.push("10.0.0.2".parse().unwrap());
        assert!(build(&settings).is_ok());
        assert_ne!(first, fs::read(dir.join("kubelet.crt")).unwrap());
        settings.client_ca_file = Some(dir.join("none"));
        let error = build(&settings).err().unwrap();
        assert!(error.contains("none"), "{error}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn certificates_name_users_as_long_as_their_ca_is_the_clients() {
        let (one, other) = (ca("one"), ca("other"));
        let mut settings = settings("ca");
        let (dir, file) = (settings.pki_dir.clone(), settings.pki_dir.join("ca.crt"));
        fs::write(&file, one.pem()).unwrap();
        settings.client_ca_file = Some(file.clone());
        let tls = Tls::new(settings).unwrap();
        let ((mine, _), (strange, _)) = (client(&one, 2500), client(&other, 2500));
        let user = tls.user(std::slice::from_ref(&mine)).unwrap();
        assert_eq!(user.name, "admin");
        assert_eq!(user.groups, ["system:masters", "system:authenticated"]);
        assert_eq!(tls.user(std::slice::from_ref(&strange)), None, "of another CA");
        assert_eq!(tls.user(&[client(&one, 2000).0]), None, "expired");
        assert_eq!(tls.user(&[]), None);
        // another CA, on the same connections
        fs::write(dir.join("new"), other.pem()).unwrap();
        fs::rename(dir.join("new"), &file).unwrap();
        tls.look();
        assert!(tls.user(&[strange.clone()]).is_some());
        assert_eq!(tls.user(&[mine]), None);
        // what cannot be read changes nothing
        fs::write(&file, "nonsense").unwrap();
        tls.look();
        assert!(tls.user(&[strange]).is_some());
        fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn the_client_ca_is_doubted_when_the_membership_was_renewed_or_a_certificate_is_of_another() {
        let settings = settings("doubt");
        let dir = settings.pki_dir.clone();
        let tls = Tls::new(settings).unwrap();
        let doubted = async || tokio::time::timeout(Duration::from_millis(20), tls.doubted()).await.is_ok();
        tls.look();
        assert!(!doubted().await);
        fs::write(dir.join("kubelet-client-current.pem"), "renewed").unwrap();
        tls.look();
        assert!(doubted().await);
        assert!(!doubted().await);
        tls.user(&[client(&ca("other"), 2500).0]);
        assert!(doubted().await);
        fs::remove_dir_all(dir).unwrap();
    }

    /// A handshake with a client that shows `certificate` and signs with `key`; what the server knows of the client then.
    async fn handshake(tls: &Tls, certificate: CertificateDer<'static>, key: &KeyPair) -> Result<usize, String> {
        #[derive(Debug)]
        struct Believe(WebPkiSupportedAlgorithms);
        impl rustls::client::danger::ServerCertVerifier for Believe {
            fn verify_server_cert(
                &self,
                _: &CertificateDer<'_>,
                _: &[CertificateDer<'_>],
                _: &rustls::pki_types::ServerName<'_>,
                _: &[u8],
                _: UnixTime,
            ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
                Ok(rustls::client::danger::ServerCertVerified::assertion())
            }
            fn verify_tls12_signature(
                &self,
                m: &[u8],
                c: &CertificateDer<'_>,
                s: &DigitallySignedStruct,
            ) -> Result<HandshakeSignatureValid, rustls::Error> {
                verify_tls12_signature(m, c, s, &self.0)
            }
            fn verify_tls13_signature(
                &self,
                m: &[u8],
                c: &CertificateDer<'_>,
                s: &DigitallySignedStruct,
            ) -> Result<HandshakeSignatureValid, rustls::Error> {
                verify_tls13_signature(m, c, s, &self.0)
            }
            fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
                self.0.supported_schemes()
            }
        }
        #[derive(Debug)]
        struct Show(Arc<rustls::sign::CertifiedKey>);
        impl rustls::client::ResolvesClientCert for Show {
            fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
                Some(self.0.clone())
            }
            fn has_certs(&self) -> bool {
                true
            }
        }
        let provider = rustls::crypto::ring::default_provider();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let key = provider.key_provider.load_private_key(key).unwrap();
        // whether key and certificate belong together is not looked at here
        let shown = Arc::new(rustls::sign::CertifiedKey::new(vec![certificate], key));
        let config = rustls::ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Believe(provider.signature_verification_algorithms)))
            .with_client_cert_resolver(Arc::new(Show(shown)));
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let (near, far) = duplex(64 << 10);
        let acceptor = tls.acceptor();
        let connecting = async {
            let mut stream = connector.connect("pi".try_into().unwrap(), near).await.map_err(|e| e.to_string())?;
            stream.write_all(b"x").await.map_err(|e| e.to_string())?;
            Ok::<_, String>(stream)
        };
        let accepting = async {
            let mut stream = acceptor.accept(far).await.map_err(|e| e.to_string())?;
            stream.read_u8().await.map_err(|e| e.to_string())?;
            Ok(stream.get_ref().1.peer_certificates().map_or(0, <[_]>::len))
        };
        let (_client, accepted) = tokio::join!(connecting, accepting);
        accepted
    }

    #[tokio::test]
    async fn a_certificate_of_any_ca_passes_the_handshake_but_not_without_its_key() {
        let tls = Tls::new(settings("proof")).unwrap();
        let (certificate, key) = client(&ca("other"), 2500);
        assert_eq!(handshake(&tls, certificate.clone(), &key).await, Ok(1));
        let error = handshake(&tls, certificate, &KeyPair::generate().unwrap()).await.unwrap_err();
        assert!(error.contains("BadSignature"), "{error}");
    }
}
