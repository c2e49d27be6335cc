//! How fast a container's log may grow: whoever is faster waits in its own pipe, as on a slow disk.
//!
//! The shim is outside of its pod's limits of CPU, and the disk is the node's.

use std::time::{Duration, Instant};

/// Bytes that are written as fast as they come: more than a log keeps (the kubelet's default is five files of 10 MiB).
const BURST: u64 = 64 << 20;
/// Bytes a second from then on.
const RATE: u64 = 4 << 20;
/// What time [`BURST`] takes at [`RATE`].
const AHEAD: Duration = Duration::from_secs(BURST / RATE);
/// What a read counts for at least: many of few bytes cost the shim as much as one of many.
const READ: usize = 4 << 10;
/// Who is too fast waits for so long at least, so that reads are few, and less than a pipe (64 KiB) holds at [`RATE`].
const REST: Duration = Duration::from_millis(10);

/// A bucket that fills by [`RATE`] and holds [`BURST`].
#[derive(Debug)]
pub struct Pace {
    /// When it is full again.
    full: Instant,
    /// Nothing is to be read until then.
    until: Instant,
}

impl Pace {
    /// A full one.
    pub fn new(now: Instant) -> Self {
        Self { full: now, until: now }
    }

    /// One read has become so many bytes of the log. They are not refused: what is too much is waited for afterwards.
    pub fn spend(&mut self, bytes: usize, now: Instant) {
        self.full = self.full.max(now) + Duration::from_nanos(bytes.max(READ) as u64 * 1_000_000_000 / RATE);
        let over = self.full.saturating_duration_since(now + AHEAD);
        if !over.is_zero() {
            self.until = now + over + REST;
        }
    }

    /// Until when nothing is to be read, if that is later than `now`.
    pub fn rest(&self, now: Instant) -> Option<Instant> {
        Some(self.until).filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often somebody writes so many bytes in that time who always writes, and waits only when told to.
    fn flood(pace: &mut Pace, mut now: Instant, bytes: usize, time: Duration) -> u64 {
        let (end, mut count) = (now + time, 0);
        while now < end {
            pace.spend(bytes, now);
            count += 1;
            now = pace.rest(now).unwrap_or(now);
        }
        count
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let start = Instant::now();
        let time = Duration::from_secs(100);
        for size in [1, READ, 32 << 10, 1 << 20] {
            let mut pace = Pace::new(start);
            let bytes = flood(&mut pace, start, size, time) * size.max(READ) as u64;
            assert!((BURST + 99 * RATE..BURST + 101 * RATE).contains(&bytes), "{size}: {bytes}");
            // quiet for a while, and there is as much again
            let later = start + time + AHEAD * 2;
            pace.spend(BURST as usize, later);
            assert_eq!(pace.rest(later), None);
            pace.spend(1, later);
            assert!(pace.rest(later).is_some());
        }
    }

    #[test]
    fn who_keeps_to_the_rate_never_waits() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..10_000 {
            pace.spend(RATE as usize / 100, now);
            assert_eq!(pace.rest(now), None);
            now += Duration::from_millis(10);
        }
    }
}
