//! Images for the commands of this machine: list, pull with progress, remove, import, export. Only on the agent's own socket, so that
//! the agent is the store's one writer.

use std::io::{BufWriter, Write};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Query, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tracing::warn;

use crate::image::{Credential, Image, ImageError, ImageStore, Imported, Origin, Piece, registry_of};

/// How often a pull says how far it is.
const TICK: Duration = Duration::from_millis(200);

/// Bytes of an archive sent at a time, and ...
const PIECE: usize = 128 << 10;
/// ... how many may wait for a reader.
const PIECES: usize = 4;
/// Header of an exported archive: a list of [`crate::image::Exported`], in JSON.
pub const EXPORTED: &str = "pikelet-exported";

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
    let archives = Router::new().route("/images/import", post(import)).route("/images/export", get(export));
    // an archive is as large as it is: it is read as a stream
    let archives = archives.layer(DefaultBodyLimit::disable());
    Router::new()
        .route("/images", get(list).delete(remove))
        .route("/images/pull", post(pull))
        .merge(archives)
        .with_state(images)
}

/// As the CRI's `Image` is written in JSON.
fn written(image: &Image) -> Value {
    json!({"id": image.id, "repoTags": image.repo_tags, "repoDigests": image.repo_digests,
        "size": image.size.to_string(), "username": image.config.user, "pinned": image.pinned})
}

fn refused(error: &ImageError) -> (StatusCode, String) {
    let status = match error {
        ImageError::NotFound(_) => StatusCode::NOT_FOUND,
        ImageError::InUse(_) => StatusCode::CONFLICT,
        ImageError::InvalidName { .. } | ImageError::Archive { .. } => StatusCode::BAD_REQUEST,
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
                origin: Origin::Hand,
                ..Credential::default()
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

/// What an archive's images are to be called.
#[derive(Deserialize)]
struct ImportQuery {
    name: Option<String>,
}

/// Takes an archive as the body; answers with a list of [`Imported`].
async fn import(
    State(images): State<ImageStore>,
    Query(query): Query<ImportQuery>,
    body: Body,
) -> Result<Json<Vec<Imported>>, (StatusCode, String)> {
    let (tx, rx) = mpsc::channel::<Piece>(PIECES);
    // goes on to its end when the client hangs up: what is half there is removed then
    let work = tokio::spawn(async move { images.import(rx, query.name).await });
    let mut body = body.into_data_stream();
    while let Some(piece) = body.next().await {
        // after an error the rest is read too: the answer waits for the end of the question
        let _ = tx.send(Some(piece.map_err(std::io::Error::other))).await;
    }
    let _ = tx.send(None).await;
    drop(tx);
    let done = work.await.map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    done.map(Json).map_err(|e| refused(&e))
}

/// Answers with an archive of the images named by `image=` (once or more); what it has is in the header [`EXPORTED`].
async fn export(State(images): State<ImageStore>, RawQuery(query): RawQuery) -> Result<Response, (StatusCode, String)> {
    let query = query.unwrap_or_default();
    let pairs = form_urlencoded::parse(query.as_bytes());
    let references: Vec<String> = pairs.filter(|(k, _)| k == "image").map(|(_, v)| v.into_owned()).collect();
    let export = images.export(&references).await.map_err(|e| refused(&e))?;
    let internal = |e: &dyn std::fmt::Display| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string());
    let exported = serde_json::to_string(&export.images).map_err(|e| internal(&e))?;
    let (tx, rx) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || {
        let mut out = BufWriter::with_capacity(PIECE, Sent(tx.clone()));
        // dropped without its rest: that would be taken for the end
        if let Err(error) = export.write(&mut out) {
            warn!(%error, "export broke off");
            let _ = tx.blocking_send(Err(error));
            let _ = out.into_parts();
        }
    });
    let body = Body::from_stream(ReceiverStream::new(rx));
    Response::builder().header(EXPORTED, exported).body(body).map_err(|e| internal(&e))
}

/// A body as something to write to.
struct Sent(mpsc::Sender<std::io::Result<Bytes>>);

impl Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
