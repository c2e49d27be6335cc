//! How long watches wait before they try again: short enough that a node is back within seconds of its API server, and
//! said once, for a journal may be on an SD card.

use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use kube::runtime::watcher::{self, Event};
use tracing::{info, warn};

use super::client::explained;
use super::complaint::Complaint;
use crate::errors::causes;

const FIRST: Duration = Duration::from_millis(200);
const MAX: Duration = Duration::from_secs(2);

/// Delays that double from 0.2 s to 2 s, each shortened at random by up to a half so that nodes do not come all at once.
#[derive(Debug)]
pub struct Retry(Duration);

impl Default for Retry {
    /// Starts with the shortest delay.
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let delay = self.0;
        self.0 = (delay * 2).min(MAX);
        Some(delay.mul_f64(1.0 - rand::random::<f64>() / 2.0))
    }
}

/// A watch that waits after each failure, longer from one to the next. What is wrong is said once, and that it is over,
/// where the log has a name for `what` is watched.
///
/// Not kube's own backoff: that one begins anew at every [`Event::Init`], which comes before a list is even asked for.
pub fn patient<K: Send>(
    what: Option<&'static str>,
    watch: impl Stream<Item = watcher::Result<Event<K>>> + Send,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send {
    let state = (Box::pin(watch), None::<(Retry, Complaint)>, Duration::ZERO);
    stream::unfold(state, move |(mut watch, mut failing, delay)| async move {
        if delay > Duration::ZERO {
            tokio::time::sleep(delay).await;
        }
        let event = watch.next().await?;
        let mut delay = Duration::ZERO;
        match &event {
            Err(error) => {
                let (retry, complaint) = failing.get_or_insert_with(|| (Retry::default(), Complaint::default()));
                if let Some(what) = what {
                    let why = reason(error);
                    if complaint.is_due(&why) {
                        warn!(error = why, "watching {what}: trying again until it succeeds");
                    }
                }
                delay = retry.next().unwrap_or(MAX);
            }
            Ok(Event::Init) => {}
            Ok(_) => {
                if let (Some(_), Some(what)) = (failing.take(), what) {
                    info!("watching {what} again");
                }
            }
        }
        Some((event, (watch, failing, delay)))
    })
}

/// What is wrong with a watch.
pub(super) fn reason(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(e) | watcher::Error::WatchStartFailed(e) | watcher::Error::WatchFailed(e) => {
            explained(e)
        }
        other => causes(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_two_seconds() {
        let mut retry = Retry::default();
        assert!(retry.next().unwrap() <= FIRST);
        let last = retry.by_ref().nth(10).unwrap();
        assert!(last <= MAX && last >= MAX / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_fails_over_and_over_is_asked_for_ever_less_often() {
        let refused = || Err(watcher::Error::NoResourceVersion);
        let down = (0..20).flat_map(|_| [Ok(Event::<()>::Init), refused()]);
        let back = [Ok(Event::Init), Ok(Event::InitDone), refused(), Ok(Event::Init)];
        let mut watch = std::pin::pin!(patient(None, stream::iter(down.chain(back))));
        let began = tokio::time::Instant::now();
        for _ in 0..40 {
            watch.next().await.unwrap().ok();
        }
        let down = began.elapsed();
        assert!(down > 15 * MAX / 2 && down < 20 * MAX, "{down:?}");
        for _ in 0..3 {
            watch.next().await.unwrap().ok();
        }
        let began = tokio::time::Instant::now();
        watch.next().await.unwrap().unwrap();
        assert!(began.elapsed() <= FIRST);
    }
}
