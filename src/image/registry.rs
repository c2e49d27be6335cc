//! Registries over HTTP: manifests and blobs (OCI Distribution Specification), basic and bearer-token authentication.
//!
//! Proxies are those of the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use base64::Engine;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use tokio::time::Instant;
use tracing::{debug, info};

use super::challenge::{Challenge, challenges};
use super::client::{FETCHING, TIMEOUT, answer, client, piece};
use super::credentials::Credential;
use super::digest::is_digest;
use super::endpoints::Endpoint;
use super::told::told;
use crate::errors::{bare, bare_of};

/// Largest manifest, index or image configuration in bytes.
pub const MAX_DOCUMENT: usize = 4 << 20;
/// Longest time one request waits for a registry that says it is busy, and after which it is not made again.
const PATIENCE: Duration = Duration::from_mins(1);
/// Longest time from the head of a document's answer to its end.
const DOCUMENT: Duration = Duration::from_mins(2);
/// Tries of a document whose transfer breaks.
const TRIES: usize = 3;

/// Media types of manifests this store understands, as an Accept header; what comes all the same is called by its name.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*";

/// What is asked for, and for how long.
#[derive(Clone, Copy)]
struct Asked {
    /// The first byte.
    from: u64,
    accept: &'static str,
    /// Longest time to the head of the answer.
    within: Duration,
    began: Instant,
}

impl Asked {
    /// A manifest, or a blob from that byte on.
    fn now(manifest: bool, from: u64) -> Self {
        // documents are small, and a cache that gave a part of a layer has it
        let within = if manifest || from > 0 { TIMEOUT } else { FETCHING };
        Self { from, accept: if manifest { ACCEPTED } else { "*/*" }, within, began: Instant::now() }
    }

    /// Longest time to the next head: what those before it took is gone.
    fn left(&self) -> Duration {
        self.within.saturating_sub(self.began.elapsed()).max(TIMEOUT)
    }

    fn of(&self, request: RequestBuilder) -> RequestBuilder {
        let request = request.header(ACCEPT, self.accept);
        if self.from > 0 { request.header(RANGE, format!("bytes={}-", self.from)) } else { request }
    }
}

type Made = Arc<OnceLock<Result<Client, String>>>;

/// The places one image is asked for, in order.
pub struct Registry {
    sources: Vec<Source>,
    /// The one that had the manifest: it is asked first from then on.
    preferred: AtomicUsize,
}

/// One endpoint with one login.
struct Source {
    endpoint: Arc<Endpoint>,
    client: Made,
    login: Option<Credential>,
    shown: Mutex<Shown>,
}

/// What is shown to a registry: nothing before it asks.
#[derive(Clone, Default)]
enum Shown {
    #[default]
    Nothing,
    /// Name and password.
    Login,
    Token(String),
}

/// The answer of a token service; some send both, which are the same then.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Registry {
    /// Nothing is sent yet.
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        crate::crypto::install();
        let sources = endpoints.into_iter().flat_map(|mut endpoint| {
            let logins = std::mem::take(&mut endpoint.logins);
            let logins = if logins.is_empty() { vec![None] } else { logins.into_iter().map(Some).collect() };
            let (endpoint, client) = (Arc::new(endpoint), Made::default());
            logins.into_iter().map(move |login| Source {
                endpoint: endpoint.clone(),
                client: client.clone(),
                shown: Mutex::default(),
                login,
            })
        });
        Self { sources: sources.collect(), preferred: AtomicUsize::new(0) }
    }

    /// GET from the first source that has it, with its body from byte `from` on where the registry can do that.
    async fn get(&self, path: &str, from: u64) -> Result<Response, String> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        let order = std::iter::once(preferred).chain((0..self.sources.len()).filter(|i| *i != preferred));
        let mut errors: Vec<String> = Vec::new();
        for (i, source) in order.filter_map(|i| Some((i, self.sources.get(i)?))) {
            match source.get(path, from).await {
                Ok(response) => {
                    self.preferred.store(i, Ordering::Relaxed);
                    return Ok(response);
                }
                Err(error) => {
                    debug!(endpoint = source.endpoint.base, error, "not had from here");
                    errors.push(error);
                }
            }
        }
        errors.dedup();
        Err(errors.join("; "))
    }

    /// The login of the source that answered last; `None`: it needed none.
    pub fn login(&self) -> Option<&Credential> {
        let source = self.sources.get(self.preferred.load(Ordering::Relaxed))?;
        source.login.as_ref().filter(|_| !matches!(*source.shown(), Shown::Nothing))
    }

    async fn whole(&self, path: &str) -> Result<Vec<u8>, String> {
        let mut tries = 0;
        loop {
            tries += 1;
            match limited(self.get(path, 0).await?).await {
                Err(Broken::Transfer(error)) if tries < TRIES => info!(path, error, "transfer broke: once more"),
                Err(Broken::Transfer(error) | Broken::Limit(error)) => return Err(error),
                Ok(text) => return Ok(text),
            }
        }
    }

    /// The digest of a manifest or index by tag or digest, without the document, which registries count; `None`: nobody
    /// says it, and why is seen by asking for the document.
    pub async fn digest(&self, version: &str) -> Result<Option<String>, String> {
        let (mut errors, mut heard) = (Vec::new(), false);
        for (i, source) in self.sources.iter().enumerate() {
            match source.digest(version).await {
                Ok(Some(digest)) => {
                    self.preferred.store(i, Ordering::Relaxed);
                    return Ok(Some(digest));
                }
                Ok(None) => heard = true,
                Err(error) => errors.push(error),
            }
        }
        errors.dedup();
        if heard { Ok(None) } else { Err(errors.join("; ")) }
    }

    /// A manifest or index by tag or digest.
    pub async fn manifest(&self, version: &str) -> Result<Vec<u8>, String> {
        self.whole(&format!("manifests/{version}")).await
    }

    /// A small blob, whole.
    pub async fn document(&self, digest: &str) -> Result<Vec<u8>, String> {
        self.whole(&format!("blobs/{digest}")).await
    }

    /// A blob as a stream, and the byte it starts at: `from`, or 0 where the registry knows no ranges.
    pub async fn blob(&self, digest: &str, from: u64) -> Result<(Response, u64), String> {
        let response = self.get(&format!("blobs/{digest}"), from).await?;
        let start = format!("bytes {from}-");
        let range = response.headers().get(CONTENT_RANGE).and_then(|h| h.to_str().ok());
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        match (partial, range.is_some_and(|r| r.starts_with(&start))) {
            (true, true) => Ok((response, from)),
            (true, false) => Err(format!("{} answered with another range than asked for", bare(response.url()))),
            (false, _) => Ok((response, 0)),
        }
    }
}

impl Source {
    fn client(&self) -> Result<&Client, String> {
        self.client.get_or_init(|| client(&self.endpoint.tls)).as_ref().map_err(Clone::clone)
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What nobody else is to read.
    fn secrets(&self) -> Vec<String> {
        let mut secrets = Vec::new();
        if let Some(login) = &self.login {
            let pair = format!("{}:{}", login.username, login.password);
            secrets.extend([base64::engine::general_purpose::STANDARD.encode(pair), login.password.clone()]);
            secrets.extend(login.identity_token.clone().into_iter().chain(login.registry_token.clone()));
        }
        if let Shown::Token(token) = &*self.shown() {
            secrets.push(token.clone());
        }
        secrets
    }

    fn showing(&self, request: RequestBuilder, shown: &Shown) -> RequestBuilder {
        match (shown, &self.login) {
            (Shown::Token(token), _) => request.header(AUTHORIZATION, format!("Bearer {token}")),
            (Shown::Login, Some(login)) => request.basic_auth(&login.username, Some(&login.password)),
            _ => request,
        }
    }

    /// Sends a request, and says what was shown with it.
    async fn send(&self, url: &str, asked: Asked) -> Result<(Response, Shown), String> {
        let mut waited = Duration::ZERO;
        let mut pause = Duration::from_secs(1);
        loop {
            let request = asked.of(self.client()?.get(url));
            let shown = self.shown().clone();
            let response = answer(self.showing(request, &shown), url, asked.left()).await?;
            if !matches!(response.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
                return Ok((response, shown));
            }
            let wait = retry_after(&response).unwrap_or(pause).max(Duration::from_millis(100));
            // whatever number the registry wrote, and however late
            if waited.saturating_add(wait) > PATIENCE || asked.began.elapsed() > PATIENCE {
                return Ok((response, shown));
            }
            info!(url, status = %response.status(), seconds = wait.as_secs_f32(), "registry is busy: waiting");
            tokio::time::sleep(wait).await;
            waited += wait;
            pause *= 2;
        }
    }

    fn url(&self, path: &str) -> String {
        // the query is how mirrors of many registries know which one is meant
        let query = self.endpoint.stands_for.as_ref().map(|host| format!("?ns={host}")).unwrap_or_default();
        format!("{}/{}/{path}{query}", self.endpoint.base, self.endpoint.repository)
    }

    /// See [`Registry::digest`]; an error where there is no answer.
    async fn digest(&self, version: &str) -> Result<Option<String>, String> {
        let url = self.url(&format!("manifests/{version}"));
        let ask = async || {
            let shown = self.shown().clone();
            let request = self.client()?.head(&url).header(ACCEPT, ACCEPTED);
            let response = answer(self.showing(request, &shown), &url, TIMEOUT).await?;
            Ok::<_, String>((response, shown))
        };
        let (mut response, sent) = ask().await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            if self.is_elsewhere(&response) {
                return Ok(None);
            }
            match self.authorize(&response, &sent).await {
                Ok(true) => response = ask().await?.0,
                // said again by who asks for the document
                Ok(false) | Err(_) => return Ok(None),
            }
        }
        let digest = response.headers().get("docker-content-digest").and_then(|digest| digest.to_str().ok());
        Ok(digest.filter(|digest| response.status().is_success() && is_digest(digest)).map(str::to_owned))
    }

    /// GET with authentication where it is asked for.
    async fn get(&self, path: &str, from: u64) -> Result<Response, String> {
        let url = self.url(path);
        let document = path.starts_with("manifests");
        let asked = Asked::now(document, from);
        let (mut response, sent) = self.send(&url, asked).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            if let Some(other) = self.elsewhere(&response, asked).await? {
                response = other;
            } else if self.authorize(&response, &sent).await? {
                response = self.send(&url, asked).await?.0;
            }
        }
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let anonymous = self.login.is_none();
        let what = match status {
            // private images are unknown to strangers
            StatusCode::NOT_FOUND if document && anonymous => {
                "manifest unknown (or a private one, for which there is no pull secret)"
            }
            StatusCode::NOT_FOUND if document => "manifest unknown",
            StatusCode::NOT_FOUND => "not found",
            StatusCode::UNAUTHORIZED if anonymous => {
                "unauthorized: authentication required (no pull secret matches this registry)"
            }
            StatusCode::UNAUTHORIZED => "unauthorized: the login was refused",
            StatusCode::FORBIDDEN if anonymous => {
                "denied: the registry refuses it (no pull secret matches this registry)"
            }
            StatusCode::FORBIDDEN => "denied: the login is not allowed to",
            StatusCode::TOO_MANY_REQUESTS => "too many requests: the registry asks for a longer pause",
            _ => "unexpected answer",
        };
        Err(self.said(what, response, &url).await)
    }

    /// An error, with what the registry says of it.
    async fn said(&self, what: &str, response: Response, url: &str) -> String {
        let status = response.status();
        let told = told(response, &self.secrets()).await;
        if told.is_empty() {
            format!("{what} ({status} from {url})")
        } else {
            format!("{what} ({status} from {url}): {told}")
        }
    }

    /// Whether it was another registry that answered.
    fn is_elsewhere(&self, response: &Response) -> bool {
        let own = reqwest::Url::parse(&self.endpoint.base);
        own.is_ok_and(|own| own.origin() != response.url().origin())
    }

    /// The answer of another registry, which this one has led to and which wants a token of its own. Logins are for the one
    /// that was named: none is shown there.
    async fn elsewhere(&self, response: &Response, asked: Asked) -> Result<Option<Response>, String> {
        if !self.is_elsewhere(response) {
            return Ok(None);
        }
        let there = response.url();
        let wanted = wanted(response);
        let bearer = wanted.iter().find(|challenge| challenge.scheme == "bearer");
        let Some((challenge, realm)) = bearer.and_then(|c| Some((c, c.field("realm")?))) else { return Ok(None) };
        let token = self.token(challenge, realm, None).await?;
        let request = asked.of(self.client()?.get(there.clone())).bearer_auth(token);
        answer(request, there.as_str(), asked.left()).await.map(Some)
    }

    /// Takes up what the answer asks for: a token of a service, or name and password. False if there is nothing to show,
    /// or it was shown.
    async fn authorize(&self, response: &Response, sent: &Shown) -> Result<bool, String> {
        // one that was given for good has no other
        if let Some(token) = self.login.as_ref().and_then(|l| l.registry_token.clone()) {
            *self.shown() = Shown::Token(token);
            return Ok(matches!(sent, Shown::Nothing));
        }
        let asked = wanted(response);
        let of = |scheme: &str| asked.iter().find(|challenge| challenge.scheme == scheme);
        if let Some((challenge, realm)) = of("bearer").and_then(|c| Some((c, c.field("realm")?))) {
            let token = self.token(challenge, realm, self.login.as_ref()).await?;
            *self.shown() = Shown::Token(token);
            return Ok(true);
        }
        // of registries that do not say what they want, it is what most want
        let login = of("basic").is_some() || asked.is_empty();
        if !login || self.login.as_ref().is_none_or(|l| l.identity_token.is_some()) {
            return Ok(false);
        }
        *self.shown() = Shown::Login;
        Ok(!matches!(sent, Shown::Login))
    }

    /// Fetches a token of the service that is named.
    async fn token(&self, challenge: &Challenge, realm: &str, login: Option<&Credential>) -> Result<String, String> {
        let field = |name: &str| challenge.field(name).map(str::to_owned);
        let scope = field("scope").unwrap_or_else(|| format!("repository:{}:pull", self.endpoint.repository));
        let shown = bare_of(realm);
        let mut url = reqwest::Url::parse(realm).map_err(|e| format!("token service {shown}: {e}"))?;
        let service = field("service").unwrap_or_default();
        let refresh = login.and_then(|l| l.identity_token.as_deref());
        let request = if let Some(token) = refresh {
            let form = form_urlencoded::Serializer::new(String::new())
                .append_pair("grant_type", "refresh_token")
                .append_pair("client_id", "pikelet")
                .append_pair("service", &service)
                .append_pair("scope", &scope)
                .append_pair("refresh_token", token)
                .finish();
            let kind = "application/x-www-form-urlencoded";
            self.client()?.post(url).header(reqwest::header::CONTENT_TYPE, kind).body(form)
        } else {
            for one in scope.split(' ') {
                url.query_pairs_mut().append_pair("scope", one);
            }
            if !service.is_empty() {
                url.query_pairs_mut().append_pair("service", &service);
            }
            let request = self.client()?.get(url);
            match login {
                Some(login) => request.basic_auth(&login.username, Some(&login.password)),
                None => request,
            }
        };
        let answered = answer(request, realm, TIMEOUT).await?;
        if !answered.status().is_success() {
            return Err(self.said("unauthorized: the token service refused", answered, &shown).await);
        }
        let text = limited(answered).await.map_err(|(Broken::Transfer(e) | Broken::Limit(e))| e)?;
        let token: Token = serde_json::from_slice(&text).map_err(|e| format!("token service {shown}: {e}"))?;
        let token = token.token.filter(|token| !token.is_empty()).or(token.access_token);
        token.ok_or_else(|| format!("token service {shown}: no token in its answer"))
    }
}

/// What an answer asks to be shown.
fn wanted(response: &Response) -> Vec<Challenge> {
    let lines = response.headers().get_all(WWW_AUTHENTICATE);
    challenges(lines.iter().filter_map(|line| line.to_str().ok()))
}

/// `Retry-After`: seconds or a date (RFC 9110).
fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(jiff::Timestamp::now())).unwrap_or_default())
}

/// Why a document did not arrive.
enum Broken {
    /// The connection.
    Transfer(String),
    /// It is larger, or slower, than a document may be.
    Limit(String),
}

/// A whole document: neither larger nor slower than one may be.
async fn limited(response: Response) -> Result<Vec<u8>, Broken> {
    let url = bare(response.url());
    let late = |_| Broken::Limit(format!("{url} did not arrive whole within {} s: given up", DOCUMENT.as_secs()));
    tokio::time::timeout(DOCUMENT, body(response)).await.map_err(late)?
}

async fn body(mut response: Response) -> Result<Vec<u8>, Broken> {
    let mut text = Vec::new();
    let too_large = |response: &Response| {
        Broken::Limit(format!("{} is larger than {MAX_DOCUMENT} bytes: refused", bare(response.url())))
    };
    if response.content_length().is_some_and(|n| n > MAX_DOCUMENT as u64) {
        return Err(too_large(&response));
    }
    while let Some(chunk) = piece(&mut response).await.map_err(Broken::Transfer)? {
        if text.len() + chunk.len() > MAX_DOCUMENT {
            return Err(too_large(&response));
        }
        text.extend_from_slice(&chunk);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_document_that_trickles_is_given_up() {
        let answer = |pieces: usize| {
            let body = futures::stream::unfold(pieces, |left| async move {
                tokio::time::sleep(Duration::from_secs(5)).await;
                Some((Ok::<_, std::io::Error>("x"), left.checked_sub(1)?))
            });
            Response::from(http::Response::new(reqwest::Body::wrap_stream(body)))
        };
        assert!(matches!(limited(answer(20)).await, Ok(text) if text.len() == 20));
        let began = tokio::time::Instant::now();
        let Err(Broken::Limit(error)) = limited(answer(1000)).await else { panic!("it waits") };
        assert!(error.contains("did not arrive whole") && began.elapsed() == DOCUMENT, "{error}");
    }
}
