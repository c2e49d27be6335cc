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
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use super::access::{Access, Refused};
use super::admission::Admission;
use super::answers::{Answers, Turn};
use super::bearer::bearer;
use super::idle::IdleTimeout;
use super::listen::listen;
use super::tls::Tls;
use super::visit::Visit;
use super::{commands, connection, files, logs, stats};
use crate::machine::MachineInfo;
use crate::pod::probe::Counts;
use crate::pod::pulse::Pulse;
use crate::pod::table::PodTable;
use crate::runtime::Runtime;
use crate::volume::Volumes;

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
    /// What the machine is.
    pub machine: Arc<MachineInfo>,
    /// The volumes of its pods.
    pub volumes: Volumes,
    /// What the last statistics were told from.
    pub last: Arc<stats::summary::Last>,
    /// What probes have found.
    pub probe_counts: Counts,
    /// Whether the manager of the pods turns.
    pub pulse: Pulse,
}

/// The routes, for whoever was let in.
pub fn routes(kubelet: Kubelet) -> Router {
    Router::new()
        .route("/healthz", get(|State(kubelet): State<Kubelet>| healthz(kubelet.pulse)))
        .route("/healthz/ping", get(|| async { "ok" }))
        .route("/healthz/{check}", get(|State(kubelet): State<Kubelet>| healthz(kubelet.pulse)))
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
    let items: Vec<Value> = pods.filter_map(|p| crate::json::convert(p).ok()).collect();
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

/// What of a request decides whether it is let in.
struct Asked {
    bearer: Option<String>,
    method: http::Method,
    path: String,
}

impl Asked {
    fn of(request: &Request) -> Self {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        Self { bearer: bearer(request.headers()), method, path }
    }
}

/// Who lets requests in.
struct Door {
    access: Access,
    tls: Arc<Tls>,
    answers: Answers,
}

impl Door {
    async fn open(&self, visit: &Visit, asked: Asked) -> Result<Option<Turn>, Refused> {
        let user = self.tls.user(visit.certificates());
        let user = self.access.authenticate(user, asked.bearer.as_deref(), visit.place.peer()).await?;
        self.access.authorize(&user, &asked.method, &asked.path).await?;
        if !visit.place.let_in() {
            let message = "too many connections of clients that were let in: close some of them".to_owned();
            return Err((http::StatusCode::SERVICE_UNAVAILABLE, message));
        }
        if !Answers::counts(&asked.path) {
            return Ok(None);
        }
        let message = || "too many answers that were not taken yet: take some of them".to_owned();
        let turn = self.answers.begin(&user.name).ok_or_else(|| (http::StatusCode::TOO_MANY_REQUESTS, message()))?;
        Ok(Some(turn))
    }
}

async fn guard(
    State(door): State<Arc<Door>>,
    Extension(visit): Extension<Arc<Visit>>,
    request: Request,
    next: Next,
) -> Response {
    let under_way = visit.request();
    // no route reads a body: one that does not come is waited for by nobody
    let (answer, turn) = match door.open(&visit, Asked::of(&request)).await {
        Ok(turn) => (next.run(request).await, turn),
        Err(refused) => (refused.into_response(), None),
    };
    under_way.carry(answer, turn)
}

/// Listens on `address` and serves until the agent ends; connections silent for `idle_timeout` are closed.
pub async fn serve(address: SocketAddr, tls: Arc<Tls>, access: Access, kubelet: Kubelet, idle_timeout: Duration) {
    let advice = "kubectl logs and exec do not work; is another kubelet running? Else set --port to another one";
    let listener = listen("kubelet API", address, advice).await;
    let door = Arc::new(Door { access, tls: tls.clone(), answers: Answers::default() });
    let app = routes(kubelet).layer(middleware::from_fn_with_state(door, guard));
    let serve = move |stream, visit: Arc<Visit>| {
        let (tls, app) = (tls.clone(), app.clone());
        async move {
            let stream = handshake(stream, &tls, &visit).await?;
            http(stream, app, idle_timeout, visit).await
        }
    };
    accept("kubelet API", listener, serve).await;
}

/// Serves each connection until it ends, or becomes something else, or may wait no longer, or must make room.
async fn accept<S>(what: &'static str, listener: TcpListener, serve: impl Fn(TcpStream, Arc<Visit>) -> S)
where
    S: Future<Output = Result<(), String>> + Send + 'static,
{
    let admission = Admission::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // such as too many open files: others must end first
                warn!(%error, "{what}: connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let visit = Visit::new(admission.enter(peer.ip()));
        let serving = serve(stream, visit.clone());
        tokio::spawn(async move {
            let served = tokio::select! {
                served = serving => served,
                why = visit.overdue() => Err(why),
                () = visit.place.leave.cancelled() => Err("its place was needed".to_owned()),
            };
            if let Err(error) = served {
                debug!(error, %peer, "{what}: connection ended");
            }
        });
    }
}

async fn handshake(stream: TcpStream, tls: &Tls, visit: &Visit) -> Result<TlsStream<TcpStream>, String> {
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    notice_dead_peers(&stream).map_err(|e| e.to_string())?;
    let stream = tls.acceptor().accept(stream).await.map_err(|e| format!("handshake: {e}"))?;
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    visit.show(shown.iter().map(|c| c.clone().into_owned()).collect(), tls.user(shown).is_some());
    Ok(stream)
}

async fn http<S>(stream: S, app: Router, idle_timeout: Duration, visit: Arc<Visit>) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let app = app.layer(Extension(visit.clone()));
    connection::serve(IdleTimeout::new(stream, idle_timeout, visit), app).await
}

/// Has the kernel find out about peers that have gone without a word.
fn notice_dead_peers(stream: &TcpStream) -> nix::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &30)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &15)?;
    setsockopt(stream, sockopt::TcpKeepCount, &4)
}

/// Whether the agent does its work, and does not just answer.
async fn healthz(pulse: Pulse) -> (http::StatusCode, &'static str) {
    if pulse.beats().await {
        (http::StatusCode::OK, "ok")
    } else {
        (http::StatusCode::INTERNAL_SERVER_ERROR, "the manager of the pods does not turn")
    }
}

/// `/healthz` without credentials, on loopback only; all are strangers there.
pub async fn serve_healthz(port: u16, pulse: Pulse) {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let listener = listen("healthz", address, "set --healthz-port to another one, or to 0 for none").await;
    let noted = async |Extension(visit): Extension<Arc<Visit>>, request: Request, next: Next| {
        let under_way = visit.request();
        under_way.carry(next.run(request).await, None)
    };
    let app = Router::new().route("/healthz", get(move || healthz(pulse))).layer(middleware::from_fn(noted));
    let serve = move |stream, visit: Arc<Visit>| {
        visit.show(Vec::new(), false);
        http(stream, app.clone(), Duration::ZERO, visit)
    };
    accept("healthz", listener, serve).await;
}
