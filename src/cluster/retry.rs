//! How long watches wait before they try again: short enough that a node is back within seconds of its API server.

use std::time::Duration;

use kube::runtime::utils::Backoff;

const FIRST: Duration = Duration::from_millis(200);
const MAX: Duration = Duration::from_secs(5);

/// Delays that double from 0.2 s to 5 s, each shortened at random by up to a half so that nodes do not come all at once.
#[derive(Debug)]
pub struct Retry(Duration);

impl Retry {
    /// Starts with the shortest delay.
    pub fn new() -> Self {
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

impl Backoff for Retry {
    fn reset(&mut self) {
        self.0 = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_five_seconds_and_begin_anew() {
        let mut retry = Retry::new();
        assert!(retry.next().unwrap() <= FIRST);
        let last = retry.by_ref().nth(10).unwrap();
        assert!(last <= MAX && last >= MAX / 2);
        retry.reset();
        assert!(retry.next().unwrap() <= FIRST);
    }
}
