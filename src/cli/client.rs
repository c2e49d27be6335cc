//! How commands talk to the agent of this node: HTTP and websockets on its unix socket.

use std::error::Error;
use std::path::PathBuf;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, http::HeaderValue};

use crate::json;
use crate::server::local;

/// Any error, for a person to read.
pub type Failure = Box<dyn Error + Send + Sync>;

/// Arguments that name a pod.
#[derive(clap::Args)]
pub struct PodArgs {
    /// State directory of the agent
    #[arg(long, default_value = "/run/pikelet")]
    pub state_dir: PathBuf,
    /// Namespace of the pod [default: that of the only pod of that name]
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Name of the pod
    pub pod: String,
}

/// The pods of a `PodList`.
pub fn pods(list: &serde_json::Value) -> Result<Vec<Pod>, Failure> {
    Ok(json::convert(&list["items"])?)
}

/// Runs the work of a command.
pub fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    // a thread may still wait for keys that nobody types
    runtime.shutdown_background();
    result
}

impl PodArgs {
    /// The pod of this node that is meant.
    pub fn find(&self) -> Result<Pod, Failure> {
        let list = serde_json::from_str(&local::ask(&self.state_dir, "GET", "/pods")?)?;
        choose(pods(&list)?, self.namespace.as_deref(), &self.pod)
    }
}

/// The one of `pods` that is called so; the error says which there are.
fn choose(pods: Vec<Pod>, namespace: Option<&str>, name: &str) -> Result<Pod, Failure> {
    let names: Vec<String> = pods.iter().filter_map(|p| p.metadata.name.clone()).collect();
    let (mut found, mut elsewhere) = (Vec::new(), Vec::new());
    for pod in pods.into_iter().filter(|p| p.metadata.name.as_deref() == Some(name)) {
        let own = pod.metadata.namespace.as_deref();
        if namespace.is_none() || own == namespace { &mut found } else { &mut elsewhere }.push(pod);
    }
    let namespaces = |pods: &[Pod]| {
        let mut names: Vec<&str> = pods.iter().filter_map(|p| p.metadata.namespace.as_deref()).collect();
        names.sort_unstable();
        names.join(", ")
    };
    if found.len() > 1 {
        return Err(format!("pod {name} is in several namespaces: choose one with -n: {}", namespaces(&found)).into());
    }
    if let Some(pod) = found.pop() {
        return Ok(pod);
    }
    if let Some(wanted) = namespace.filter(|_| !elsewhere.is_empty()) {
        let there = namespaces(&elsewhere);
        return Err(format!("no pod {name} in namespace {wanted} of this node: it is in {there}").into());
    }
    // what a Deployment makes begins with its name
    let alike: Vec<&String> =
        names.iter().filter(|n| n.starts_with(name) || strsim::levenshtein(n, name) < 3).collect();
    let hint = match alike.as_slice() {
        [] => "`pikelet ps -a` lists those there are".to_owned(),
        [first, ..] => format!("did you mean {first}? `pikelet ps -a` lists all"),
    };
    Err(format!("no pod {name} on this node: {hint}").into())
}

/// `<namespace>/<pod>` of a path.
pub fn path(pod: &Pod) -> String {
    let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
    format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default())
}

/// The container that is meant: the named one, the pod's default, or its first.
pub fn container(pod: &Pod, named: Option<&str>) -> Result<String, Failure> {
    let containers = pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let ephemeral = pod.spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten());
    let names = containers.map(|c| c.name.as_str()).chain(ephemeral.map(|c| c.name.as_str()));
    let names: Vec<&str> = names.collect();
    let annotation = pod.metadata.annotations.as_ref().and_then(|a| a.get("kubectl.kubernetes.io/default-container"));
    let wanted = named.or(annotation.map(String::as_str)).or(names.first().copied()).unwrap_or_default();
    if names.contains(&wanted) {
        return Ok(wanted.to_owned());
    }
    Err(format!("container {wanted} is not one of the pod's: {}", names.join(", ")).into())
}

async fn connect(state_dir: &std::path::Path) -> Result<UnixStream, Failure> {
    let stream = local::connect(state_dir)?;
    stream.set_nonblocking(true)?;
    Ok(UnixStream::from_std(stream)?)
}

/// Asks and gives the answer as it comes; `upgrade` names another protocol to change to.
pub async fn get(
    state_dir: &std::path::Path,
    path: &str,
    upgrade: Option<&str>,
) -> Result<http::Response<Incoming>, Failure> {
    let mut request = Request::get(path);
    if let Some(protocol) = upgrade {
        request = request.header(http::header::CONNECTION, "Upgrade").header(http::header::UPGRADE, protocol);
    }
    send(state_dir, request.body(Full::<Bytes>::default())?).await
}

/// Asks with any method and body; an upgrade that is asked for is wanted.
pub async fn send<B>(state_dir: &std::path::Path, mut request: Request<B>) -> Result<http::Response<Incoming>, Failure>
where
    B: Body<Data = Bytes, Error: Into<Failure>> + Send + 'static,
{
    let stream = connect(state_dir).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("local"));
    let upgrade = request.headers().contains_key(http::header::UPGRADE);
    let wanted = if upgrade { StatusCode::SWITCHING_PROTOCOLS } else { StatusCode::OK };
    refuse_other(sender.send_request(request).await?, wanted).await
}

/// An answer with another status is an error that says what the agent says.
async fn refuse_other(
    response: http::Response<Incoming>,
    wanted: StatusCode,
) -> Result<http::Response<Incoming>, Failure> {
    let status = response.status();
    if status == wanted {
        return Ok(response);
    }
    let body = response.into_body().collect().await?.to_bytes();
    Err(format!("{} ({status})", String::from_utf8_lossy(&body).trim()).into())
}

/// Opens a websocket.
pub async fn websocket(
    state_dir: &std::path::Path,
    path: &str,
    protocol: &'static str,
) -> Result<WebSocketStream<UnixStream>, Failure> {
    let mut request = format!("ws://local{path}").into_client_request()?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(protocol));
    match tokio_tungstenite::client_async(request, connect(state_dir).await?).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(answer)) => {
            let body = answer.body().as_deref().unwrap_or_default();
            Err(format!("{} ({})", String::from_utf8_lossy(body).trim(), answer.status()).into())
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_chosen_or_the_choice_is_told() {
        let pods = || {
            let pod = |path: &str| {
                let (namespace, name) = path.split_once('/').unwrap();
                serde_json::from_value(serde_json::json!({"metadata": {"namespace": namespace, "name": name}})).unwrap()
            };
            ["a/web-5d8-x2", "a/twin", "b/twin"].into_iter().map(pod).collect()
        };
        let chosen = |namespace, name| choose(pods(), namespace, name).map(|p| path(&p)).map_err(|e| e.to_string());
        assert_eq!(chosen(None, "web-5d8-x2").unwrap(), "a/web-5d8-x2");
        assert_eq!(chosen(Some("b"), "twin").unwrap(), "b/twin");
        assert!(chosen(None, "twin").unwrap_err().ends_with("choose one with -n: a, b"));
        assert!(chosen(Some("c"), "twin").unwrap_err().ends_with("it is in a, b"));
        assert!(chosen(None, "web").unwrap_err().contains("did you mean web-5d8-x2?"));
        assert!(chosen(None, "other").unwrap_err().ends_with("`pikelet ps -a` lists those there are"));
    }
}
