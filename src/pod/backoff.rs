//! Exponential backoff as CrashLoopBackOff and ImagePullBackOff use it.

use std::time::{Duration, Instant};

/// First delay of CrashLoopBackOff and ImagePullBackOff.
pub const INITIAL: Duration = Duration::from_secs(10);
/// Longest delay.
pub const MAX: Duration = Duration::from_mins(5);
/// A container that ran this long starts anew at no delay.
pub const RESET_AFTER: Duration = Duration::from_mins(10);

/// A delay that doubles with each failure.
#[derive(Debug, Clone)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    next: Duration,
    until: Option<Instant>,
}

impl Backoff {
    /// A backoff that starts at `initial` and never passes `max`.
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, next: initial, until: None }
    }

    /// The same with another longest delay, which the first one does not pass either.
    #[must_use]
    pub fn bounded(self, max: Duration) -> Self {
        let (initial, next) = (self.initial.min(max), self.next.min(max));
        Self { initial, max, next, until: self.until }
    }

    /// Counts a failure: nothing may be tried before the returned delay has passed.
    pub fn fail(&mut self, now: Instant) -> Duration {
        let delay = self.next;
        self.until = Some(now + delay);
        self.next = (self.next * 2).min(self.max);
        delay
    }

    /// When the next try is allowed; `None` when it is allowed now.
    pub fn pending(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|t| *t > now)
    }

    /// The delay of the last failure.
    pub fn last_delay(&self) -> Duration {
        if self.until.is_none() {
            return Duration::ZERO;
        }
        if self.next == self.max { self.max } else { (self.next / 2).max(self.initial) }
    }

    /// Forgets every failure.
    pub fn reset(&mut self) {
        self.next = self.initial;
        self.until = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_from_10_to_300_seconds_and_resets() {
        let mut backoff = Backoff::new(INITIAL, MAX);
        let now = Instant::now();
        let delays: Vec<u64> = (0..7).map(|_| backoff.fail(now).as_secs()).collect();
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
        assert!(backoff.pending(now).is_some());
        let mut short = Backoff::new(INITIAL, MAX).bounded(Duration::from_secs(15));
        assert_eq!((short.fail(now).as_secs(), short.fail(now).as_secs(), short.fail(now).as_secs()), (10, 15, 15));
        let mut shorter = Backoff::new(INITIAL, MAX).bounded(Duration::from_secs(2));
        assert_eq!((shorter.fail(now).as_secs(), shorter.last_delay().as_secs()), (2, 2));
        backoff.reset();
        assert!(backoff.pending(now).is_none());
        assert_eq!(backoff.fail(now).as_secs(), 10);
    }
}
