//! One look at a container: exec, httpGet, tcpSocket, grpc (Kubernetes `Probe`, handlers as the kubelet's).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

use crate::pod::env;
use crate::runtime::{Runtime, Wanted};

/// Most output or body that is looked at in bytes.
const MAX_OUTPUT: usize = 10 << 10;
/// Most bytes of a wrong answer that are shown.
const MAX_SHOWN: usize = 64;

/// What came of a look that found nothing good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// The program did not answer, or not as it should.
    Failed(String),
    /// Nobody was asked, which says nothing of the program: there is no such port, or no process could be made.
    NotAsked(String),
}

impl Wrong {
    /// What is wrong, for a person.
    pub fn into_text(self) -> String {
        let (Self::Failed(text) | Self::NotAsked(text)) = self;
        text
    }
}

impl From<String> for Wrong {
    fn from(text: String) -> Self {
        Self::Failed(text)
    }
}

/// What a probe looks at, with everything it needs.
#[derive(Debug, Clone)]
pub enum Check {
    /// A command in the container that ends with 0.
    Exec {
        /// Sandbox id.
        sandbox: String,
        /// Container id.
        container: String,
        /// The command.
        command: Vec<String>,
    },
    /// An answer of 200 to 399.
    Http {
        /// Where.
        url: String,
        /// Headers of the probe.
        headers: Vec<(String, String)>,
        /// Any answer will do.
        any_status: bool,
    },
    /// A connection.
    Tcp {
        /// `host:port`.
        address: String,
    },
    /// `grpc.health.v1.Health/Check` that says SERVING.
    Grpc {
        /// `host:port`.
        address: String,
        /// Service asked for; may be empty.
        service: String,
    },
}

fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let found = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let ports = container.ports.iter().flatten();
            let named = ports.filter(|p| p.name.as_deref() == Some(name)).map(|p| p.container_port).next();
            named.or_else(|| name.parse().ok())
        }
    };
    found.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0).ok_or_else(|| format!("couldn't find port: {port:?}"))
}

fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn http(action: &HTTPGetAction, container: &Container, pod_ip: &str) -> Result<Check, String> {
    let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
    let scheme = action.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    let path = action.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let url = format!("{scheme}://{}{slash}{path}", address(host, port(container, &action.port)?));
    let headers = action.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect();
    Ok(Check::Http { url, headers, any_status: false })
}

impl Check {
    /// The check of a probe; `None` when the probe has no handler.
    pub fn of(
        probe: &Probe,
        container: &Container,
        pod_ip: &str,
        sandbox: &str,
        id: &str,
    ) -> Option<Result<Self, String>> {
        if let Some(exec) = &probe.exec {
            let command = exec.command.clone().unwrap_or_default();
            return Some(Ok(Self::Exec { sandbox: sandbox.to_owned(), container: id.to_owned(), command }));
        }
        if let Some(action) = &probe.http_get {
            return Some(http(action, container, pod_ip));
        }
        if let Some(socket) = &probe.tcp_socket {
            let host = socket.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
            return Some(port(container, &socket.port).map(|port| Self::Tcp { address: address(host, port) }));
        }
        let grpc = probe.grpc.as_ref()?;
        let port = port(container, &IntOrString::Int(grpc.port));
        let service = grpc.service.clone().unwrap_or_default();
        Some(port.map(|port| Self::Grpc { address: address(pod_ip, port), service }))
    }

    /// The same for a probe, whose command has the container's own variables in the place of `$(VAR)`; a hook's has not. Of
    /// those that come from elsewhere (`valueFrom`) nothing is seen here, as with the kubelet.
    pub fn of_probe(self, container: &Container) -> Result<Self, String> {
        let Self::Exec { sandbox, container: id, command } = self else { return Ok(self) };
        let own = container.env.iter().flatten();
        let variables = own.map(|v| (v.name.clone(), v.value.clone().unwrap_or_default())).collect();
        Ok(Self::Exec { sandbox, container: id, command: env::expand_all(&command, &variables)? })
    }

    /// The same for a lifecycle hook, which only tells: what the answer says does not matter.
    #[must_use]
    pub fn of_hook(mut self) -> Self {
        if let Self::Http { any_status, .. } = &mut self {
            *any_status = true;
        }
        self
    }

    /// Looks once; the error says what is wrong, and a success may come with a warning: of a probe that was redirected
    /// elsewhere, of a hook that was heard only without TLS.
    pub async fn look(&self, runtime: &Runtime, clients: &Clients, limit: Duration) -> Result<Option<String>, Wrong> {
        let looked = async {
            match self {
                Self::Exec { sandbox, container, command } => {
                    exec(runtime, sandbox, container, command).await.map(|()| None)
                }
                Self::Http { url, headers, any_status } => {
                    http_get(clients.http().map_err(Wrong::NotAsked)?, url, headers, *any_status).await
                }
                Self::Tcp { address } => match TcpStream::connect(address).await {
                    Ok(_) => Ok(None),
                    Err(error) => Err(Wrong::Failed(format!("dial tcp {address}: {error}"))),
                },
                Self::Grpc { address, service } => {
                    Ok(grpc(clients.grpc().map_err(Wrong::NotAsked)?, address, service).await.map(|()| None)?)
                }
            }
        };
        match tokio::time::timeout(limit, looked).await {
            Ok(result) => result,
            Err(_) => Err(Wrong::Failed(format!("no answer within {} s", limit.as_secs()))),
        }
    }
}

async fn exec(runtime: &Runtime, sandbox: &str, container: &str, command: &[String]) -> Result<(), Wrong> {
    let wanted = Wanted { stdin: false, stdout: true, stderr: true };
    let begun = runtime.exec_bound(sandbox, container, command.to_vec(), wanted).await;
    let mut streams = begun.map_err(|e| Wrong::NotAsked(e.to_string()))?;
    let mut output = Vec::new();
    for mut reader in [streams.stdout.take(), streams.stderr.take()].into_iter().flatten() {
        while output.len() < MAX_OUTPUT && reader.read(&mut output).await.is_ok_and(|n| n > 0) {}
    }
    match streams.ending.wait().await.map_err(Wrong::NotAsked)? {
        0 => Ok(()),
        _ => Err(Wrong::Failed(String::from_utf8_lossy(&output).trim_end().to_owned())),
    }
}

/// The clients of all probes, each made when it is first needed: one costs a quarter of a MiB.
#[derive(Debug, Clone, Default)]
pub struct Clients {
    http: Arc<OnceLock<reqwest::Client>>,
    grpc: Arc<OnceLock<reqwest::Client>>,
}

impl Clients {
    fn http(&self) -> Result<&reqwest::Client, String> {
        made(&self.http, http_client)
    }

    fn grpc(&self) -> Result<&reqwest::Client, String> {
        let client = || reqwest::Client::builder().no_proxy().http2_prior_knowledge().pool_max_idle_per_host(0).build();
        made(&self.grpc, client)
    }
}

fn made(
    cell: &OnceLock<reqwest::Client>,
    make: impl FnOnce() -> reqwest::Result<reqwest::Client>,
) -> Result<&reqwest::Client, String> {
    if let Some(client) = cell.get() {
        return Ok(client);
    }
    crate::crypto::install();
    let client = make().map_err(|e| format!("making a client for probes: {e}"))?;
    Ok(cell.get_or_init(|| client))
}

/// Certificates are not checked, as a probe asks whether something answers.
fn http_client() -> reqwest::Result<reqwest::Client> {
    let same_host = reqwest::redirect::Policy::custom(|attempt| {
        let first = attempt.previous().first().and_then(|u| u.host_str().map(str::to_owned));
        if attempt.previous().len() >= 10 {
            attempt.error("stopped after 10 redirects")
        } else if attempt.url().host_str().map(str::to_owned) == first {
            attempt.follow()
        } else {
            // to another host: that this one answers is enough
            attempt.stop()
        }
    });
    reqwest::Client::builder()
        .no_proxy()
        .tls_danger_accept_invalid_certs(true)
        .redirect(same_host)
        .pool_max_idle_per_host(0)
        .user_agent("kube-probe/1.36")
        .build()
}

fn with_headers<'a>(
    request: reqwest::RequestBuilder,
    headers: impl Iterator<Item = &'a (String, String)>,
) -> reqwest::RequestBuilder {
    headers.fold(request, |request, (name, value)| request.header(name, value))
}

/// A redirect that was not followed is a success with a warning.
async fn http_get(
    client: &reqwest::Client,
    url: &str,
    headers: &[(String, String)],
    any_status: bool,
) -> Result<Option<String>, Wrong> {
    let request = with_headers(client.get(url), headers.iter());
    let failed = |e: reqwest::Error| {
        let mut cause: &dyn std::error::Error = &e;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        let text = format!("Get \"{url}\": {cause}");
        if e.is_builder() { Wrong::NotAsked(text) } else { Wrong::Failed(text) }
    };
    let response = match request.send().await {
        Err(error) if any_status && has_no_tls(&error) => return http_hook(client, url, headers, failed(error)).await,
        sent => sent.map_err(failed)?,
    };
    match response.status().as_u16() {
        200..300 => Ok(None),
        _ if any_status => Ok(None),
        300..400 => {
            let (body, _) = beginning(response).await;
            let body = String::from_utf8_lossy(&body);
            Ok(Some(format!("Probe terminated redirects, Response body: {body}")))
        }
        status => Err(Wrong::Failed(format!("HTTP probe failed with statuscode: {status}"))),
    }
}

/// Whether what answered does not speak TLS.
fn has_no_tls(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let mut inner = error;
        // an error of the system has the one it was made of inside, and names that one's cause as its own
        while let Some(next) = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            inner = next;
        }
        if matches!(inner.downcast_ref(), Some(rustls::Error::InvalidMessage(_))) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A hook for HTTPS that was answered without TLS, once more by HTTP, as the kubelet has it: without `Authorization`, and with a
/// warning where it is heard.
async fn http_hook(
    client: &reqwest::Client,
    url: &str,
    headers: &[(String, String)],
    failed: Wrong,
) -> Result<Option<String>, Wrong> {
    let Some(rest) = url.strip_prefix("https://") else { return Err(failed) };
    let host = rest.split('/').next().unwrap_or_default();
    let shown = headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
    match with_headers(client.get(format!("http://{rest}")), shown).send().await {
        Ok(_) => {
            Ok(Some(format!("request to HTTPS lifecycle hook {host} got HTTP response, retry with HTTP succeeded")))
        }
        Err(_) => Err(failed),
    }
}

/// What an answer begins with, and the error that cut it short. One that never ends takes no more memory than that.
async fn beginning(mut response: reqwest::Response) -> (Vec<u8>, Option<reqwest::Error>) {
    let mut bytes = Vec::new();
    let mut error = None;
    while bytes.len() < MAX_OUTPUT {
        match response.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => break,
            Err(e) => {
                error = Some(e);
                break;
            }
        }
    }
    bytes.truncate(MAX_OUTPUT);
    (bytes, error)
}

/// A number as protobuf writes it: seven bits a byte, the lowest first, the eighth says that more follow.
fn varint(mut number: usize, to: &mut Vec<u8>) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

/// A unary call in gRPC's framing: a byte for no compression, four for the length, then the message.
async fn grpc(client: &reqwest::Client, address: &str, service: &str) -> Result<(), String> {
    let mut message = Vec::new();
    if !service.is_empty() {
        // field 1, a string
        message.push(0x0a);
        varint(service.len(), &mut message);
        message.extend_from_slice(service.as_bytes());
    }
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap_or_default().to_be_bytes());
    body.extend(message);
    let failed = |e: reqwest::Error| format!("grpc {address}: {e}");
    let request = client.post(format!("http://{address}/grpc.health.v1.Health/Check"));
    let request = request.header("content-type", "application/grpc").header("te", "trailers").body(body);
    let response = request.send().await.map_err(failed)?;
    if let Some(status) = response.headers().get("grpc-status").filter(|s| *s != "0") {
        let status = status.to_str().unwrap_or_default();
        return Err(format!(
            "error: this server does not implement the health service as asked (grpc status {status})"
        ));
    }
    let (answer, error) = beginning(response).await;
    if let Some(error) = error {
        return Err(failed(error));
    }
    match answer.get(5..).unwrap_or_default() {
        // field 1, a number: SERVING
        [0x08, 0x01, ..] => Ok(()),
        other => Err(format!("service unhealthy (responded with {:?})", &other[..other.len().min(MAX_SHOWN)])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container() -> Container {
        serde_json::from_value(serde_json::json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}))
            .unwrap()
    }

    #[test]
    fn ports_may_have_names() {
        let named = |p: &str| port(&container(), &IntOrString::String(p.into()));
        assert_eq!((named("web"), named("81")), (Ok(8080), Ok(81)));
        assert!(named("nope").is_err());
        let probe = serde_json::json!({"httpGet": {"path": "healthz", "port": "web", "scheme": "HTTPS"}});
        let probe: Probe = serde_json::from_value(probe).unwrap();
        let check = Check::of(&probe, &container(), "fd00::1", "s", "c").unwrap().unwrap();
        assert!(matches!(check, Check::Http { url, .. } if url == "https://[fd00::1]:8080/healthz"));
    }

    #[test]
    fn commands_of_probes_see_the_variables_of_the_container_itself() {
        let container: Container = serde_json::from_value(serde_json::json!({"name": "c", "env": [
            {"name": "FILE", "value": "/tmp/ready"}, {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]}))
        .unwrap();
        let probe: Probe = serde_json::from_value(
            serde_json::json!({"exec": {"command": ["cat", "$(FILE)", "$$(FILE)", "$(NONE)", "-$(NODE)"]}}),
        )
        .unwrap();
        let check = || Check::of(&probe, &container, "", "s", "c").unwrap().unwrap();
        let words = |check| match check {
            Check::Exec { command, .. } => command,
            _ => Vec::new(),
        };
        assert_eq!(words(check().of_probe(&container).unwrap()), ["cat", "/tmp/ready", "$(FILE)", "$(NONE)", "-"]);
        assert_eq!(words(check().of_hook())[1], "$(FILE)", "a hook's command is as it is written");
    }

    #[test]
    fn lengths_may_be_of_any_size() {
        let written = |number| {
            let mut bytes = Vec::new();
            varint(number, &mut bytes);
            bytes
        };
        assert_eq!((written(5), written(127), written(200)), (vec![5], vec![127], vec![0xc8, 1]));
    }

    /// A server of HTTP/2 whose answer to everything never ends; returns its address and how much it has sent.
    async fn endless() -> (String, Arc<std::sync::atomic::AtomicUsize>) {
        use http_body_util::StreamBody;
        use hyper::body::{Bytes, Frame};
        use std::sync::atomic::{AtomicUsize, Ordering};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let sent = Arc::new(AtomicUsize::new(0));
        let count = sent.clone();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let serve = hyper::service::service_fn(move |_| {
                let count = count.clone();
                let body = futures::stream::repeat_with(move || {
                    count.fetch_add(16 << 10, Ordering::Relaxed);
                    Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(&[0; 16 << 10])))
                });
                let answer = hyper::Response::new(StreamBody::new(body));
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            let executor = hyper_util::rt::TokioExecutor::new();
            let connection = hyper::server::conn::http2::Builder::new(executor);
            let _ = connection.serve_connection(hyper_util::rt::TokioIo::new(stream), serve).await;
        });
        (address, sent)
    }

    /// A server of plain HTTP, and what it was asked for so far.
    async fn plain() -> (u16, Arc<std::sync::Mutex<String>>) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, heard) = (listener.local_addr().unwrap().port(), Arc::<std::sync::Mutex<String>>::default());
        let told = heard.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut bytes = [0; 4096];
                let n = stream.read(&mut bytes).await.unwrap();
                told.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..n]));
                let status = if bytes.starts_with(b"GET") { "404 Not Found" } else { "400 Bad Request" };
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (port, heard)
    }

    #[tokio::test]
    async fn a_hook_for_https_is_heard_by_http() {
        let (port, heard) = plain().await;
        let (url, clients) = (format!("https://127.0.0.1:{port}/stop?x=1"), Clients::default());
        let headers = [("Authorization", "Basic x"), ("X-Own", "y")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let client = clients.http().unwrap();
        let warning = http_get(client, &url, &headers, true).await.unwrap().unwrap();
        let expected =
            format!("request to HTTPS lifecycle hook 127.0.0.1:{port} got HTTP response, retry with HTTP succeeded");
        assert_eq!(warning, expected);
        let asked = heard.lock().unwrap().to_lowercase();
        assert!(asked.contains("get /stop?x=1 http/1.1") && asked.contains("x-own: y"), "{asked}");
        assert!(!asked.contains("authorization"), "{asked}");
        assert!(matches!(http_get(client, &url, &headers, false).await, Err(Wrong::Failed(_))), "a probe is not");
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(http_get(client, &format!("https://{nobody}/"), &headers, true).await.is_err());
    }

    #[tokio::test]
    async fn an_answer_that_never_ends_is_not_kept() {
        let (address, sent) = endless().await;
        let clients = Clients::default();
        let error = grpc(clients.grpc().unwrap(), &address, "").await.unwrap_err();
        assert!(error.starts_with("service unhealthy") && error.len() < 1000, "{error}");
        let sent = sent.load(std::sync::atomic::Ordering::Relaxed);
        // the connection's own windows, which the client fills before it is read
        assert!(sent < 64 << 20, "{sent}");
    }
}
