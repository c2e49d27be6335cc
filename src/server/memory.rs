//! What is remembered of those who ask, within bounds: answers with an end, and how often an address has asked.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Answers with an end; the oldest makes room.
pub struct Kept<K, V> {
    most: usize,
    answers: Mutex<Answers<K, V>>,
}

struct Answers<K, V> {
    known: HashMap<K, (Instant, V)>,
    /// The keys, oldest first.
    order: VecDeque<K>,
}

impl<K: Eq + Hash + Clone, V: Clone> Kept<K, V> {
    /// At most so many.
    pub fn new(most: usize) -> Self {
        Self { most, answers: Mutex::new(Answers { known: HashMap::new(), order: VecDeque::new() }) }
    }

    /// The answer, unless it has ended.
    pub fn get(&self, key: &K) -> Option<V> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.known.get(key).filter(|(end, _)| *end > Instant::now()).map(|(_, v)| v.clone())
    }

    /// Remembers an answer for `time`.
    pub fn put(&self, key: K, value: V, time: Duration) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let Answers { known, order } = &mut *answers;
        if known.insert(key.clone(), (Instant::now() + time, value)).is_some() {
            order.retain(|k| *k != key);
        }
        order.push_back(key);
        while order.len() > self.most {
            if let Some(oldest) = order.pop_front() {
                known.remove(&oldest);
            }
        }
    }
}

/// How often each address may do something: some times at once, then at a steady pace.
pub struct Pace {
    at_once: u32,
    per: Duration,
    /// When an address will have all its times again.
    free: Kept<IpAddr, Instant>,
}

/// Addresses remembered by a [`Pace`].
const ADDRESSES: usize = 1024;

impl Pace {
    /// `at_once` times, and once more after each `per`.
    pub fn new(at_once: u32, per: Duration) -> Self {
        Self { at_once, per, free: Kept::new(ADDRESSES) }
    }

    /// Whether `address` may now; it is counted if so.
    pub fn may(&self, address: IpAddr, now: Instant) -> bool {
        let address = network(address);
        let free = self.free.get(&address).unwrap_or(now).max(now) + self.per;
        if free > now + self.per * self.at_once {
            return false;
        }
        self.free.put(address, free, self.per * (self.at_once + 1));
        true
    }
}

/// Whom an address stands for: itself, or the /64 that one machine may have all of.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_answer_makes_room() {
        let kept = Kept::new(2);
        let minute = Duration::from_mins(1);
        kept.put(1, "a", minute);
        kept.put(2, "b", minute);
        kept.put(1, "c", minute);
        kept.put(3, "d", minute);
        assert_eq!((kept.get(&1), kept.get(&2), kept.get(&3)), (Some("c"), None, Some("d")));
        kept.put(3, "e", Duration::ZERO);
        assert_eq!(kept.get(&3), None);
    }

    #[test]
    fn an_address_has_a_pace_of_its_own() {
        let pace = Pace::new(3, Duration::from_secs(2));
        let (one, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let now = Instant::now();
        let at_once = |address| (0..10).filter(|_| pace.may(address, now)).count();
        assert_eq!((at_once(one), at_once(other), at_once(one)), (3, 3, 0));
        let later = now + Duration::from_secs(2);
        assert_eq!((pace.may(one, later), pace.may(one, later)), (true, false));
    }

    #[test]
    fn a_machine_has_a_network_of_ipv6() {
        let network = |text: &str| super::network(text.parse().unwrap()).to_string();
        assert_eq!(network("2001:db8::1:2:3:4"), "2001:db8::");
        assert_eq!(network("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(network("::1"), "::1");
    }
}
