//! `pikelet exec` and `pikelet attach`: kubectl's, without an API server.

use std::io::Write;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::tungstenite::Message;

use super::client::{self, Failure, PodArgs};
use super::terminal::Raw;

/// Bytes read from standard input at once.
const PIECE: usize = 32 << 10;

/// Arguments of `pikelet exec`.
#[derive(clap::Args)]
pub struct ExecArgs {
    #[command(flatten)]
    streams: StreamArgs,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Arguments of `pikelet attach`.
#[derive(clap::Args)]
pub struct AttachArgs {
    #[command(flatten)]
    streams: StreamArgs,
}

/// What both have.
#[derive(clap::Args)]
struct StreamArgs {
    #[command(flatten)]
    pod: PodArgs,
    /// Container [default: the pod's first]
    #[arg(short, long)]
    container: Option<String>,
    /// Pass standard input
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Standard input is a terminal
    #[arg(short, long)]
    tty: bool,
}

/// Runs a command; returns its exit code.
pub fn exec(args: &ExecArgs) -> Result<i32, Failure> {
    let command = args.command.iter().fold(String::new(), |query, word| {
        let word: String = form_urlencoded::byte_serialize(word.as_bytes()).collect();
        format!("{query}&command={word}")
    });
    client::block_on(carry(&args.streams, "exec", &command))
}

/// Attaches; returns the exit code of the container.
pub fn attach(args: &AttachArgs) -> Result<i32, Failure> {
    client::block_on(carry(&args.streams, "attach", ""))
}

fn resize() -> Option<Message> {
    let (columns, rows) = super::terminal::size()?;
    let mut message = vec![4];
    message.extend_from_slice(format!("{{\"Width\":{columns},\"Height\":{rows}}}").as_bytes());
    Some(Message::Binary(message.into()))
}

async fn carry(args: &StreamArgs, verb: &str, command: &str) -> Result<i32, Failure> {
    let pod = args.pod.find()?;
    let container = client::container(&pod, args.container.as_deref())?;
    let flag = |name: &str, on: bool| format!("&{name}={}", u8::from(on));
    let query = [flag("input", args.stdin), flag("output", true), flag("error", !args.tty), flag("tty", args.tty)];
    let path =
        format!("/{verb}/{}/{container}?{}{command}", client::path(&pod), query.concat().trim_start_matches('&'));
    let socket = client::websocket(&args.pod.state_dir, &path, "v5.channel.k8s.io").await?;
    let raw = if args.tty { Raw::enter() } else { None };
    let (mut sink, mut stream) = socket.split();
    let (with_stdin, tty) = (args.stdin, args.tty);
    let sending = tokio::spawn(async move {
        let mut resized = signal(SignalKind::window_change())?;
        if let Some(size) = resize().filter(|_| tty) {
            // the receiving side says what has happened
            let _ = sink.send(size).await;
        }
        let (mut stdin, mut open) = (tokio::io::stdin(), with_stdin);
        loop {
            let mut piece = vec![0; PIECE];
            let message = tokio::select! {
                read = stdin.read(&mut piece[1..]), if open => if let Ok(count @ 1..) = read {
                    piece.truncate(1 + count);
                    Message::Binary(piece.into())
                } else {
                    open = false;
                    Message::Binary(Bytes::from_static(&[255, 0]))
                },
                _ = resized.recv(), if tty => match resize() {
                    Some(size) => size,
                    None => continue,
                },
                else => std::future::pending().await,
            };
            if sink.send(message).await.is_err() {
                // the receiving side says what has happened
                return Ok::<(), std::io::Error>(());
            }
        }
    });
    let mut status = Vec::new();
    while let Some(message) = stream.next().await {
        let Message::Binary(data) = message? else { continue };
        let Some((channel, data)) = data.split_first() else { continue };
        match channel {
            1 => write(&mut std::io::stdout(), data)?,
            2 => write(&mut std::io::stderr(), data)?,
            3 => status.extend_from_slice(data),
            _ => {}
        }
        if *channel == 3 && !status.is_empty() {
            break;
        }
    }
    sending.abort();
    drop(raw);
    outcome(&status)
}

fn write(to: &mut impl Write, data: &[u8]) -> std::io::Result<()> {
    to.write_all(data)?;
    to.flush()
}

fn outcome(status: &[u8]) -> Result<i32, Failure> {
    let status: serde_json::Value =
        serde_json::from_slice(status).map_err(|_| "the agent ended before the command did")?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    if status["reason"] == "NonZeroExitCode" {
        let code = status["details"]["causes"][0]["message"].as_str().and_then(|c| c.parse().ok());
        return Ok(code.unwrap_or(1));
    }
    Err(status["message"].as_str().unwrap_or("the agent says nothing about the end of the command").into())
}
