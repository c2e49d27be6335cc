//! One connection to the kubelet API: its place, and how long it may wait for what. Strangers have seconds for their handshake
//! and first whole request; what was let in has a while between requests, and to take an answer that is there; one that comes
//! bit by bit has the limit of its connection's silence ([`super::idle`]).

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Body as _, Frame, SizeHint};
use rustls::pki_types::CertificateDer;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::admission::Place;
use super::answers::Turn;

/// From the connection to its first request: TLS and all headers.
pub const FIRST: Duration = Duration::from_secs(10);
/// From one answer to the next request (the kubelet's `IdleTimeout`); for one that was never let in, all of its time.
const BETWEEN: Duration = Duration::from_secs(90);
/// For an answer that is there whole to be taken; a second more for each `PACE` bytes, as lines may be slow.
const TAKEN: Duration = Duration::from_secs(90);
const PACE: u64 = 16 << 10;
/// Bytes of an answer that are handed over at a time: as many wait in the connection's buffers for each request of HTTP/2,
/// however small its window is.
const PIECE: usize = 4 << 10;
/// Bytes a stranger may send in all; its headers are kept in memory until they are whole.
const STRANGERS_BYTES: usize = 64 << 10;

/// A connection's state; shared by its requests and its stream.
pub struct Visit {
    /// Its place.
    pub place: Place,
    began: Instant,
    shown: OnceLock<Shown>,
    requests: Mutex<Requests>,
    changed: Notify,
    received: AtomicUsize,
}

/// What the client showed in the handshake.
struct Shown {
    certificates: Vec<CertificateDer<'static>>,
    /// The certificate was one of the client CA then.
    trusted: bool,
}

#[derive(Debug, Clone, Copy)]
struct Requests {
    any: bool,
    under_way: usize,
    last_end: Instant,
}

/// Until when a connection may stay as it is; `None`: as long as it is not silent.
fn deadline(let_in: bool, began: Instant, requests: Requests) -> Option<Instant> {
    match requests {
        Requests { any: false, .. } => Some(began + FIRST),
        _ if !let_in => Some(began + BETWEEN),
        Requests { under_way: 1.., .. } => None,
        Requests { last_end, .. } => Some(last_end + BETWEEN),
    }
}

impl Visit {
    /// Begins now.
    pub fn new(place: Place) -> Arc<Self> {
        let now = Instant::now();
        let requests = Requests { any: false, under_way: 0, last_end: now };
        Arc::new(Self {
            place,
            began: now,
            shown: OnceLock::new(),
            requests: Mutex::new(requests),
            changed: Notify::new(),
            received: AtomicUsize::new(0),
        })
    }

    /// Notes what the client showed in the handshake, and whether that is of the client CA.
    pub fn show(&self, certificates: Vec<CertificateDer<'static>>, trusted: bool) {
        // there is one handshake
        let _ = self.shown.set(Shown { certificates, trusted });
    }

    /// Certificates the client has shown, with proof of the first one's key; whoever they are of.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        self.shown.get().map_or(&[], |s| &s.certificates)
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has come in whole.
    pub fn request(self: &Arc<Self>) -> UnderWay {
        let mut requests = self.requests();
        requests.any = true;
        requests.under_way += 1;
        UnderWay(Some(self.clone()))
    }

    /// Counts what has arrived; an error when it is too much for a stranger.
    pub fn received(&self, bytes: usize) -> io::Result<()> {
        if self.place.is_let_in() || self.shown.get().is_none_or(|s| s.trusted) {
            return Ok(());
        }
        if self.received.fetch_add(bytes, Ordering::Relaxed) + bytes > STRANGERS_BYTES {
            return Err(io::Error::other(format!("more than {STRANGERS_BYTES} bytes of somebody who was not let in")));
        }
        Ok(())
    }

    /// Ends when the connection must; why.
    pub async fn overdue(&self) -> String {
        loop {
            let changed = self.changed.notified();
            let end = deadline(self.place.is_let_in(), self.began, *self.requests());
            match end {
                None => changed.await,
                Some(end) if end <= Instant::now() => return "no request in time".to_owned(),
                Some(end) => tokio::select! {
                    () = sleep_until(end) => {}
                    () = changed => {}
                },
            }
        }
    }
}

/// A request that is not answered yet.
pub struct UnderWay(Option<Arc<Visit>>);

impl UnderWay {
    /// Lasts until the answer is sent whole; for ever when the connection becomes something else. `turn`: that of the answer.
    pub fn carry(mut self, mut answer: Response, mut turn: Option<Turn>) -> Response {
        let busy = |message: &'static str| (http::StatusCode::SERVICE_UNAVAILABLE, message).into_response();
        if answer.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            if self.0.as_ref().is_none_or(|visit| visit.place.becomes_stream()) {
                self.0 = None;
                return answer;
            }
            answer = busy("too many streams (exec, attach, port-forward)");
        }
        let bytes = |answer: &Response| answer.body().size_hint().exact().filter(|bytes| *bytes > 0);
        if let (Some(turn), Some(bytes)) = (&mut turn, bytes(&answer))
            && !turn.weighs(usize::try_from(bytes).unwrap_or(usize::MAX))
        {
            answer = busy("too many bytes of answers wait for their clients: try again");
        }
        let limit = self.0.as_ref().zip(bytes(&answer)).map(|(visit, bytes)| {
            let leave = visit.place.leave.clone();
            AbortOnDropHandle::new(tokio::spawn(async move {
                tokio::time::sleep(TAKEN + Duration::from_secs(bytes / PACE)).await;
                leave.cancel();
            }))
        });
        let (parts, body) = answer.into_parts();
        let answer = Answer { body, rest: Bytes::new(), _under_way: self, _turn: turn, _limit: limit };
        Response::from_parts(parts, Body::new(answer))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(visit) = self.0.take() {
            let mut requests = visit.requests();
            requests.under_way -= 1;
            requests.last_end = Instant::now();
            drop(requests);
            visit.changed.notify_one();
        }
    }
}

struct Answer {
    body: Body,
    /// Of the body's last frame.
    rest: Bytes,
    _under_way: UnderWay,
    _turn: Option<Turn>,
    _limit: Option<AbortOnDropHandle<()>>,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let piece = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (of_body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(of_body.lower() + rest);
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::admission::Admission;

    #[tokio::test(start_paused = true)]
    async fn strangers_have_seconds_for_their_first_request() {
        let visit = Visit::new(Admission::default().enter([10, 0, 0, 1].into()));
        let began = Instant::now();
        visit.overdue().await;
        assert_eq!(began.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_not_let_in_leaves_whatever_is_asked() {
        let visit = Visit::new(Admission::default().enter([10, 0, 0, 1].into()));
        let began = Instant::now();
        // one that is never taken
        let _open = visit.request();
        visit.overdue().await;
        assert_eq!(began.elapsed().as_secs(), 90);
    }

    #[tokio::test(start_paused = true)]
    async fn between_requests_there_is_a_while_and_during_one_no_end() {
        let visit = Visit::new(Admission::default().enter([10, 0, 0, 1].into()));
        let began = Instant::now();
        let followed = visit.request();
        assert!(visit.place.let_in());
        let waiting = {
            let visit = visit.clone();
            tokio::spawn(async move { visit.overdue().await })
        };
        tokio::time::sleep(Duration::from_hours(3)).await;
        assert!(!waiting.is_finished());
        let pieces = futures::stream::pending::<Result<Bytes, axum::Error>>();
        let answer = followed.carry(Response::new(Body::from_stream(pieces)), None);
        tokio::time::sleep(Duration::from_hours(1)).await;
        assert!(!waiting.is_finished() && !visit.place.leave.is_cancelled(), "the answer is under way");
        drop(answer);
        waiting.await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_hours(4) + BETWEEN);
        // what has become a stream ends by its own rules
        let answer = http::Response::builder().status(101).body(Body::empty()).unwrap();
        drop(visit.request().carry(answer, None));
        let ended = tokio::time::timeout(Duration::from_hours(9), visit.overdue()).await;
        assert!(ended.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_there_is_taken_in_time_and_in_pieces() {
        let visit = Visit::new(Admission::default().enter([10, 0, 0, 1].into()));
        assert!(visit.place.let_in());
        let text: Vec<u8> = (0..10 * PIECE + 1).map(|n| n as u8).collect();
        let answer = |text: &[u8]| visit.request().carry(Response::new(Body::from(text.to_vec())), None);
        let mut taken = answer(&text).into_body();
        assert_eq!(taken.size_hint().exact(), Some(text.len() as u64));
        let mut got = Vec::new();
        while !taken.is_end_stream() {
            let piece = std::future::poll_fn(|cx| Pin::new(&mut taken).poll_frame(cx)).await.unwrap().unwrap();
            let piece = piece.into_data().unwrap();
            assert!(piece.len() <= PIECE);
            got.extend_from_slice(&piece);
            assert_eq!(taken.size_hint().exact(), Some((text.len() - got.len()) as u64));
        }
        drop(taken);
        assert!(got == text);
        tokio::time::sleep(TAKEN * 2).await;
        assert!(!visit.place.leave.is_cancelled());
        let (began, _stays) = (Instant::now(), answer(&text));
        tokio::time::timeout(TAKEN * 5, visit.place.leave.cancelled()).await.unwrap();
        assert_eq!(began.elapsed(), TAKEN + Duration::from_secs(text.len() as u64 / PACE));
    }

    #[test]
    fn a_stranger_sends_little() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _entered = runtime.enter();
        let visit = |trusted| {
            let visit = Visit::new(Admission::default().enter([10, 0, 0, 1].into()));
            visit.show(Vec::new(), trusted);
            visit
        };
        let stranger = visit(false);
        assert!(stranger.received(STRANGERS_BYTES).is_ok());
        assert!(stranger.received(1).is_err());
        stranger.place.let_in();
        assert!(stranger.received(STRANGERS_BYTES).is_ok());
        assert!(visit(true).received(STRANGERS_BYTES + 1).is_ok());
    }
}
