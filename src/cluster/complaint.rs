//! Says what is wrong when it begins and again from time to time, not at each try.

use std::time::{Duration, Instant};

/// How often the same is said again.
const AGAIN: Duration = Duration::from_mins(10);

/// What was said last, and when.
#[derive(Default)]
pub struct Complaint(Option<(String, Instant)>);

impl Complaint {
    /// True when this is new, or was not said for a while.
    pub fn is_due(&mut self, message: &str) -> bool {
        let due = self.0.as_ref().is_none_or(|(last, at)| last != message || at.elapsed() >= AGAIN);
        if due {
            self.0 = Some((message.to_owned(), Instant::now()));
        }
        due
    }
}
