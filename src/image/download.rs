//! One layer from a registry: downloaded, checked, decompressed and unpacked at once, resumed where the transfer breaks.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;
use tracing::info;

use super::manifest::Descriptor;
use super::pieces::{Piece, Pieces};
use super::registry::Registry;
use super::sink::Sink;
use crate::errors::causes;

/// Pieces of a download that may wait for the unpacker (a piece is at most a few hundred KiB).
const PIECES: usize = 4;
/// Breaks in a row without `PROGRESS` that end a download.
const BREAKS: u32 = 5;
/// Bytes after which a download has come on.
const PROGRESS: u64 = 1 << 20;
/// Longest pause after a break, in milliseconds.
const PAUSE: u64 = 8000;

/// Bytes received of a layer.
pub type Meter = AtomicU64;

/// Puts a layer into the store, and its blob where those are kept.
pub async fn fetch(
    sink: Sink,
    registry: &Registry,
    layer: Descriptor,
    diff_id: String,
    meter: &Meter,
) -> Result<(), String> {
    let (tx, rx) = mpsc::channel(PIECES);
    let (digest, size) = (layer.digest.clone(), layer.size);
    let unpacking = tokio::task::spawn_blocking(move || sink.take(Pieces::new(rx), &layer, &diff_id));
    let sent = send(registry, &digest, size, &tx, meter).await;
    if let Err(error) = &sent {
        // an unpacker that has given up says why itself
        let _ = tx.send(Some(Err(io::Error::other(error.clone())))).await;
    } else {
        let _ = tx.send(None).await;
    }
    drop(tx);
    unpacking.await.map_err(|e| format!("unpacking layer {digest}: {e}"))?
}

/// Sends the blob's bytes in order; after a break it goes on where it was.
async fn send(
    registry: &Registry,
    digest: &str,
    size: u64,
    tx: &mpsc::Sender<Piece>,
    meter: &Meter,
) -> Result<(), String> {
    let (mut got, mut mark, mut breaks) = (0, 0, 0);
    loop {
        let error = match part(registry, digest, size, &mut got, tx, meter).await {
            Ok(()) => return Ok(()),
            Err(Stop::For(error)) => return Err(error),
            Err(Stop::Now(error)) => error,
        };
        breaks = if got >= mark + PROGRESS { 1 } else { breaks + 1 };
        mark = got;
        if breaks > BREAKS {
            return Err(error);
        }
        info!(layer = digest, bytes = got, error, "download broke: going on");
        tokio::time::sleep(std::time::Duration::from_millis((250 << breaks).min(PAUSE))).await;
    }
}

/// Why a transfer ended early.
enum Stop {
    /// Another try may help.
    Now(String),
    /// It would not.
    For(String),
}

async fn part(
    registry: &Registry,
    digest: &str,
    size: u64,
    got: &mut u64,
    tx: &mpsc::Sender<Piece>,
    meter: &Meter,
) -> Result<(), Stop> {
    let (mut response, start) = match registry.blob(digest, *got).await {
        Ok(found) => found,
        // the first request failed as a whole: no break
        Err(error) if *got == 0 => return Err(Stop::For(error)),
        Err(error) => return Err(Stop::Now(error)),
    };
    // what an answer from the beginning says once more
    let mut again = *got - start;
    loop {
        let mut piece = match response.chunk().await {
            Ok(Some(piece)) => piece,
            Ok(None) if *got < size => return Err(Stop::Now(format!("{got} of {size} bytes arrived"))),
            Ok(None) => return Ok(()),
            Err(error) => return Err(Stop::Now(causes(&error))),
        };
        let skip = again.min(piece.len() as u64);
        again -= skip;
        let piece = piece.split_off(skip as usize);
        *got += piece.len() as u64;
        meter.store(*got, Ordering::Relaxed);
        if size > 0 && *got > size {
            return Err(Stop::For(format!("{digest} is larger than the {size} bytes its manifest says")));
        }
        if !piece.is_empty() && tx.send(Some(Ok(piece))).await.is_err() {
            return Ok(());
        }
    }
}
