//! What only a person on the machine may order: `/drain`, `/stop/{namespace}/{pod}`, `/rm/{namespace}/{pod}`.

use std::collections::HashMap;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::routing::post;
use http::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, oneshot};

use super::api::Kubelet;
use super::commands::{find_pod, statuses};
use super::streaming::upgrade::Refused;
use crate::pod::PodExt;
use crate::pod::order::Order;
use crate::pod::times::seconds;

/// What the routes need.
#[derive(Clone)]
pub struct Orders {
    /// To find pods.
    pub kubelet: Kubelet,
    /// Who carries orders out.
    pub manager: mpsc::Sender<Order>,
}

type Words = HashMap<String, String>;

/// The routes.
pub fn routes(orders: Orders) -> Router {
    Router::new()
        .route("/drain", post(drain))
        .route("/stop/{namespace}/{pod}", post(stop))
        .route("/rm/{namespace}/{pod}", post(remove))
        .with_state(orders)
}

impl Orders {
    async fn give(&self, order: Order) -> Result<(), Refused> {
        let ending = |_| (StatusCode::SERVICE_UNAVAILABLE, "the agent is ending: ask the next one".to_owned());
        self.manager.send(order).await.map_err(ending)
    }
}

fn grace(query: &Words) -> Result<Option<Duration>, Refused> {
    let Some(written) = query.get("gracePeriod") else { return Ok(None) };
    let parsed = written.parse::<u64>();
    let parsed = parsed.map_err(|_| (StatusCode::BAD_REQUEST, format!("gracePeriod {written:?}: not seconds")))?;
    Ok(Some(seconds(i64::try_from(parsed).unwrap_or(i64::MAX))))
}

/// Name and id of each container that runs.
fn running(pod: &Pod) -> impl Iterator<Item = (&str, &str)> {
    let runs = statuses(pod).filter(|s| s.state.as_ref().is_some_and(|s| s.running.is_some()));
    runs.filter_map(|s| Some((s.name.as_str(), s.container_id.as_deref()?.strip_prefix("pikelet://")?)))
}

async fn drain(State(orders): State<Orders>, Query(query): Query<Words>) -> Result<(), Refused> {
    let (done, gone) = oneshot::channel();
    let for_restart = query.get("forRestart").is_some_and(|asked| asked == "true");
    orders.give(Order::Drain { for_restart, done }).await?;
    gone.await.map_err(|_| (StatusCode::INTERNAL_SERVER_ERROR, "the agent ended before every pod had".to_owned()))
}

/// Answers when the runs there were have ended.
async fn stop(
    State(orders): State<Orders>,
    Path(names): Path<Words>,
    Query(query): Query<Words>,
) -> Result<(), Refused> {
    let pod = find_pod(&orders.kubelet, &names)?;
    let (grace, wanted) = (grace(&query)?, query.get("container"));
    let ids = running(&pod).filter(|(name, _)| wanted.is_none_or(|w| w == name)).map(|(_, id)| id.to_owned());
    let ids: Vec<String> = ids.collect();
    if ids.is_empty() {
        let what = wanted
            .map_or_else(|| "no container of it runs".to_owned(), |name| format!("container {name} does not run"));
        return Err((
            StatusCode::CONFLICT,
            format!("pod {}/{}: {what}: there is nothing to stop", pod.ns(), pod.name()),
        ));
    }
    let mut changes = orders.kubelet.pods.subscribe();
    let uid = pod.uid().to_owned();
    orders.give(Order::Stop { uid: uid.clone(), containers: ids.clone(), grace }).await?;
    loop {
        changes.borrow_and_update();
        let now = orders.kubelet.pods.by_uid(&uid);
        let left = now.is_some_and(|p| running(&p).any(|(_, id)| ids.iter().any(|i| i == id)));
        if !left || changes.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Answers when the sandbox there was is gone.
async fn remove(
    State(orders): State<Orders>,
    Path(names): Path<Words>,
    Query(query): Query<Words>,
) -> Result<(), Refused> {
    let pod = find_pod(&orders.kubelet, &names)?;
    let grace = grace(&query)?;
    let refused = |why: &str| (StatusCode::CONFLICT, format!("pod {}/{}: {why}", pod.ns(), pod.name()));
    if orders.kubelet.runtime.sandbox_of(pod.uid()).is_none() {
        return Err(refused(
            "it has no sandbox: it has ended, or is not made yet; `kubectl delete pod`, or taking its manifest away, \
             removes it from this node",
        ));
    }
    let (done, gone) = oneshot::channel();
    orders.give(Order::Renew { uid: pod.uid().to_owned(), grace, done }).await?;
    match gone.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(errors)) => Err((StatusCode::INTERNAL_SERVER_ERROR, errors)),
        Err(_) => Err(refused("it is being deleted, or somebody else asked for the same after you")),
    }
}
