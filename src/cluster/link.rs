//! Transport to the API server. It can be set after clients exist, and replaced later: requests in flight finish on the old
//! one, so that the renewal of a certificate breaks no watch.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use kube::Client;
use kube::client::{Body, ClientBuilder};
use tokio::sync::watch;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceExt};

use crate::pki::LOOK_AGAIN;

/// Takes requests to an API server, with credentials of its own.
pub(super) type Way = BoxCloneSyncService<Request<Body>, Response<Incoming>, BoxError>;

/// How long a request waits for a way, as for a connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a server that does not know who asks is waited for before it is asked again: one that has just started may not
/// know all CAs yet.
const DOUBT: Duration = Duration::from_secs(3);

/// A handle on the way that all clients of it share.
#[derive(Clone)]
pub struct Link {
    way: watch::Sender<Option<Way>>,
    /// The server did not know who asked by the way there is (401).
    refused: watch::Sender<bool>,
}

impl Link {
    /// With no way yet: requests wait for a moment, then fail.
    pub(super) fn new() -> Self {
        Self { way: watch::Sender::new(None), refused: watch::Sender::new(false) }
    }

    /// From now on new requests go this way.
    pub(super) fn lead(&self, way: Way) {
        self.refused.send_replace(false);
        self.way.send_replace(Some(way));
    }

    /// A client that follows the link.
    pub(super) fn client(&self, namespace: String) -> Client {
        ClientBuilder::new(Follow(self.clone()), namespace).build()
    }

    /// Waits until there is a way.
    pub(super) async fn led(&self) {
        // the sender lives as long as this
        let _ = self.way.subscribe().wait_for(Option::is_some).await;
    }

    /// Waits until the server does not know who asks.
    pub(super) async fn refused(&self) {
        // the sender lives as long as this
        let _ = self.refused.subscribe().wait_for(|refused| *refused).await;
    }

    /// Whether the server does not know who asks, and stays with it.
    pub(super) async fn is_refused(&self) -> bool {
        if !self.refused.send_replace(false) {
            return false;
        }
        tokio::time::sleep(DOUBT).await;
        let request = Request::get("/api").body(Vec::new()).unwrap_or_default();
        // the answer is noted on its way
        let _ = self.client("default".to_owned()).request_text(request).await;
        *self.refused.borrow()
    }
}

/// When a certificate that was refused was replaced by another one: a server that refuses that one, too, is not asked for one
/// after the other.
#[derive(Default)]
pub(super) struct Replaced(Option<Instant>);

impl Replaced {
    /// Does what replaces it, if it is time.
    pub async fn by(&mut self, another: impl Future<Output = Result<(), String>>) -> Result<(), String> {
        if self.0.is_some_and(|at| at.elapsed() < LOOK_AGAIN) {
            return Err(
                "the API server does not take the certificate that the cluster has just given this node: its signer \
                        and --client-ca-file of the API server do not belong together"
                    .to_owned(),
            );
        }
        another.await.map_err(|e| format!("the API server does not take this node's certificate; {e}"))?;
        self.0 = Some(Instant::now());
        Ok(())
    }
}

struct Follow(Link);

impl Service<Request<Body>> for Follow {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let link = self.0.clone();
        Box::pin(async move {
            let mut ways = link.way.subscribe();
            let found = tokio::time::timeout(PATIENCE, ways.wait_for(Option::is_some)).await;
            let way = found.ok().and_then(Result::ok).and_then(|way| way.clone());
            match way {
                Some(way) => way.oneshot(request).await.inspect(|answer| {
                    if answer.status() == StatusCode::UNAUTHORIZED {
                        link.refused.send_replace(true);
                    }
                }),
                None => Err("this node has not joined its cluster yet".into()),
            }
        })
    }
}
