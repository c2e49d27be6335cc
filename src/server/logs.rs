//! `/containerLogs/{namespace}/{pod}/{container}` (Kubernetes' `PodLogOptions`).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use axum::body::Body;
use axum::extract::{Path as Parts, Query, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::api::Kubelet;
use super::commands::statuses;
use crate::pod::restart::restarts;
use crate::pod::table::PodTable;
use crate::runtime::{LogOptions, LogStream, read_log};

/// Pieces of a log that may wait for a slow reader.
const QUEUE: usize = 4;

type Refused = (StatusCode, String);

/// The query of a log request.
struct Wanted {
    options: LogOptions,
    previous: bool,
}

fn wanted(query: &HashMap<String, String>) -> Result<Wanted, Refused> {
    let invalid = |what: String| (StatusCode::UNPROCESSABLE_ENTITY, what);
    let number = |key: &str| match query.get(key).filter(|v| !v.is_empty()) {
        None => Ok(None),
        Some(text) => {
            text.parse::<u64>().map(Some).map_err(|_| invalid(format!("{key}: {text:?} is no number of 0 or more")))
        }
    };
    let flag = |key: &str| query.get(key).is_some_and(|v| matches!(v.as_str(), "" | "1" | "t" | "T" | "true" | "True"));
    let time = match query.get("sinceTime").filter(|v| !v.is_empty()) {
        None => None,
        Some(text) => Some(text.parse().map_err(|e| invalid(format!("sinceTime: {text:?}: {e}")))?),
    };
    let since = match (number("sinceSeconds")?, time) {
        (Some(_), Some(_)) => return Err(invalid("at most one of sinceTime and sinceSeconds may be given".to_owned())),
        (Some(seconds), None) => {
            let start = jiff::Timestamp::now().as_second().saturating_sub_unsigned(seconds);
            Some(jiff::Timestamp::from_second(start).unwrap_or(jiff::Timestamp::UNIX_EPOCH))
        }
        (None, time) => time,
    };
    let limit_bytes = number("limitBytes")?;
    if limit_bytes == Some(0) {
        return Err(invalid("limitBytes: it must be greater than 0".to_owned()));
    }
    let stream = match query.get("stream").map_or("All", String::as_str) {
        "All" | "" => None,
        "Stdout" => Some(LogStream::Stdout),
        "Stderr" => Some(LogStream::Stderr),
        other => return Err(invalid(format!("stream: {other:?}: it is All, Stdout or Stderr"))),
    };
    let options = LogOptions {
        follow: flag("follow"),
        tail: number("tailLines")?,
        since,
        timestamps: flag("timestamps"),
        limit_bytes,
        stream,
    };
    Ok(Wanted { options, previous: flag("previous") })
}

fn status_of<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    statuses(pod).find(|s| s.name == container)
}

/// The run whose log is wanted: its number, and its id if it still runs.
fn run(pod: &Pod, container: &str, previous: bool) -> Result<(i32, Option<String>), Refused> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let bad = |message: String| Err((StatusCode::BAD_REQUEST, message));
    let Some(status) = status_of(pod, container) else {
        return Err((StatusCode::NOT_FOUND, format!("container {container:?} not found in pod {name:?}")));
    };
    let state = status.state.clone().unwrap_or_default();
    let ended_before = status.last_state.as_ref().is_some_and(|s| s.terminated.is_some());
    if previous {
        if !ended_before {
            return bad(format!("previous terminated container {container:?} in pod {name:?} not found"));
        }
        let newest_ended = state.waiting.is_some();
        return Ok((if newest_ended { status.restart_count } else { status.restart_count - 1 }, None));
    }
    match state.waiting {
        Some(waiting) if !ended_before => {
            let reason = waiting.reason.unwrap_or_default();
            match reason.as_str() {
                "ErrImagePull" => {
                    bad(format!("container {container:?} in pod {name:?} is waiting to start: image can't be pulled"))
                }
                "ImagePullBackOff" => bad(format!(
                    "container {container:?} in pod {name:?} is waiting to start: trying and failing to pull image"
                )),
                _ => bad(format!("container {container:?} in pod {name:?} is waiting to start: {reason}")),
            }
        }
        _ => Ok((status.restart_count, state.running.and(status.container_id.clone()))),
    }
}

/// Waits until the run of that id is over.
async fn ended(pods: &PodTable, uid: &str, container: &str, id: Option<&str>) {
    let mut changes = pods.subscribe();
    while let Some(id) = id {
        changes.borrow_and_update();
        let pod = pods.by_uid(uid);
        let status = pod.as_ref().and_then(|p| status_of(p, container));
        let running = status.is_some_and(|s| {
            s.container_id.as_deref() == Some(id) && s.state.as_ref().is_some_and(|s| s.running.is_some())
        });
        if !running || changes.changed().await.is_err() {
            return;
        }
    }
}

/// The run that follows the one of that number, once it is there; `None` when there will be none.
async fn next_run(pods: &PodTable, uid: &str, container: &str, number: i32) -> Option<(i32, Option<String>)> {
    let mut changes = pods.subscribe();
    loop {
        changes.borrow_and_update();
        let pod = pods.by_uid(uid)?;
        let status = status_of(&pod, container)?;
        let over =
            pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|p| p == "Succeeded" || p == "Failed");
        let state = status.state.as_ref()?;
        let again = state.terminated.as_ref().is_none_or(|t| restarts(&pod, container, t.exit_code));
        if status.restart_count > number && state.waiting.is_none() {
            return Some((status.restart_count, state.running.as_ref().and(status.container_id.clone())));
        }
        if over || !again || pod.metadata.deletion_timestamp.is_some() {
            return None;
        }
        changes.changed().await.ok()?;
    }
}

/// Serves one log.
pub async fn container_logs(
    State(kubelet): State<Kubelet>,
    Parts((namespace, name, container)): Parts<(String, String, String)>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    match open(&kubelet, &namespace, &name, &container, &query) {
        Ok(body) => ([(header::CONTENT_TYPE, "text/plain")], body).into_response(),
        Err(refused) => refused.into_response(),
    }
}

fn open(
    kubelet: &Kubelet,
    namespace: &str,
    name: &str,
    container: &str,
    query: &HashMap<String, String>,
) -> Result<Body, Refused> {
    let Wanted { options, previous } = wanted(query)?;
    let Some(pod) = kubelet.pods.get(namespace, name) else {
        return Err((StatusCode::NOT_FOUND, format!("pod \"{namespace}/{name}\" not found on this node")));
    };
    let (mut number, mut id) = run(&pod, container, previous)?;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let dir = kubelet.logs_dir.join(format!("{namespace}_{name}_{uid}")).join(container);
    if !log_file(&dir, number).exists() {
        let message = format!("unable to retrieve container logs for {container:?} in pod {name:?}: its log is gone");
        return Err((StatusCode::BAD_REQUEST, message));
    }
    let (tx, rx) = mpsc::channel(QUEUE);
    let (pods, container) = (kubelet.pods.clone(), container.to_owned());
    tokio::spawn(async move {
        let mut options = Some(options);
        while let Some(wanted) = options.take() {
            let over = ended(&pods, &uid, &container, id.as_deref());
            let more = read_log(&log_file(&dir, number), wanted, over, &tx).await;
            if more.is_none() || previous {
                return;
            }
            let next = tokio::select! {
                next = next_run(&pods, &uid, &container, number) => next,
                () = tx.closed() => None,
            };
            if let Some(next) = next {
                (number, id) = next;
                options = more;
            }
        }
    });
    Ok(Body::from_stream(ReceiverStream::new(rx)))
}

/// The log of the run of that number.
fn log_file(dir: &Path, number: i32) -> PathBuf {
    dir.join(format!("{number}.log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(status: serde_json::Value) -> Pod {
        let status = serde_json::json!({"containerStatuses": [status]});
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "status": status})).unwrap()
    }

    #[test]
    fn the_run_is_chosen_by_the_status() {
        let base = |state, last, count: i32| {
            serde_json::json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": count,
                "containerID": "x", "state": state, "lastState": last})
        };
        let ended = serde_json::json!({"terminated": {"exitCode": 1}});
        let running = serde_json::json!({"running": {}});
        let waiting = serde_json::json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let none = serde_json::json!({});
        let of = |pod: &Pod, previous| run(pod, "c", previous).map(|r| r.0).map_err(|e| e.0.as_u16());
        let fresh = pod(base(running.clone(), none.clone(), 0));
        assert_eq!((of(&fresh, false), of(&fresh, true)), (Ok(0), Err(400)));
        let again = pod(base(running, ended.clone(), 3));
        assert_eq!((of(&again, false), of(&again, true)), (Ok(3), Ok(2)));
        let crashed = pod(base(waiting.clone(), ended, 3));
        assert_eq!((of(&crashed, false), of(&crashed, true)), (Ok(3), Ok(3)));
        assert_eq!(of(&pod(base(waiting, none, 0)), false), Err(400));
        assert_eq!(run(&fresh, "d", false).unwrap_err().0, StatusCode::NOT_FOUND);
    }

    #[test]
    fn queries_are_checked() {
        let of = |key: &str, value: &str| wanted(&HashMap::from([(key.to_owned(), value.to_owned())]));
        assert!(of("follow", "true").unwrap().options.follow);
        assert_eq!(of("tailLines", "3").unwrap().options.tail, Some(3));
        for (key, value) in [("tailLines", "-1"), ("limitBytes", "0"), ("sinceTime", "x"), ("stream", "x")] {
            assert_eq!(of(key, value).err().unwrap().0, StatusCode::UNPROCESSABLE_ENTITY, "{key}");
        }
    }
}
