//! One registry over HTTP: manifests and blobs (OCI Distribution Specification), basic and bearer-token authentication.

use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, WWW_AUTHENTICATE};
use reqwest::{Certificate, Client, Response, StatusCode};
use serde::Deserialize;

use super::reference::Reference;
use super::types::{Credential, RegistryConfig};
use crate::errors::causes;

/// Largest manifest, index or image configuration in bytes.
pub const MAX_DOCUMENT: usize = 4 << 20;
/// Time to connect, and between two pieces of an answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Media types this store understands, as an Accept header.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// A registry and the login for one pull.
pub struct Registry {
    client: Client,
    base: String,
    repository: String,
    login: Option<Credential>,
    bearer: std::sync::Mutex<Option<String>>,
}

#[derive(Deserialize)]
struct Token {
    #[serde(alias = "access_token")]
    token: String,
}

impl Registry {
    /// A client for the registry of `reference`.
    pub fn new(reference: &Reference, config: &RegistryConfig, credentials: &[Credential]) -> Result<Self, String> {
        crate::crypto::install();
        let mut builder = Client::builder().connect_timeout(TIMEOUT).read_timeout(TIMEOUT);
        if let Some(file) = &config.ca_file {
            let pem = std::fs::read(file).map_err(|e| format!("reading caFile {}: {e}", file.display()))?;
            let certificates = Certificate::from_pem_bundle(&pem)
                .map_err(|e| format!("reading caFile {}: {}", file.display(), causes(&e)))?;
            builder = builder.tls_certs_merge(certificates);
        }
        if config.insecure_skip_verify {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        let client = builder.build().map_err(|e| causes(&e))?;
        let scheme = if config.insecure { "http" } else { "https" };
        let host = if reference.host == "docker.io" { "registry-1.docker.io" } else { &reference.host };
        let registry = |c: &&Credential| {
            let name = c.registry.trim_start_matches("https://").trim_start_matches("http://");
            name.split('/').next() == Some(reference.host.as_str())
        };
        Ok(Self {
            client,
            base: format!("{scheme}://{host}"),
            repository: reference.repository.clone(),
            login: credentials.iter().find(registry).cloned(),
            bearer: std::sync::Mutex::default(),
        })
    }

    fn bearer(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.bearer.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn send(&self, url: &str) -> Result<Response, String> {
        let mut request = self.client.get(url).header(ACCEPT, ACCEPTED);
        let bearer = self.bearer().clone();
        match (&bearer, &self.login) {
            (Some(token), _) => request = request.header(AUTHORIZATION, format!("Bearer {token}")),
            (None, Some(login)) => request = request.basic_auth(&login.username, Some(&login.password)),
            (None, None) => {}
        }
        request.send().await.map_err(|e| causes(&e))
    }

    /// GET with authentication where it is asked for.
    async fn get(&self, path: &str) -> Result<Response, String> {
        let url = format!("{}/v2/{}/{path}", self.base, self.repository);
        let mut response = self.send(&url).await?;
        if response.status() == StatusCode::UNAUTHORIZED && self.authorize(&response).await? {
            response = self.send(&url).await?;
        }
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let what = match status {
            StatusCode::NOT_FOUND if path.starts_with("manifests") => "manifest unknown".to_owned(),
            StatusCode::NOT_FOUND => "not found".to_owned(),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.login.is_none() => {
                "unauthorized: authentication required (no pull secret matches this registry)".to_owned()
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "unauthorized: the login was refused".to_owned(),
            _ => "unexpected answer".to_owned(),
        };
        Err(format!("{what} ({status} from {url})"))
    }

    /// Fetches a bearer token if the answer names a token service.
    async fn authorize(&self, response: &Response) -> Result<bool, String> {
        let Some(challenge) = response.headers().get(WWW_AUTHENTICATE).and_then(|h| h.to_str().ok()) else {
            return Ok(false);
        };
        let Some(fields) = challenge.strip_prefix("Bearer ") else { return Ok(false) };
        let field = |name: &str| {
            let (_, rest) = fields.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        let Some(realm) = field("realm") else { return Ok(false) };
        let scope = field("scope").unwrap_or_else(|| format!("repository:{}:pull", self.repository));
        let mut url = reqwest::Url::parse(&realm).map_err(|e| format!("token service {realm}: {e}"))?;
        url.query_pairs_mut().append_pair("scope", &scope);
        if let Some(service) = field("service") {
            url.query_pairs_mut().append_pair("service", &service);
        }
        let mut request = self.client.get(url);
        if let Some(login) = &self.login {
            request = request.basic_auth(&login.username, Some(&login.password));
        }
        let answer = request.send().await.map_err(|e| causes(&e))?;
        if !answer.status().is_success() {
            return Err(format!("unauthorized: token service {realm} answered {}", answer.status()));
        }
        let text = limited(answer).await?;
        let token: Token = serde_json::from_slice(&text).map_err(|e| format!("token service {realm}: {e}"))?;
        *self.bearer() = Some(token.token);
        Ok(true)
    }

    /// A manifest or index by tag or digest.
    pub async fn manifest(&self, version: &str) -> Result<Vec<u8>, String> {
        limited(self.get(&format!("manifests/{version}")).await?).await
    }

    /// A small blob, whole.
    pub async fn document(&self, digest: &str) -> Result<Vec<u8>, String> {
        limited(self.get(&format!("blobs/{digest}")).await?).await
    }

    /// A blob as a stream.
    pub async fn blob(&self, digest: &str) -> Result<Response, String> {
        self.get(&format!("blobs/{digest}")).await
    }
}

async fn limited(mut response: Response) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| causes(&e))? {
        if text.len() + chunk.len() > MAX_DOCUMENT {
            return Err(format!("{} is larger than {MAX_DOCUMENT} bytes: refused", response.url()));
        }
        text.extend_from_slice(&chunk);
    }
    Ok(text)
}
