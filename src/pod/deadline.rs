//! `activeDeadlineSeconds`: a pod that is active for longer fails, and its containers are stopped.

use std::time::{Duration, Instant};

use super::times;
use super::worker::Worker;

const MESSAGE: &str = "Pod was active on the node longer than the specified deadline";

impl Worker {
    /// Gives the pod up when its time is over; before that, says when that will be.
    pub(super) fn keep_deadline(&mut self) -> Option<Instant> {
        let seconds = self.pod.spec.as_ref()?.active_deadline_seconds?;
        let active = jiff::Timestamp::now().duration_since(self.started_at()?);
        // below zero where the clock was set back
        let active = Duration::try_from(active).unwrap_or_default();
        let left = times::seconds(seconds).saturating_sub(active);
        if !left.is_zero() {
            return Some(Instant::now() + left);
        }
        if self.failed.is_none() {
            self.failed = Some(("DeadlineExceeded".to_owned(), MESSAGE.to_owned()));
            self.event(None, "Normal", "DeadlineExceeded", MESSAGE.to_owned());
        }
        None
    }
}
