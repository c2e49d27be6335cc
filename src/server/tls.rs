//! TLS of the kubelet API: serving certificate, and who a client certificate names.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;

use super::access::User;
use crate::pki::{self, Standing, certificates, write_secret};

/// What the server's certificate is made from.
pub struct TlsSettings {
    /// Certificate chain and key in PEM; `None`: self-signed, kept in `pki_dir`.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Where a self-signed certificate is kept (`<root>/pki`).
    pub pki_dir: PathBuf,
    /// CAs whose client certificates are accepted; `None`: no client certificates.
    pub client_ca_file: Option<PathBuf>,
    /// The cluster's own CA, which may be written later: accepted when the cluster names none for clients.
    pub cluster_ca: Option<PathBuf>,
    /// Names of the Node.
    pub names: Vec<String>,
    /// Addresses of the Node.
    pub ips: Vec<IpAddr>,
}

/// Days a self-signed certificate is valid, as a kubelet's own.
const SELF_SIGNED_DAYS: i64 = 365;

/// An acceptor for TLS 1.2 and 1.3.
pub fn acceptor(settings: &TlsSettings) -> Result<TlsAcceptor, String> {
    crate::crypto::install();
    let (cert, key) = match &settings.certificate {
        Some((cert, key)) => (cert.clone(), key.clone()),
        None => self_signed(settings)?,
    };
    let chain = certificates(&cert)?;
    let key = PrivateKeyDer::from_pem_file(&key).map_err(|e| format!("reading the key {}: {e}", key.display()))?;
    let builder = rustls::ServerConfig::builder();
    let builder = match &settings.client_ca_file {
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for ca in certificates(file)? {
                roots.add(ca).map_err(|e| format!("client CA {}: {e}", file.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build();
            builder.with_client_cert_verifier(verifier.map_err(|e| format!("client CA {}: {e}", file.display()))?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config =
        builder.with_single_cert(chain, key).map_err(|e| format!("serving certificate {}: {e}", cert.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
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
    fs::create_dir_all(&settings.pki_dir)
        .and_then(|()| write_secret(&key, &pair.serialize_pem()))
        .and_then(|()| write_secret(&cert, &made.pem()))
        .and_then(|()| write_secret(&names, &wanted))
        .map_err(|e| failed(&e))?;
    Ok((cert, key))
}

/// Whom a verified client certificate names: the common name is the user, organizations are groups (Kubernetes
/// "Authenticating", X.509 client certificates).
pub fn user_of(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned);
    let groups = groups.chain(["system:authenticated".to_owned()]).collect();
    Some(User { name, uid: String::new(), groups, extra: BTreeMap::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_self_signed_certificate_is_kept_and_renewed_for_new_names() {
        let dir = std::env::temp_dir().join(format!("pikelet-tls-{}", std::process::id()));
        let mut settings = TlsSettings {
            certificate: None,
            pki_dir: dir.clone(),
            client_ca_file: None,
            cluster_ca: None,
            names: vec!["pi".into()],
            ips: vec!["10.0.0.1".parse().unwrap()],
        };
        assert!(acceptor(&settings).is_ok());
        let first = fs::read(dir.join("kubelet.crt")).unwrap();
        assert!(acceptor(&settings).is_ok());
        assert_eq!(first, fs::read(dir.join("kubelet.crt")).unwrap());
        settings.ips.push("10.0.0.2".parse().unwrap());
        assert!(acceptor(&settings).is_ok());
        assert_ne!(first, fs::read(dir.join("kubelet.crt")).unwrap());
        settings.client_ca_file = Some(dir.join("none"));
        let error = acceptor(&settings).err().unwrap();
        assert!(error.contains("none"), "{error}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn subjects_are_users() {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "admin");
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let user = user_of(made.der()).unwrap();
        assert_eq!(user.name, "admin");
        assert_eq!(user.groups, ["system:masters", "system:authenticated"]);
    }
}
