//! The kubelet API on its TLS port: connections, authentication, routes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use super::access::{Access, User};
use super::idle::IdleTimeout;
use super::listen::listen;
use super::{commands, files, logs, stats, tls};
use crate::pod::probe::Counts;
use crate::pod::table::PodTable;
use crate::runtime::Runtime;

/// Connections at a time, once their handshake is done; more are closed.
const MAX_CONNECTIONS: usize = 512;
/// Connections in their handshake at a time; more wait in the kernel's queue. One costs little, and none for long.
const MAX_HANDSHAKES: usize = 2048;
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What the routes answer from; cheap to clone.
#[derive(Clone)]
pub struct Kubelet {
    /// Pods of this node.
    pub pods: PodTable,
    /// `/var/log/pods`.
    pub logs_dir: PathBuf,
    /// Containers.
    pub runtime: Runtime,
    /// `/var/lib/pikelet`.
    pub root_dir: PathBuf,
    /// `/var/log`.
    pub system_logs_dir: PathBuf,
    /// Name of this node.
    pub node: String,
    /// The settings, as a `KubeletConfiguration`.
    pub configuration: Arc<Value>,
    /// What the last statistics were told from.
    pub last: Arc<stats::summary::Last>,
    /// What probes have found.
    pub probe_counts: Counts,
}

/// The client certificate's user, if the connection showed one.
#[derive(Clone)]
struct Shown(Option<User>);

/// The routes, for whoever was let in.
pub fn routes(kubelet: Kubelet) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/healthz/{check}", get(|| async { "ok" }))
        .route("/pods", get(pods))
        .route("/pods/", get(pods))
        .route("/runningpods", get(running_pods))
        .route("/runningpods/", get(running_pods))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::container_logs))
        .route("/exec/{namespace}/{pod}/{container}", get(commands::exec).post(commands::exec))
        .route("/exec/{namespace}/{pod}/{uid}/{container}", get(commands::exec).post(commands::exec))
        .route("/attach/{namespace}/{pod}/{container}", get(commands::attach).post(commands::attach))
        .route("/attach/{namespace}/{pod}/{uid}/{container}", get(commands::attach).post(commands::attach))
        .route("/portForward/{namespace}/{pod}", get(commands::port_forward).post(commands::port_forward))
        .route("/portForward/{namespace}/{pod}/{uid}", get(commands::port_forward).post(commands::port_forward))
        .route("/run/{namespace}/{pod}/{container}", post(commands::run))
        .route("/run/{namespace}/{pod}/{uid}/{container}", post(commands::run))
        .route("/stats/summary", get(stats::summary::summary))
        .route("/metrics", get(stats::own::metrics))
        .route("/metrics/resource", get(stats::resource::resource))
        .route("/metrics/cadvisor", get(stats::cadvisor::cadvisor))
        .route("/metrics/probes", get(stats::own::probes))
        .route("/configz", get(configz))
        .route("/checkpoint/{namespace}/{pod}/{container}", post(checkpoint))
        .route("/logs/", get(files::root))
        .route("/logs/{*path}", get(files::file))
        .with_state(kubelet)
}

/// A `PodList` of some pods.
pub fn pod_list<'a>(pods: impl Iterator<Item = &'a k8s_openapi::api::core::v1::Pod>) -> Value {
    let items: Vec<Value> = pods.filter_map(|p| serde_json::to_value(p).ok()).collect();
    json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items})
}

async fn pods(State(kubelet): State<Kubelet>) -> Json<Value> {
    Json(pod_list(kubelet.pods.list().iter().map(|p| &**p)))
}

async fn configz(State(kubelet): State<Kubelet>) -> Json<Value> {
    Json(json!({"kubeletconfig": *kubelet.configuration}))
}

async fn checkpoint() -> impl IntoResponse {
    let message = "checkpoints are not implemented: the container runtime of this node cannot write them";
    (http::StatusCode::NOT_IMPLEMENTED, message)
}

async fn running_pods(State(kubelet): State<Kubelet>) -> Json<Value> {
    let running = |p: &&k8s_openapi::api::core::v1::Pod| {
        let statuses = p.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
        statuses.filter_map(|c| c.state.as_ref()).any(|s| s.running.is_some())
    };
    Json(pod_list(kubelet.pods.list().iter().map(|p| &**p).filter(running)))
}

async fn guard(
    State(access): State<Arc<Access>>,
    Extension(Shown(user)): Extension<Shown>,
    request: Request,
    next: Next,
) -> Response {
    let header = request.headers().get(http::header::AUTHORIZATION).and_then(|h| h.to_str().ok());
    let bearer = header.and_then(|h| h.strip_prefix("Bearer ")).map(|t| t.trim().to_owned());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let let_in = async {
        let user = access.authenticate(user, bearer.as_deref()).await?;
        access.authorize(&user, &method, &path).await
    };
    match let_in.await {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    }
}

/// Listens on `address` and serves until the agent ends; connections silent for `idle_timeout` are closed.
pub async fn serve(
    address: SocketAddr,
    tls: watch::Receiver<TlsAcceptor>,
    access: Access,
    kubelet: Kubelet,
    idle_timeout: Duration,
) {
    let advice = "kubectl logs and exec do not work; is another kubelet running? Else set --port to another one";
    let listener = listen("kubelet API", address, advice).await;
    let app = routes(kubelet).layer(middleware::from_fn_with_state(Arc::new(access), guard));
    let (handshakes, limit) = (Arc::new(Semaphore::new(MAX_HANDSHAKES)), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
    loop {
        let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // such as too many open files: others must end first
                warn!(%error, "kubelet API: connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, app, limit) = (tls.borrow().clone(), app.clone(), limit.clone());
        tokio::spawn(async move {
            let handshaken = handshake(stream, tls).await;
            drop(permit);
            let served = match handshaken {
                Ok(stream) => match limit.try_acquire() {
                    Ok(_permit) => connection(stream, app, idle_timeout).await,
                    Err(_) => Err(format!("more than {MAX_CONNECTIONS} at a time")),
                },
                Err(error) => Err(error),
            };
            if let Err(error) = served {
                debug!(error, "kubelet API: connection ended");
            }
        });
    }
}

async fn handshake(stream: TcpStream, tls: TlsAcceptor) -> Result<TlsStream<TcpStream>, String> {
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let stream = timeout(HANDSHAKE, tls.accept(stream)).await.map_err(|_| "handshake took too long")?;
    stream.map_err(|e| format!("handshake: {e}"))
}

async fn connection(stream: TlsStream<TcpStream>, app: Router, idle_timeout: Duration) -> Result<(), String> {
    let shown = stream.get_ref().1.peer_certificates().and_then(|c| tls::user_of(c.first()?));
    let service = TowerToHyperService::new(app.layer(Extension(Shown(shown))));
    let builder = auto::Builder::new(TokioExecutor::new());
    let stream = IdleTimeout::new(stream, idle_timeout);
    builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await.map_err(|e| e.to_string())
}

/// `/healthz` without credentials, on loopback only.
pub async fn serve_healthz(port: u16) -> Result<(), String> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let listener = listen("healthz", address, "set --healthz-port to another one, or to 0 for none").await;
    let app = Router::new().route("/healthz", get(|| async { "ok" }));
    axum::serve(listener, app).await.map_err(|e| format!("healthz on {address}: {e}"))
}
