//! One layer from a registry: downloaded, checked, decompressed and unpacked at once, resumed where the transfer breaks.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::info;

use super::client;
use super::manifest::Descriptor;
use super::pieces::{Piece, Pieces};
use super::registry::Registry;
use super::sink::Sink;

/// Pieces of a download that may wait for the unpacker (a piece is at most a few hundred KiB).
const PIECES: usize = 4;
/// Breaks in a row without `PROGRESS` that end a download.
const BREAKS: u32 = 5;
/// Bytes after which a download has come on.
const PROGRESS: u64 = 1 << 20;
/// A transfer that brings less than `LEAST` bytes in as long as this, waited for the registry alone, is given up.
const PATIENCE: Duration = Duration::from_mins(5);
const LEAST: u64 = 256 << 10;
/// Longest pause after a break, in milliseconds.
const PAUSE: u64 = 8000;

/// Bytes received of a layer.
pub type Meter = AtomicU64;

/// Whether a transfer comes on.
#[derive(Debug, Default)]
struct Pace {
    /// There was an answer.
    begun: bool,
    /// Bytes since it last had come on.
    bytes: u64,
    /// How long the registry was waited for since then.
    waited: Duration,
}

impl Pace {
    /// Notes how long an answer was waited for. The first may take its time: a cache fetches the layer before it.
    fn answered(&mut self, waited: Duration) -> Result<(), String> {
        if std::mem::replace(&mut self.begun, true) { self.note(0, waited) } else { Ok(()) }
    }

    /// Notes what came, and how long that was waited for; an error when it is too slow.
    fn note(&mut self, bytes: usize, waited: Duration) -> Result<(), String> {
        self.bytes += bytes as u64;
        self.waited += waited;
        if self.bytes >= LEAST {
            (self.bytes, self.waited) = (0, Duration::ZERO);
        }
        if self.waited < PATIENCE {
            return Ok(());
        }
        let (came, seconds) = (self.bytes, self.waited.as_secs());
        Err(format!("the registry is too slow: {came} bytes of a layer within {seconds} s, given up"))
    }
}

/// Puts a layer into the store, and its blob where those are kept.
pub async fn fetch(
    sink: Sink,
    registry: &Registry,
    layer: Descriptor,
    diff_id: String,
    meter: &Meter,
) -> Result<(), String> {
    sink.fits(&layer)?;
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
    let (mut got, mut mark, mut breaks, mut pace) = (0, 0, 0, Pace::default());
    loop {
        let error = match part(registry, digest, size, &mut got, &mut pace, tx, meter).await {
            Ok(()) => return Ok(()),
            Err(Stop::For(error)) => return Err(error),
            // it broke behind the last byte: whether they are the right ones is seen by their digest
            Err(Stop::Now(_)) if size > 0 && got == size => return Ok(()),
            Err(Stop::Now(error)) => error,
        };
        breaks = if got >= mark + PROGRESS { 1 } else { breaks + 1 };
        mark = got;
        if breaks > BREAKS {
            return Err(error);
        }
        info!(layer = digest, bytes = got, error, "download broke: going on");
        tokio::time::sleep(Duration::from_millis((250 << breaks).min(PAUSE))).await;
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
    pace: &mut Pace,
    tx: &mpsc::Sender<Piece>,
    meter: &Meter,
) -> Result<(), Stop> {
    let began = Instant::now();
    let found = registry.blob(digest, *got).await;
    pace.answered(began.elapsed()).map_err(Stop::For)?;
    let (mut response, start) = match found {
        Ok(found) => found,
        // the first request failed as a whole: no break
        Err(error) if *got == 0 => return Err(Stop::For(error)),
        Err(error) => return Err(Stop::Now(error)),
    };
    // what an answer from the beginning says once more
    let mut again = *got - start;
    loop {
        let began = Instant::now();
        let mut piece = match client::piece(&mut response).await {
            Ok(Some(piece)) => piece,
            Ok(None) if *got < size => return Err(Stop::Now(format!("{got} of {size} bytes arrived"))),
            Ok(None) => return Ok(()),
            Err(error) => return Err(Stop::Now(error)),
        };
        pace.note(piece.len(), began.elapsed()).map_err(Stop::For)?;
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::image::endpoints::{Endpoint, Tls};

    #[test]
    fn a_trickle_is_given_up_and_a_slow_line_is_not() {
        let after = |bytes: usize, each: Duration| {
            let mut pace = Pace::default();
            (1..1000).find(|_| pace.note(bytes, each).is_err()).map(|n| each * n)
        };
        let trickle = after(1, Duration::from_secs(29)).unwrap();
        assert!(trickle >= PATIENCE && trickle < PATIENCE + Duration::from_secs(30), "{trickle:?}");
        // 2 KiB a second, and what comes after a long pause
        assert_eq!(after(16 << 10, Duration::from_secs(8)), None);
        assert_eq!(after(1 << 20, Duration::from_secs(290)), None);
    }

    /// A registry whose answers to a request and all after it have these heads, after that time each, and then end.
    async fn registry(first: &'static str, then: &'static str, bytes: usize, after: Duration) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/v2", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut head = first;
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let _ = stream.read(&mut [0; 4096]).await;
                    tokio::time::sleep(after).await;
                    let _ = stream.write_all(head.as_bytes()).await;
                    let _ = stream.write_all(&vec![0; bytes]).await;
                });
                head = then;
            }
        });
        let (repository, stands_for, tls, logins) = ("it".to_owned(), None, Tls::default(), Vec::new());
        Registry::new(vec![Endpoint { base, repository, stands_for, tls, logins }])
    }

    const SLOW: Duration = Duration::from_secs(299);

    #[tokio::test(start_paused = true)]
    async fn only_the_first_answer_of_a_layer_may_be_late() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\n";
        let late = registry(whole, whole, 8, SLOW).await;
        assert!(late.blob("sha256:1", 0).await.is_ok(), "a cache fetches it first");
        let began = Instant::now();
        let error = late.blob("sha256:1", 4).await.unwrap_err();
        assert!(error.contains("no answer within 30 s") && began.elapsed() < SLOW, "{error}");
        assert!(late.manifest("1").await.is_err());
        let mut pace = Pace::default();
        assert!(pace.answered(SLOW).is_ok() && pace.answered(SLOW / 2).is_ok());
        assert!(pace.note(1, Duration::ZERO).is_ok() && pace.answered(SLOW).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_says_so_late_is_not_busy() {
        let busy = "HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\n";
        let error = registry(busy, whole, 0, SLOW).await.blob("sha256:1", 0).await.unwrap_err();
        assert!(error.contains("503"), "{error}");
        let minute = "HTTP/1.1 429 Busy\r\nRetry-After: 60\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        assert!(registry(minute, whole, 8, Duration::ZERO).await.blob("sha256:1", 0).await.is_ok());
    }
}
