//! Answers that are told whole (metrics, pods, settings): how many of a user are under way, and how many bytes wait for their
//! clients in all. One that takes them slowly, or never, costs no more than that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Answers of one user under way.
const OF_USER: usize = 16;
/// The same of all users.
const IN_ALL: usize = 64;
/// Bytes that wait for all clients; an answer that is larger is told to nobody else meanwhile.
const BYTES: usize = 32 << 20;

/// Where answers last, or become streams, with little of them in memory.
const LASTING: [&str; 5] = ["/containerLogs/", "/exec/", "/attach/", "/portForward/", "/run/"];

/// The answers of one server; cheap to clone.
#[derive(Clone, Default)]
pub struct Answers(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    of: HashMap<String, usize>,
    in_all: usize,
    bytes: usize,
}

/// One answer under way, until it is dropped.
pub struct Turn {
    answers: Answers,
    user: String,
    bytes: usize,
}

impl Answers {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether answers of that path are told whole.
    pub fn counts(path: &str) -> bool {
        !LASTING.iter().any(|way| path.starts_with(way))
    }

    /// One more answer for `user`; `None` when there are too many.
    pub fn begin(&self, user: &str) -> Option<Turn> {
        let mut held = self.held();
        if held.in_all >= IN_ALL || held.of.get(user).is_some_and(|n| *n >= OF_USER) {
            return None;
        }
        held.in_all += 1;
        *held.of.entry(user.to_owned()).or_default() += 1;
        Some(Turn { answers: self.clone(), user: user.to_owned(), bytes: 0 })
    }
}

impl Turn {
    /// The answer has so many bytes. False when too many wait already.
    pub fn weighs(&mut self, bytes: usize) -> bool {
        let mut held = self.answers.held();
        if held.bytes > 0 && held.bytes.saturating_add(bytes) > BYTES {
            return false;
        }
        held.bytes += bytes;
        self.bytes += bytes;
        true
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut held = self.answers.held();
        held.in_all -= 1;
        held.bytes -= self.bytes;
        if let Some(count) = held.of.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                held.of.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_a_few_and_leaves_some_to_others() {
        let answers = Answers::default();
        let of = |user: &str| (0..1000).map_while(|_| answers.begin(user)).collect::<Vec<_>>();
        let low = of("low");
        let others: Vec<_> = (0..10).flat_map(|n| of(&n.to_string())).collect();
        assert_eq!((low.len(), low.len() + others.len()), (OF_USER, IN_ALL));
        drop(low);
        assert_eq!(of("admin").len(), OF_USER);
        drop(others);
        assert!(answers.held().of.is_empty() && answers.held().in_all == 0);
    }

    #[test]
    fn what_waits_is_bounded_in_bytes() {
        let answers = Answers::default();
        let mut turns: Vec<_> = (0..3).map(|n| answers.begin(&n.to_string()).unwrap()).collect();
        assert!(turns[0].weighs(2 * BYTES), "one alone is told whatever it has");
        assert!(!turns[1].weighs(1));
        turns.remove(0);
        assert!(turns[0].weighs(BYTES - 1) && turns[1].weighs(1) && !turns[1].weighs(1));
        drop(turns);
        assert_eq!(answers.held().bytes, 0);
    }

    #[test]
    fn logs_and_streams_do_not_count() {
        assert!(["/metrics", "/pods", "/stats/summary", "/logs/syslog"].iter().all(|path| Answers::counts(path)));
        assert!(!["/containerLogs/a/b/c", "/exec/a/b/c", "/run/a/b/c"].iter().any(|path| Answers::counts(path)));
    }
}
