//! The manifests a web server gives (the kubelet's `staticPodURL`), asked for again and again.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use reqwest::header::HeaderMap;
use reqwest::{Client, Url};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{KINDS, Origin, StaticUpdate, parse};
use crate::errors::{bare, causes};

/// How long an answer may take, as with the kubelet.
const ANSWER: Duration = Duration::from_secs(10);
/// Largest answer taken, in bytes, as with the kubelet.
const MAX_ANSWER: usize = 10 << 20;

/// A web server with manifests.
#[derive(Debug, Clone)]
pub struct Remote {
    /// Where they are.
    pub url: Url,
    /// Headers of the request (`staticPodURLHeader`).
    pub headers: HeaderMap,
    /// How often it is asked.
    pub check: Duration,
}

impl Remote {
    /// Asks, and tells what has changed. An answer with a mistake, or none, leaves the pods that are.
    pub(super) async fn keep(self, node: &str, tx: &mpsc::Sender<StaticUpdate>) {
        let (mut last, mut told) = (None, None);
        loop {
            match self.look(&mut last, node).await {
                Ok(Some(pods)) => {
                    info!(url = bare(&self.url), pods = pods.len(), "manifests read");
                    told = None;
                    if tx.send(StaticUpdate { source: KINDS[1], pods }).await.is_err() {
                        return;
                    }
                }
                Ok(None) => told = None,
                Err(error) => {
                    if told.as_ref() != Some(&error) {
                        warn!(url = bare(&self.url), error, "manifests not read: trying again");
                    }
                    told = Some(error);
                }
            }
            tokio::time::sleep(self.check).await;
        }
    }

    /// The pods, unless the answer is the one of before.
    async fn look(&self, last: &mut Option<String>, node: &str) -> Result<Option<Vec<Arc<Pod>>>, String> {
        let text = self.get().await?;
        if last.as_ref() == Some(&text) {
            return Ok(None);
        }
        let pods = parse(&text, Origin::Url(self.url.as_str()), node);
        *last = Some(text);
        pods.map(Some)
    }

    /// Made anew each time: one costs a quarter of a MiB, and is needed three times a minute.
    fn client(&self) -> Result<Client, String> {
        crate::crypto::install();
        let builder = Client::builder().pool_max_idle_per_host(0).timeout(ANSWER).default_headers(self.headers.clone());
        builder.build().map_err(|e| causes(&e))
    }

    async fn get(&self) -> Result<String, String> {
        let mut answer = self.client()?.get(self.url.clone()).send().await.map_err(|e| causes(&e))?;
        if answer.status() != reqwest::StatusCode::OK {
            return Err(format!("the server answers {}", answer.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|e| causes(&e))? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(format!("the answer is longer than {MAX_ANSWER} bytes: not taken"));
            }
            body.extend_from_slice(&chunk);
        }
        String::from_utf8(body).map_err(|e| format!("the answer is not text: {e}"))
    }
}
