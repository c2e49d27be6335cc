//! The client of an API server, from a kubeconfig: one HTTP/2 connection for all watches and writes.

use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};

use super::link::Way;
use crate::config::mistake::explain_kubeconfig;
use crate::errors::causes;
use crate::{metrics, pki};

/// How long a connection attempt may take.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// A connection that is silent for so long is asked whether it lives (the kubelet's figures) ...
const PING_AFTER: Duration = Duration::from_secs(30);
/// ... and given up when it does not answer in this time.
const PING_TIME: Duration = Duration::from_secs(15);
/// What the server may send ahead of us on one stream, and on all: bounds memory.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Characters of what the API server says that are told.
const MESSAGE: usize = 1000;

/// Errors of the link; messages name what was tried.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {path}: {message}")]
    Kubeconfig {
        /// File.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// The API server refused or could not be reached.
    #[error("{what}: {}", said(source))]
    Api {
        /// What was tried, on what.
        what: String,
        /// The answer.
        source: Box<kube::Error>,
    },
}

/// What the API server said, or the whole chain of causes when it could not be asked. Nothing of an answer that cannot be
/// read: it may hold secrets.
pub fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => without_object(&status.message),
        // an answer that is no status is taken for an empty one
        kube::Error::Api(status) if status.code == 0 && status.reason.is_empty() => {
            "the API server gave an answer that cannot be read".to_owned()
        }
        kube::Error::Api(status) => {
            format!("the API server answered {} {}", status.code, status.reason).trim().to_owned()
        }
        // our own, which says nothing of what is in it
        kube::Error::SerdeError(error) if error.line() == 0 => error.to_string(),
        kube::Error::SerdeError(error) => {
            format!("the API server's answer cannot be read at line {}, column {}", error.line(), error.column())
        }
        kube::Error::FromUtf8(_) => "the API server's answer is not UTF-8".to_owned(),
        other => causes(other),
    }
}

/// The API server repeats a whole object where it cannot change it (`Invalid value: "{\"apiVersion\":..."`).
fn without_object(message: &str) -> String {
    let shown = match (message.find("\"{"), message.rfind("}\"")) {
        (Some(from), Some(to)) if from < to => {
            format!("{}\"{{...{}", message.get(..from).unwrap_or_default(), message.get(to..).unwrap_or_default())
        }
        (Some(from), _) => format!("{}\"{{...", message.get(..from).unwrap_or_default()),
        _ => message.to_owned(),
    };
    shown.chars().take(MESSAGE).collect()
}

/// The same, with what it means for a member and what mends it.
pub(super) fn explained(error: &kube::Error) -> String {
    let why = said(error);
    let mend = match error {
        kube::Error::Api(status) if status.code == 401 => {
            "the API server does not take this node's certificate: it is of another cluster, was revoked, or the CA of clients \
            was replaced; with a token in its settings it asks for another one, else join anew (`pikelet leave`, then \
            `pikelet join`), or give it another kubeconfig"
        }
        kube::Error::Api(status) if status.code == 403 => {
            "this node's user may not do so: it has to be system:node:<node name> in the group system:nodes, and the API server \
            to run with --authorization-mode=Node,RBAC"
        }
        kube::Error::Api(_) => return why,
        _ if why.contains("UnknownIssuer") || why.contains("BadSignature") => {
            "the API server shows a certificate of another CA than the one this node joined with: if the cluster's CA was \
            replaced, join anew (`pikelet leave`, then `pikelet join`), or put it into the kubeconfig; if not, somebody is \
            between"
        }
        _ => return why,
    };
    format!("{why}: {mend}")
}

impl ClusterError {
    /// Wraps an error of the client.
    pub(super) fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Api { what, source: Box::new(source) }
    }

    fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            Self::Kubeconfig { .. } => None,
        }
    }

    /// The API server has answered, if not as wished.
    pub fn is_answer(&self) -> bool {
        self.code().is_some()
    }

    /// The API server does not know who asks (401).
    pub fn is_unauthorized(&self) -> bool {
        self.code() == Some(401)
    }

    /// The object does not exist (404).
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// The object is another one by now, or exists already (409).
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }
}

/// A client for the current context of a kubeconfig.
pub async fn connect(kubeconfig: &Path) -> Result<Client, ClusterError> {
    crate::crypto::install();
    let path = kubeconfig.display().to_string();
    let wrong = |message: String| ClusterError::Kubeconfig { path: path.clone(), message };
    let file = Kubeconfig::read_from(kubeconfig).map_err(|e| wrong(explain_kubeconfig(&e)))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    let config = config.map_err(|e| wrong(explain_kubeconfig(&e)))?;
    Ok(ClientBuilder::new(way(&config).map_err(wrong)?, config.default_namespace.clone()).build())
}

/// kube's own client speaks HTTP/1.1: a connection, with its TLS buffers, for every watch.
pub(super) fn way(config: &Config) -> Result<Way, String> {
    if config.proxy_url.is_some() {
        return Err("proxy-url is not supported: reach the API server directly, or by a tunnel".to_owned());
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIME));
    let tls = config.rustls_client_config().map_err(|e| e.to_string())?;
    let mut tls = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = ServerName::try_from(name.clone()).map_err(|e| format!("tls-server-name {name:?}: {e}"))?;
        tls = tls.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let http = HttpClient::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(PING_AFTER)
        .http2_keep_alive_timeout(PING_TIME)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .build::<_, Body>(tls.enable_all_versions().wrap_connector(tcp));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(|e| e.to_string())?)
        .layer(config.extra_headers_layer().map_err(|e| e.to_string())?)
        .service(http.map_err(BoxError::from));
    // a token that asks for another certificate does not stand for one that has expired
    if let Some(end) = certificate_end(config) {
        metrics::CLIENT_CERTIFICATE.set(Some(end));
    }
    Ok(counted(service, config))
}

/// When the certificate ends that is shown, if one is.
fn certificate_end(config: &Config) -> Option<i64> {
    let user = &config.auth_info;
    let pem = match (&user.client_certificate_data, &user.client_certificate) {
        (Some(data), _) => base64::engine::general_purpose::STANDARD.decode(data).ok()?,
        (None, file) => std::fs::read(file.as_ref()?).ok()?,
    };
    pki::ends(&CertificateDer::from_pem_slice(&pem).ok()?)
}

/// Counts and times requests, until their answers begin.
fn counted<S>(way: S, config: &Config) -> Way
where
    S: Service<Request<Body>, Response = Response<Incoming>, Error = BoxError, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    // who the address says one is, is nobody's who reads metrics
    let url = &config.cluster_url;
    let port = url.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
    let host = format!("{}{port}", url.host().unwrap_or_default());
    Way::new(tower::service_fn(move |request: Request<Body>| {
        let (way, host, method) = (way.clone(), host.clone(), request.method().to_string());
        async move {
            let began = Instant::now();
            let answer = way.oneshot(request).await;
            let code = answer.as_ref().map_or_else(|_| "<error>".to_owned(), |a| a.status().as_str().to_owned());
            metrics::REQUESTS_SENT.add([code.into(), host.clone().into(), method.clone().into()]);
            metrics::REQUEST_TIMES.observe([host.into(), method.into()], began.elapsed());
            answer
        }
    }))
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn errors_say_what_is_wrong_and_nothing_of_an_answer() {
        let api = |text: &str| kube::Error::Api(serde_json::from_str::<Status>(text).unwrap().boxed());
        // how kube takes an event that it cannot read
        assert_eq!(said(&api(r#"{"type":"ADDED","object":{}}"#)), "the API server gave an answer that cannot be read");
        assert_eq!(said(&api(r#"{"code":500,"reason":"InternalError"}"#)), "the API server answered 500 InternalError");
        assert_eq!(said(&api(r#"{"code":403,"message":"no"}"#)), "no");
        let status = r#"{"code":422,"message":" \"\" is invalid: patch: Invalid value: \"{\\\"data\\\":{\\\"a\\\":\\\"c2VjcmV0\\\"}}\": parsing time \"10000"}"#;
        assert_eq!(said(&api(status)), " \"\" is invalid: patch: Invalid value: \"{...}\": parsing time \"10000");
        assert_eq!(said(&api(r#"{"code":422,"message":"Invalid value: \"{c2VjcmV0"}"#)), "Invalid value: \"{...");
        let wrong = serde_json::from_str::<u8>(r#""c2VjcmV0""#).unwrap_err();
        assert_eq!(
            said(&kube::Error::SerdeError(wrong)),
            "the API server's answer cannot be read at line 1, column 10"
        );
        let wrong = String::from_utf8(b"secret\xff".to_vec()).unwrap_err();
        assert_eq!(said(&kube::Error::FromUtf8(wrong)), "the API server's answer is not UTF-8");
    }
}
