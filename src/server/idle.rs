//! Connections that say nothing for a long time are closed (the kubelet's `streamingConnectionIdleTimeout`).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::visit::Visit;

/// A connection whose reads and writes fail once no byte went either way for a while. Its place is its own as long as it lives,
/// also when it has become something else than HTTP.
pub struct IdleTimeout<S> {
    stream: S,
    visit: Arc<Visit>,
    limit: Duration,
    last: Instant,
    timer: Pin<Box<Sleep>>,
}

impl<S> IdleTimeout<S> {
    /// Of a stream that may be silent for `limit`; zero: for ever.
    pub fn new(stream: S, limit: Duration, visit: Arc<Visit>) -> Self {
        Self { stream, visit, limit, last: Instant::now(), timer: Box::pin(sleep(limit)) }
    }

    /// Fails when the time is up. The timer is set again only when it ends: bytes cost no more than reading the clock.
    fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if self.limit.is_zero() {
            return Poll::Pending;
        }
        loop {
            ready!(self.timer.as_mut().poll(context));
            let end = self.last + self.limit;
            if end <= Instant::now() {
                let message = format!("nothing was sent either way for {} s", self.limit.as_secs());
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            self.timer.as_mut().reset(end);
        }
    }

    /// What a read or write gives, which waits no longer than it may.
    fn seen<T>(&mut self, result: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if result.is_pending() {
            return self.poll_idle(context).map(Err);
        }
        self.last = Instant::now();
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for IdleTimeout<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        ready!(self.seen(read, context))?;
        Poll::Ready(self.visit.received(into.filled().len() - before))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for IdleTimeout<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, data);
        self.seen(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, data);
        self.seen(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::server::admission::Admission;

    fn visit() -> Arc<Visit> {
        Visit::new(Admission::default().enter([127, 0, 0, 1].into()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_ends_and_a_busy_one_does_not() {
        let (near, mut far) = duplex(64);
        let mut near = IdleTimeout::new(near, Duration::from_secs(10), visit());
        let start = Instant::now();
        let writing = tokio::spawn(async move {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(6)).await;
                far.write_all(b"x").await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        let mut seen = Vec::new();
        let error = near.read_to_end(&mut seen).await.unwrap_err();
        assert_eq!((seen.len(), error.kind()), (5, io::ErrorKind::TimedOut));
        assert_eq!(start.elapsed().as_secs(), 40);
        writing.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn output_alone_keeps_a_connection() {
        let (near, mut far) = duplex(64);
        let (mut reader, mut writer) = tokio::io::split(IdleTimeout::new(near, Duration::from_secs(10), visit()));
        let reading = tokio::spawn(async move { reader.read_u8().await });
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(6)).await;
            writer.write_all(b"x").await.unwrap();
            far.read_u8().await.unwrap();
        }
        assert!(!reading.is_finished());
        assert_eq!(reading.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_silent() {
        let (near, _far) = duplex(64);
        let mut near = IdleTimeout::new(near, Duration::from_secs(10), visit());
        let error = near.write_all(&[0; 65]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
