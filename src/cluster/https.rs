//! Small documents over HTTPS from servers that may not be trusted yet: no redirects, bounded time and size.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::DATE;
use reqwest::{Client, Method, RequestBuilder, StatusCode, redirect};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::clock::clock;
use crate::errors::causes;

/// Largest answer taken, in bytes: certificates and settings are a few thousand.
const MAX_ANSWER: usize = 1 << 20;
/// How long a connection, and then a whole exchange, may take.
pub(super) const CONNECT: Duration = Duration::from_secs(10);
const EXCHANGE: Duration = Duration::from_secs(30);

/// Whom a client believes.
#[derive(Clone, Copy)]
pub(super) enum Trust<'a> {
    /// Anybody: only for what is checked in another way, and never with credentials.
    Anybody,
    /// The CAs of the system.
    System,
    /// The CAs of a PEM bundle.
    Roots(&'a [u8]),
}

/// What a server said.
#[derive(Debug)]
pub(super) struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Body, whole.
    pub body: Vec<u8>,
    /// The server's time, if it tells.
    pub date: Option<jiff::Timestamp>,
}

impl Answer {
    /// The beginning of the body, for messages.
    pub fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        text.lines().next().unwrap_or_default().chars().take(200).collect()
    }
}

/// Certificates of a PEM bundle.
pub(super) fn bundle(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(found) if found.is_empty() => Err("no certificate in it".to_owned()),
        other => other.map_err(|e| e.to_string()),
    }
}

/// TLS as `trust` says; `identity` is a certificate chain and its key in PEM.
pub(super) fn tls(trust: Trust<'_>, identity: Option<&str>) -> Result<ClientConfig, String> {
    crate::crypto::install();
    let builder = ClientConfig::builder();
    let builder = match trust {
        Trust::Anybody => builder.dangerous().with_custom_certificate_verifier(Arc::new(Believe::new()?)),
        Trust::System => {
            let found = rustls_native_certs::load_native_certs();
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(found.certs);
            builder.with_root_certificates(roots)
        }
        Trust::Roots(pem) => {
            let mut roots = RootCertStore::empty();
            for ca in bundle(pem).map_err(|e| format!("the cluster's CA: {e}"))? {
                roots.add(ca).map_err(|e| format!("the cluster's CA: {e}"))?;
            }
            builder.with_root_certificates(roots)
        }
    };
    let Some(pem) = identity else { return Ok(builder.with_no_client_auth()) };
    let wrong = |e: &dyn std::fmt::Display| format!("the node's own certificate: {e}");
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| wrong(&e))?;
    builder.with_client_auth_cert(bundle(pem.as_bytes()).map_err(|e| wrong(&e))?, key).map_err(|e| wrong(&e))
}

/// A client that follows no redirects and keeps no connections.
pub(super) fn client(trust: Trust<'_>, identity: Option<&str>) -> Result<Client, String> {
    let builder = Client::builder()
        .tls_backend_preconfigured(tls(trust, identity)?)
        .redirect(redirect::Policy::none())
        .no_proxy()
        .https_only(true)
        .pool_max_idle_per_host(0)
        .connect_timeout(CONNECT)
        .timeout(EXCHANGE);
    builder.build().map_err(|e| format!("HTTPS client: {}", causes(&e)))
}

/// Sends a request; the answer, whatever its status, unless it is too large or a redirect.
pub(super) async fn send(request: RequestBuilder) -> Result<Answer, String> {
    let mut response = request.send().await.map_err(|e| explained(causes(&e)))?;
    let (status, url) = (response.status(), response.url().clone());
    let date = response.headers().get(DATE).and_then(|d| jiff::fmt::rfc2822::parse(d.to_str().ok()?).ok());
    if status.is_redirection() {
        return Err(format!("{url} redirects elsewhere ({status}): not followed; name the server itself"));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| causes(&e))? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(format!("{url} answers with more than {MAX_ANSWER} bytes: not taken"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status, body, date: date.map(|d| d.timestamp()) })
}

/// An error of TLS with what may be behind it.
fn explained(error: String) -> String {
    if error.contains("not valid yet") { format!("{error}; {}", clock()) } else { error }
}

/// GET without credentials.
pub(super) async fn get(client: &Client, url: &str) -> Result<Answer, String> {
    send(client.request(Method::GET, url)).await
}

/// Believes any certificate, but not a server that does not hold its key.
#[derive(Debug)]
struct Believe(Arc<CryptoProvider>);

impl Believe {
    fn new() -> Result<Self, String> {
        CryptoProvider::get_default().cloned().map(Self).ok_or_else(|| "no cryptography is installed".to_owned())
    }
}

impl ServerCertVerifier for Believe {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
