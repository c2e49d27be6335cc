//! Work asked for more than once at a time and done once.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};

type Work<T> = Shared<BoxFuture<'static, T>>;

/// Work under way, by its name. It goes on while anybody waits for it.
pub struct Flights<K, T: Clone> {
    running: Mutex<HashMap<K, WeakShared<BoxFuture<'static, T>>>>,
}

impl<K: Eq + Hash, T: Clone + Send + 'static> Default for Flights<K, T> {
    fn default() -> Self {
        Self { running: Mutex::default() }
    }
}

impl<K: Eq + Hash, T: Clone + Send + 'static> Flights<K, T> {
    /// The work under way for `key`, or that of `start`; true if it is the caller's own.
    pub fn join(&self, key: K, start: impl FnOnce() -> BoxFuture<'static, T>) -> (Work<T>, bool) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, work| work.upgrade().is_some_and(|w| w.peek().is_none()));
        if let Some(work) = running.get(&key).and_then(WeakShared::upgrade) {
            return (work, false);
        }
        let work = start().shared();
        if let Some(weak) = work.downgrade() {
            running.insert(key, weak);
        }
        (work, true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn what_is_asked_twice_is_done_once_and_again_later() {
        let (flights, runs) = (Flights::<&str, usize>::default(), Arc::new(AtomicUsize::new(0)));
        let start = || {
            let runs = runs.clone();
            async move {
                tokio::task::yield_now().await;
                runs.fetch_add(1, Ordering::SeqCst)
            }
            .boxed()
        };
        let ((a, mine), (b, theirs)) = (flights.join("x", start), flights.join("x", start));
        assert!(mine && !theirs);
        // one who gives up does not end it for the other
        drop(a);
        assert_eq!(b.await, 0);
        assert_eq!(flights.join("x", start).0.await, 1);
    }
}
