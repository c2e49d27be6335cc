//! Images for the commands of this machine: list, pull with progress, remove. Only on the agent's own socket, so that
//! the agent is the store's one writer.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::image::{Credential, Image, ImageError, ImageStore, registry_of};

/// How often a pull says how far it is.
const TICK: Duration = Duration::from_millis(200);

/// Which image is meant, by reference or id.
#[derive(Deserialize)]
struct Named {
    image: String,
}

/// What is to be pulled.
#[derive(Serialize, Deserialize)]
pub struct PullRequest {
    /// Reference.
    pub image: String,
    /// `name:password` at its registry, beside the node's own logins.
    pub creds: Option<String>,
}

/// The routes.
pub fn routes(images: ImageStore) -> Router {
    Router::new().route("/images", get(list).delete(remove)).route("/images/pull", post(pull)).with_state(images)
}

/// As the CRI's `Image` is written in JSON.
fn written(image: &Image) -> Value {
    json!({"id": image.id, "repoTags": image.repo_tags, "repoDigests": image.repo_digests,
        "size": image.size.to_string(), "username": image.config.user, "pinned": false})
}

fn refused(error: &ImageError) -> (StatusCode, String) {
    let status = match error {
        ImageError::NotFound(_) => StatusCode::NOT_FOUND,
        ImageError::InUse(_) => StatusCode::CONFLICT,
        ImageError::InvalidName { .. } => StatusCode::BAD_REQUEST,
        ImageError::Pull { .. } | ImageError::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, error.to_string())
}

async fn list(State(images): State<ImageStore>) -> Result<Json<Value>, (StatusCode, String)> {
    let list = images.list().await.map_err(|e| refused(&e))?;
    Ok(Json(json!({"images": list.iter().map(written).collect::<Vec<_>>()})))
}

async fn remove(State(images): State<ImageStore>, Query(named): Query<Named>) -> Result<(), (StatusCode, String)> {
    images.remove(&named.image).await.map(drop).map_err(|e| refused(&e))
}

/// Answers with lines of JSON: `{"layers": [...]}` while it goes on, then `{"image": ...}` or `{"error": ...}`. Who
/// hangs up ends the pull, unless a pod waits for it too.
async fn pull(State(images): State<ImageStore>, Json(request): Json<PullRequest>) -> Body {
    let (tx, rx) = mpsc::channel::<Result<Bytes, std::convert::Infallible>>(1);
    tokio::spawn(async move {
        let login = request.creds.as_ref().map(|creds| {
            let (username, password) = creds.split_once(':').unwrap_or((creds, ""));
            Credential {
                registry: registry_of(&request.image),
                username: username.to_owned(),
                password: password.to_owned(),
                identity_token: None,
            }
        });
        let logins: Vec<Credential> = login.into_iter().collect();
        let work = images.pull(&request.image, &logins);
        tokio::pin!(work);
        let line = |value: Value| Ok(Bytes::from(format!("{value}\n")));
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                result = &mut work => {
                    let end = match result {
                        Ok(image) => json!({"image": written(&image)}),
                        Err(error) => json!({"error": error.to_string()}),
                    };
                    // a client that is gone no longer cares
                    let _ = tx.send(line(end)).await;
                    return;
                }
                () = tx.closed() => return,
                _ = tick.tick() => {
                    // one that is slow to read misses some
                    let _ = tx.try_send(line(json!({"layers": images.progress(&request.image)})));
                }
            }
        }
    });
    Body::from_stream(ReceiverStream::new(rx))
}
