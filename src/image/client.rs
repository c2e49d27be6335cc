//! How registries are spoken to: the client, and how long it waits for an answer and its pieces.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{Certificate, Client, Identity, RequestBuilder, Response};

use super::endpoints::Tls;
use crate::errors::{bare, bare_of, causes};

/// Time to connect, to the head of an answer, and between two pieces of one.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// Time to the head of a layer's answer: a cache may fetch it first. That the line is dead shows sooner (TCP keepalive).
pub const FETCHING: Duration = Duration::from_mins(5);
/// By this a registry knows who asks.
const AGENT: &str = concat!("pikelet/", env!("CARGO_PKG_VERSION"));

/// The answer to a request for `url`, whose head comes within that time.
pub async fn answer(request: RequestBuilder, url: &str, within: Duration) -> Result<Response, String> {
    match tokio::time::timeout(within, request.send()).await {
        Ok(sent) => sent.map_err(|e| causes(&e)),
        Err(_) => Err(format!("{}: timed out: no answer within {} s", bare_of(url), within.as_secs())),
    }
}

/// The next piece of an answer; `None` at its end.
pub async fn piece(response: &mut Response) -> Result<Option<Bytes>, String> {
    match tokio::time::timeout(TIMEOUT, response.chunk()).await {
        Ok(piece) => piece.map_err(|e| causes(&e)),
        Err(_) => Err(format!("{}: timed out: nothing more within {} s", bare(response.url()), TIMEOUT.as_secs())),
    }
}

/// A client for endpoints with those certificates. How long an answer is waited for is said with each request.
pub fn client(tls: &Tls) -> Result<Client, String> {
    let read = |what: &str, file: &std::path::Path| {
        std::fs::read(file).map_err(|e| format!("reading {what} {}: {e}", file.display()))
    };
    let mut builder = Client::builder().user_agent(AGENT).connect_timeout(TIMEOUT);
    if let Some(file) = &tls.ca_file {
        let certificates = Certificate::from_pem_bundle(&read("CA file", file)?)
            .map_err(|e| format!("reading CA file {}: {}", file.display(), causes(&e)))?;
        builder = builder.tls_certs_merge(certificates);
    }
    if let Some((certificate, key)) = tls.cert_file.as_ref().zip(tls.key_file.as_ref()) {
        let mut pem = read("client certificate", certificate)?;
        pem.push(b'\n');
        pem.extend(read("client key", key)?);
        let identity = Identity::from_pem(&pem)
            .map_err(|e| format!("client certificate {}: {}", certificate.display(), causes(&e)))?;
        builder = builder.identity(identity);
    }
    if tls.insecure_skip_verify {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    builder.build().map_err(|e| causes(&e))
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_stalls_is_given_up() {
        let body = futures::stream::iter([Ok::<_, std::io::Error>("x")]).chain(futures::stream::pending());
        let mut response = Response::from(http::Response::new(reqwest::Body::wrap_stream(body)));
        assert_eq!(piece(&mut response).await.unwrap().unwrap(), "x");
        let began = tokio::time::Instant::now();
        assert!(piece(&mut response).await.unwrap_err().contains("nothing more within 30 s"));
        assert_eq!(began.elapsed(), TIMEOUT);
    }

    #[tokio::test]
    async fn who_does_not_answer_is_given_up() {
        crate::crypto::install();
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v2/", silent.local_addr().unwrap());
        let client = client(&Tls::default()).unwrap();
        let error = answer(client.get(&url), &url, Duration::from_millis(50)).await.unwrap_err();
        assert!(error.contains("/v2/: timed out: no answer within"), "{error}");
    }
}
