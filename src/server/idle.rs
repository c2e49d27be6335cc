//! Connections that say nothing for a long time are closed (the kubelet's `streamingConnectionIdleTimeout`).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A connection whose reads fail once no byte went either way for a while.
pub struct IdleTimeout<S> {
    stream: S,
    limit: Duration,
    last: Instant,
    timer: Pin<Box<Sleep>>,
}

impl<S> IdleTimeout<S> {
    /// Of a stream that may be silent for `limit`; zero: for ever.
    pub fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, last: Instant::now(), timer: Box::pin(sleep(limit)) }
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

    fn seen<T>(&mut self, result: Poll<T>) -> Poll<T> {
        if result.is_ready() {
            self.last = Instant::now();
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for IdleTimeout<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        if read.is_pending() {
            return self.poll_idle(context).map(Err);
        }
        self.seen(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for IdleTimeout<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, data);
        self.seen(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, data);
        self.seen(written)
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

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_ends_and_a_busy_one_does_not() {
        let (near, mut far) = duplex(64);
        let mut near = IdleTimeout::new(near, Duration::from_secs(10));
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
        let (mut reader, mut writer) = tokio::io::split(IdleTimeout::new(near, Duration::from_secs(10)));
        let reading = tokio::spawn(async move { reader.read_u8().await });
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(6)).await;
            writer.write_all(b"x").await.unwrap();
            far.read_u8().await.unwrap();
        }
        assert!(!reading.is_finished());
        assert_eq!(reading.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
