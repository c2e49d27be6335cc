//! Between a client's channels and a process' streams: exec and attach.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::Sender;
use tokio_util::sync::CancellationToken;

use super::upgrade::Channels;
use super::{Inlet, Outlet, PIECE};
use crate::runtime::{Reader, Streams, Terminal};

/// How long output may be silent after the process has ended: others may still hold its pipes.
const SILENCE: Duration = Duration::from_millis(500);

/// How a command ended, or why it did not begin.
pub enum Outcome {
    /// Its exit code.
    Code(i32),
    /// It could not be started for a reason of its own: exit code (126 or 127) and message.
    NotStarted(i32, String),
    /// Something else went wrong.
    Failed(String),
}

impl Outcome {
    /// What a failed start means: a command that is at fault has a code as in a shell (126, 127).
    pub fn of_error(message: &str) -> Self {
        match message.strip_prefix("exec: ") {
            Some(_) if message.contains("not found") || message.contains("no such file") => {
                Self::NotStarted(127, message.to_owned())
            }
            Some(_) => Self::NotStarted(126, message.to_owned()),
            None => Self::Failed(message.to_owned()),
        }
    }

    /// The `Status` object of the remote command protocol, version 4.
    fn status(&self) -> Value {
        match self {
            Self::Code(0) => json!({"metadata": {}, "status": "Success"}),
            Self::Code(code) | Self::NotStarted(code, _) => json!({
                "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed(message) => json!({
                "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
                "message": format!("Internal error occurred: error executing command in container: {message}"),
                "details": {"causes": [{"message": message}]},
            }),
        }
    }

    /// The same as text, for earlier versions; nothing when all is well.
    fn text(&self) -> Option<String> {
        match self {
            Self::Code(0) => None,
            Self::Code(code) | Self::NotStarted(code, _) => {
                Some(format!("command terminated with non-zero exit code: exit status {code}"))
            }
            Self::Failed(message) => Some(format!("error executing command in container: {message}")),
        }
    }
}

/// Carries bytes both ways until the process ends or the client goes. A client that goes takes the process' terminal
/// and pipes away, and nothing more.
pub async fn carry(streams: Streams, channels: Channels, attached: bool) {
    let Streams { stdin, stdout, stderr, terminal, mut ending } = streams;
    let Channels { stdin: from, stdout: out, stderr: err, error, status, resize, connection } = channels;
    let gone = connection.gone.clone();
    let ended = CancellationToken::new();
    let once = attached && terminal.is_none();
    let input = tokio::spawn(feed(from, stdin, terminal.is_some()));
    let sizes = tokio::spawn(resizes(resize, terminal));
    let (input_stop, sizes_stop) = (input.abort_handle(), sizes.abort_handle());
    let work = async {
        let outputs = async { tokio::join!(pump(stdout, out, &ended), pump(stderr, err, &ended)) };
        let end = async {
            let mut input = input;
            let code = tokio::select! {
                code = ending.wait() => return finish(code, &ended),
                _ = &mut input => None::<()>,
            };
            debug_assert!(code.is_none());
            if once && let Err(error) = ending.stdin_closed().await {
                tracing::debug!(error, "end of an attached standard input not told");
            }
            finish(ending.wait().await, &ended)
        };
        let (_, outcome) = tokio::join!(outputs, end);
        report(error, &outcome, status).await;
    };
    tokio::select! {
        () = work => {}
        () = gone.cancelled() => {}
    }
    input_stop.abort();
    sizes_stop.abort();
    connection.finish().await;
}

fn finish(code: Result<i32, String>, ended: &CancellationToken) -> Outcome {
    ended.cancel();
    code.map_or_else(Outcome::Failed, Outcome::Code)
}

/// Tells a client why there is no process.
pub async fn refuse(channels: Channels, outcome: Outcome) {
    if let (Outcome::NotStarted(_, message), Some(stderr)) = (&outcome, &channels.stderr) {
        // a client that is gone needs not know
        let _ = stderr.send(Bytes::from(format!("{message}\n"))).await;
    }
    report(channels.error, &outcome, channels.status).await;
    drop((channels.stdout, channels.stderr));
    channels.connection.finish().await;
}

async fn report(error: Outlet, outcome: &Outcome, status: bool) {
    let text = if status { Some(outcome.status().to_string()) } else { outcome.text() };
    if let Some(text) = text {
        // a client that is gone needs not know
        let _ = error.send(Bytes::from(text)).await;
    }
    error.end().await;
}

async fn feed(from: Option<Inlet>, to: Option<Sender>, tty: bool) {
    let (Some(mut from), Some(mut to)) = (from, to) else { return std::future::pending().await };
    while let Some(data) = from.recv().await {
        if to.write_all(&data).await.is_err() {
            // the process has closed its standard input: the rest is read and dropped
            while from.recv().await.is_some() {}
            return;
        }
    }
    if tty {
        // dropping this end would not end a terminal's input: its user types ^D
        std::future::pending::<()>().await;
    }
}

/// Reads what there is of a process' output; nothing once it is over.
async fn read(from: &mut Reader, into: &mut Vec<u8>, ended: &CancellationToken) -> bool {
    let read = tokio::select! {
        read = from.read(into) => return matches!(read, Ok(1..)),
        () = ended.cancelled() => tokio::time::timeout(SILENCE, from.read(into)).await,
    };
    matches!(read, Ok(Ok(1..)))
}

async fn pump(from: Option<Reader>, to: Option<Outlet>, ended: &CancellationToken) {
    let (Some(mut from), Some(to)) = (from, to) else { return };
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        if !read(&mut from, &mut piece, ended).await {
            break;
        }
        if to.send(Bytes::from(piece)).await.is_err() {
            return;
        }
    }
    to.end().await;
}

/// All output of a process, of which `most` bytes are kept: the rest is read as well, as the process waits for that.
pub async fn collect(from: Option<Reader>, most: usize, ended: &CancellationToken) -> Vec<u8> {
    let mut output = Vec::new();
    let Some(mut from) = from else { return output };
    let mut piece = Vec::with_capacity(PIECE);
    while read(&mut from, &mut piece, ended).await {
        output.extend_from_slice(&piece[..piece.len().min(most - output.len())]);
        piece.clear();
    }
    output
}

/// A size as the clients send it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

async fn resizes(from: Option<Inlet>, terminal: Option<Terminal>) {
    let (Some(mut from), Some(terminal)) = (from, terminal) else { return };
    let mut text = Vec::new();
    while let Some(data) = from.recv().await {
        text.extend_from_slice(&data);
        let mut sizes = serde_json::Deserializer::from_slice(&text).into_iter::<Size>();
        let mut last = None;
        let mut used = 0;
        while let Some(Ok(size)) = sizes.next() {
            last = Some(size);
            used = sizes.byte_offset();
        }
        text.drain(..used);
        if let Some(size) = last
            && let Err(error) = terminal.resize(size.width, size.height)
        {
            tracing::debug!(%error, "terminal not resized");
        }
        // what is no size after so many bytes will never be one
        if text.len() > 1024 {
            text.clear();
        }
    }
}
