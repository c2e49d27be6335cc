//! The way to the API server. It may be found after the clients were made, and change under them: requests that are under
//! way end on the way they began on, so a new certificate breaks no watch.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use kube::Client;
use kube::client::{Body, ClientBuilder};
use tokio::sync::watch;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceExt};

/// Takes requests to an API server, with credentials of its own.
pub(super) type Way = BoxCloneSyncService<Request<Body>, Response<Incoming>, BoxError>;

/// How long a request waits for a way, as for a connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// A handle on the way that all clients of it share.
#[derive(Clone)]
pub struct Link(watch::Sender<Option<Way>>);

impl Link {
    /// With no way yet: requests wait for a moment, then fail.
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// From now on new requests go this way.
    pub(super) fn lead(&self, way: Way) {
        self.0.send_replace(Some(way));
    }

    /// A client that follows the link.
    pub(super) fn client(&self, namespace: String) -> Client {
        ClientBuilder::new(Follow(self.0.subscribe()), namespace).build()
    }
}

struct Follow(watch::Receiver<Option<Way>>);

impl Service<Request<Body>> for Follow {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut ways = self.0.clone();
        Box::pin(async move {
            let found = tokio::time::timeout(PATIENCE, ways.wait_for(Option::is_some)).await;
            let way = found.ok().and_then(Result::ok).and_then(|way| way.clone());
            match way {
                Some(way) => way.oneshot(request).await,
                None => Err("this node has not joined its cluster yet".into()),
            }
        })
    }
}
