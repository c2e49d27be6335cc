//! Which events are written, and how: repeats are counted on one object, many like ones become one, and who says too
//! much is not listened to for a while. Pure rules, those of client-go's event correlator.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Event;

/// Objects, kinds of events and events that are remembered of each.
const REMEMBERED: usize = 4096;
/// Events about one object that are written at once.
const OBJECT_BURST: f64 = 25.0;
/// After those, one in this time.
const OBJECT_PAUSE: Duration = Duration::from_mins(5);
/// Events that differ by their message only, before they become one.
const SIMILAR: usize = 10;
/// Those that came longer ago than this are forgotten.
const SIMILAR_FOR: Duration = Duration::from_mins(10);

/// A bucket of tokens that fills evenly.
#[derive(Debug, Clone)]
pub struct Bucket {
    tokens: f64,
    most: f64,
    pause: Duration,
    at: Instant,
}

impl Bucket {
    /// A full bucket that gets one more token in each `pause`.
    pub fn new(most: f64, pause: Duration, now: Instant) -> Self {
        Self { tokens: most, most, pause, at: now }
    }

    /// Takes a token; how long until there is one, if there is none.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() / self.pause.as_secs_f64();
        self.tokens = (self.tokens + gained).min(self.most);
        self.at = now;
        if self.tokens < 1.0 {
            return Err(self.pause.mul_f64(1.0 - self.tokens));
        }
        self.tokens -= 1.0;
        Ok(())
    }
}

/// What is done with an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its object has had enough.
    Drop,
    /// It is new.
    Create,
    /// It was written before: the name of its object, and how often it has come now.
    Count(String, i32),
}

struct Similar {
    messages: BTreeSet<String>,
    last: Instant,
}

/// Remembers what was written.
#[derive(Default)]
pub struct Correlator {
    objects: HashMap<String, Bucket>,
    similar: HashMap<String, Similar>,
    written: HashMap<String, (String, i32)>,
}

fn key(event: &Event) -> String {
    format!("{}/{}", similar_key(event), event.message.as_deref().unwrap_or_default())
}

fn object_key(event: &Event) -> String {
    let object = &event.involved_object;
    format!("{:?}/{:?}/{:?}/{:?}", object.kind, object.namespace, object.name, object.uid)
}

fn similar_key(event: &Event) -> String {
    format!("{}/{:?}/{:?}/{:?}", object_key(event), event.involved_object.field_path, event.type_, event.reason)
}

impl Correlator {
    /// Decides, and changes the message of an event that stands for many.
    pub fn judge(&mut self, event: &mut Event, now: Instant) -> Verdict {
        if self.similar.len() >= REMEMBERED {
            self.similar.clear();
        }
        let message = event.message.clone().unwrap_or_default();
        let similar =
            self.similar.entry(similar_key(event)).or_insert_with(|| Similar { messages: BTreeSet::new(), last: now });
        if now.saturating_duration_since(similar.last) > SIMILAR_FOR {
            similar.messages.clear();
        }
        similar.last = now;
        if similar.messages.len() < SIMILAR {
            similar.messages.insert(message);
        }
        // the same object is written again and again, with the newest message
        let key = if similar.messages.len() >= SIMILAR {
            event.message =
                Some(format!("(combined from similar events): {}", event.message.clone().unwrap_or_default()));
            similar_key(event)
        } else {
            key(event)
        };
        if self.objects.len() >= REMEMBERED {
            self.objects.clear();
        }
        let bucket =
            self.objects.entry(object_key(event)).or_insert_with(|| Bucket::new(OBJECT_BURST, OBJECT_PAUSE, now));
        if bucket.take(now).is_err() {
            return Verdict::Drop;
        }
        if let Some((name, count)) = self.written.get_mut(&key) {
            *count += 1;
            return Verdict::Count(name.clone(), *count);
        }
        if self.written.len() >= REMEMBERED {
            self.written.clear();
        }
        self.written.insert(key, (event.metadata.name.clone().unwrap_or_default(), 1));
        Verdict::Create
    }

    /// The object that was written of that name is gone, or never was there.
    pub fn forget(&mut self, name: &str) {
        self.written.retain(|_, (written, _)| written != name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(pod: &str, message: &str, number: u32) -> Event {
        let event = serde_json::json!({"metadata": {"name": format!("{pod}.{number}")}, "reason": "BackOff",
            "involvedObject": {"kind": "Pod", "name": pod}, "message": message, "type": "Warning"});
        serde_json::from_value(event).unwrap()
    }

    #[test]
    fn repeats_are_counted_on_one_object() {
        let (mut correlator, now) = (Correlator::default(), Instant::now());
        assert_eq!(correlator.judge(&mut event("a", "m", 1), now), Verdict::Create);
        assert_eq!(correlator.judge(&mut event("a", "m", 2), now), Verdict::Count("a.1".to_owned(), 2));
        assert_eq!(correlator.judge(&mut event("b", "m", 3), now), Verdict::Create);
        correlator.forget("a.1");
        assert_eq!(correlator.judge(&mut event("a", "m", 4), now), Verdict::Create);
    }

    #[test]
    fn who_says_too_much_is_not_listened_to() {
        let (mut correlator, now) = (Correlator::default(), Instant::now());
        let mut say = |at: Instant| correlator.judge(&mut event("a", "m", 1), at) != Verdict::Drop;
        assert_eq!((0..40).filter(|_| say(now)).count(), 25);
        assert!(!say(now + Duration::from_secs(299)));
        assert!(say(now + Duration::from_secs(301)));
        assert!(!say(now + Duration::from_secs(302)));
    }

    #[test]
    fn many_like_ones_become_one() {
        let (mut correlator, now) = (Correlator::default(), Instant::now());
        for number in 0..9 {
            assert_eq!(correlator.judge(&mut event("a", &number.to_string(), number), now), Verdict::Create);
        }
        let mut tenth = event("a", "9", 9);
        assert_eq!(correlator.judge(&mut tenth, now), Verdict::Create);
        assert_eq!(tenth.message.as_deref(), Some("(combined from similar events): 9"));
        assert_eq!(correlator.judge(&mut event("a", "10", 10), now), Verdict::Count("a.9".to_owned(), 2));
    }

    #[test]
    fn buckets_fill_evenly() {
        let now = Instant::now();
        let mut bucket = Bucket::new(2.0, Duration::from_secs(1), now);
        assert!(bucket.take(now).is_ok() && bucket.take(now).is_ok());
        assert_eq!(bucket.take(now).unwrap_err(), Duration::from_secs(1));
        assert!(bucket.take(now + Duration::from_secs(1)).is_ok());
    }
}
