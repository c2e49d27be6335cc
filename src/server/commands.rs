//! `/exec`, `/attach`, `/portForward` and `/run`: which container, which streams, and over to [`super::streaming`].

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use tokio_util::sync::CancellationToken;

use super::api::Kubelet;
use super::streaming::exec::{self, Outcome};
use super::streaming::port_forward;
use super::streaming::upgrade::{self, Refused, SPDY_COMMAND, WEBSOCKET_COMMAND};
use crate::network;
use crate::pod::PodExt;
use crate::pod::ephemeral::all_containers;
use crate::runtime::Wanted;

/// Most bytes of either output that `/run` gives back.
const MAX_OUTPUT: usize = 8 << 20;

/// The query of a command.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    command: Vec<String>,
    wanted: Wanted,
    tty: bool,
    ports: Vec<String>,
}

fn query(request: &Request) -> Query {
    let mut found = Query::default();
    let text = request.uri().query().unwrap_or_default();
    for (name, value) in form_urlencoded::parse(text.as_bytes()) {
        let yes = value == "1" || value == "true";
        match &*name {
            "command" => found.command.push(value.into_owned()),
            // the kubelet's own names, and those of the API server's PodExecOptions
            "input" | "stdin" => found.wanted.stdin |= yes,
            "output" | "stdout" => found.wanted.stdout |= yes,
            "error" | "stderr" => found.wanted.stderr |= yes,
            "tty" => found.tty |= yes,
            "port" | "ports" => found.ports.extend(value.split(',').map(str::to_owned)),
            _ => {}
        }
    }
    // a terminal has one output
    found.wanted.stderr &= !found.tty;
    found
}

/// A running container of the named pod.
struct Target {
    sandbox: String,
    container: String,
    tty: bool,
}

pub(super) fn find_pod(kubelet: &Kubelet, names: &HashMap<String, String>) -> Result<Arc<Pod>, Refused> {
    let name = |key: &str| names.get(key).map(String::as_str).unwrap_or_default();
    let pod = kubelet.pods.get(name("namespace"), name("pod"));
    let uid = names.get("uid");
    pod.filter(|p| uid.is_none_or(|u| p.metadata.uid.as_ref() == Some(u)))
        .ok_or_else(|| (StatusCode::NOT_FOUND, "pod does not exist".to_owned()))
}

/// The statuses of all containers of a pod.
pub(super) fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status.iter().flat_map(|s| {
        let init = s.init_container_statuses.iter().flatten();
        init.chain(s.container_statuses.iter().flatten()).chain(s.ephemeral_container_statuses.iter().flatten())
    })
}

fn sandbox(kubelet: &Kubelet, pod: &Pod) -> Result<String, Refused> {
    let found = kubelet.runtime.sandbox_of(pod.uid());
    found.ok_or_else(|| (StatusCode::INTERNAL_SERVER_ERROR, "the pod has no sandbox: it does not run".to_owned()))
}

fn target(kubelet: &Kubelet, names: &HashMap<String, String>) -> Result<Target, Refused> {
    let pod = find_pod(kubelet, names)?;
    let name = names.get("container").map(String::as_str).unwrap_or_default();
    let refused = |message: String| (StatusCode::INTERNAL_SERVER_ERROR, message);
    let status =
        statuses(&pod).find(|s| s.name == name).ok_or_else(|| refused(format!("container not found ({name:?})")))?;
    let id = status.container_id.as_deref().and_then(|id| id.strip_prefix("pikelet://"));
    let running = status.state.as_ref().is_some_and(|s| s.running.is_some());
    let id = id.filter(|_| running).ok_or_else(|| refused(format!("container {name:?} is not running")))?;
    let tty = all_containers(&pod).any(|c| c.name == name && c.tty == Some(true));
    Ok(Target { sandbox: sandbox(kubelet, &pod)?, container: id.to_owned(), tty })
}

/// The network namespace of the named pod.
fn netns(kubelet: &Kubelet, names: &HashMap<String, String>) -> Result<PathBuf, Refused> {
    let pod = find_pod(kubelet, names)?;
    let netns = kubelet.runtime.netns_path(&sandbox(kubelet, &pod)?);
    netns.ok_or_else(|| (StatusCode::INTERNAL_SERVER_ERROR, "the pod does not run".to_owned()))
}

fn port(written: &str) -> Result<u16, Refused> {
    let wrong = |_| (StatusCode::BAD_REQUEST, "port must be a number from 1 to 65535".to_owned());
    written.parse().map_err(wrong)
}

fn nothing_wanted(wanted: Wanted) -> Result<(), Refused> {
    if wanted == Wanted::default() {
        let message = "you must specify at least 1 of stdin, stdout, stderr".to_owned();
        return Err((StatusCode::BAD_REQUEST, message));
    }
    Ok(())
}

/// `/exec/{namespace}/{pod}[/{uid}]/{container}`.
pub async fn exec(
    State(kubelet): State<Kubelet>,
    Path(names): Path<HashMap<String, String>>,
    request: Request,
) -> Result<Response, Response> {
    let Query { command, wanted, tty, .. } = query(&request);
    let target = target(&kubelet, &names).map_err(IntoResponse::into_response)?;
    nothing_wanted(wanted).map_err(IntoResponse::into_response)?;
    if command.is_empty() {
        return Err((StatusCode::BAD_REQUEST, "you must specify a command").into_response());
    }
    let (answer, upgrade) = upgrade::negotiate(request, &SPDY_COMMAND, &WEBSOCKET_COMMAND).await?;
    tokio::spawn(async move {
        let Some(channels) = upgrade::channels(upgrade, wanted, tty).await else { return };
        match kubelet.runtime.exec(&target.sandbox, &target.container, command, tty, wanted).await {
            Ok(streams) => exec::carry(streams, channels, false).await,
            Err(error) => exec::refuse(channels, Outcome::of_error(&error.to_string())).await,
        }
    });
    Ok(answer)
}

/// `/attach/{namespace}/{pod}[/{uid}]/{container}`.
pub async fn attach(
    State(kubelet): State<Kubelet>,
    Path(names): Path<HashMap<String, String>>,
    request: Request,
) -> Result<Response, Response> {
    let Query { mut wanted, .. } = query(&request);
    let target = target(&kubelet, &names).map_err(IntoResponse::into_response)?;
    // what the container has counts, not what the client believes
    wanted.stderr &= !target.tty;
    nothing_wanted(wanted).map_err(IntoResponse::into_response)?;
    let (answer, upgrade) = upgrade::negotiate(request, &SPDY_COMMAND, &WEBSOCKET_COMMAND).await?;
    tokio::spawn(async move {
        let Some(channels) = upgrade::channels(upgrade, wanted, target.tty).await else { return };
        match kubelet.runtime.attach(&target.sandbox, &target.container, wanted).await {
            Ok(streams) => exec::carry(streams, channels, true).await,
            Err(error) => exec::refuse(channels, Outcome::Failed(error.to_string())).await,
        }
    });
    Ok(answer)
}

/// `/portForward/{namespace}/{pod}[/{uid}]`.
pub async fn port_forward(
    State(kubelet): State<Kubelet>,
    Path(names): Path<HashMap<String, String>>,
    request: Request,
) -> Result<Response, Response> {
    let netns = netns(&kubelet, &names).map_err(IntoResponse::into_response)?;
    let ports: Result<Vec<u16>, _> = query(&request).ports.iter().map(|p| port(p)).collect();
    let ports = ports.map_err(IntoResponse::into_response)?;
    let (answer, upgrade) = upgrade::negotiate(request, &port_forward::SPDY, &port_forward::WEBSOCKET).await?;
    port_forward::check(&upgrade, &ports).map_err(IntoResponse::into_response)?;
    tokio::spawn(port_forward::serve(upgrade, netns, ports));
    Ok(answer)
}

/// `/forward/{namespace}/{pod}?port=...` of the local socket: the connection becomes one to that port of the pod.
pub async fn forward(
    State(kubelet): State<Kubelet>,
    Path(names): Path<HashMap<String, String>>,
    request: Request,
) -> Result<Response, Response> {
    let netns = netns(&kubelet, &names).map_err(IntoResponse::into_response)?;
    let ports = query(&request).ports;
    let port = port(ports.first().map(String::as_str).unwrap_or_default()).map_err(IntoResponse::into_response)?;
    let dialled = network::dial(&netns, port).await;
    let mut stream = dialled.map_err(|e| (StatusCode::BAD_GATEWAY, e).into_response())?;
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            // either side may go at any time
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(upgraded), &mut stream).await;
        }
    });
    let changed = [(header::CONNECTION, "Upgrade"), (header::UPGRADE, "tcp")];
    Ok((StatusCode::SWITCHING_PROTOCOLS, changed).into_response())
}

/// POST `/run/{namespace}/{pod}[/{uid}]/{container}?cmd=...`: waits, and answers with the output.
pub async fn run(
    State(kubelet): State<Kubelet>,
    Path(names): Path<HashMap<String, String>>,
    request: Request,
) -> Result<Response, Response> {
    let text = request.uri().query().unwrap_or_default();
    let cmd = form_urlencoded::parse(text.as_bytes()).find(|(name, _)| name == "cmd").map(|(_, v)| v.into_owned());
    let command: Vec<String> = cmd.iter().flat_map(|c| c.split_whitespace()).map(str::to_owned).collect();
    if command.is_empty() {
        return Err((StatusCode::BAD_REQUEST, "you must specify a command: cmd=...").into_response());
    }
    let failed = |message: String| (StatusCode::INTERNAL_SERVER_ERROR, message).into_response();
    let target = target(&kubelet, &names).map_err(IntoResponse::into_response)?;
    let wanted = Wanted { stdin: false, stdout: true, stderr: true };
    let streams = kubelet.runtime.exec(&target.sandbox, &target.container, command, false, wanted).await;
    let mut streams = streams.map_err(|e| failed(e.to_string()))?;
    let ended = CancellationToken::new();
    let ending = async {
        let code = streams.ending.wait().await;
        ended.cancel();
        code
    };
    let (stdout, stderr) = (streams.stdout.take(), streams.stderr.take());
    let (code, mut output, errors) =
        tokio::join!(ending, exec::collect(stdout, MAX_OUTPUT, &ended), exec::collect(stderr, MAX_OUTPUT, &ended));
    output.extend(errors);
    match code {
        Ok(0) => Ok(Body::from(output).into_response()),
        Ok(code) => Err(failed(format!("{}\ncommand exited with {code}", String::from_utf8_lossy(&output)))),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_one_output() {
        let request = |q: &str| Request::builder().uri(format!("/exec/a/b/c?{q}")).body(Body::empty()).unwrap();
        let all = query(&request("command=sh&command=-c&command=echo+a%20b&input=1&output=1&error=1"));
        assert_eq!(all.command, ["sh", "-c", "echo a b"]);
        assert_eq!(all.wanted, Wanted { stdin: true, stdout: true, stderr: true });
        let terminal = query(&request("stdin=true&stdout=true&stderr=true&tty=true"));
        assert!(terminal.tty && !terminal.wanted.stderr);
        assert_eq!(query(&request("ports=80,81&ports=82")).ports, ["80", "81", "82"]);
    }
}
