//! HTTP on one connection, whatever that is made of: a server is in the program once for each kind of stream it is made for.

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};

/// Requests at a time on one connection of HTTP/2. Go's servers take 250; a client that has more opens another connection.
const MAX_STREAMS: u32 = 64;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Serves until the connection ends, or becomes something else.
pub fn serve<S>(stream: S, app: Router) -> impl Future<Output = Result<(), String>> + use<S>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    serve_any(Box::new(stream), app)
}

async fn serve_any(stream: Box<dyn Stream>, app: Router) -> Result<(), String> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(MAX_STREAMS);
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(app)).await;
    served.map_err(|e| e.to_string())
}
