//! Who has a place at the kubelet API. Connections that were never let in have few places: strangers push out strangers, never
//! somebody who was let in, nor those who come from where somebody was. Those who were let in may have little more than the
//! right to read metrics: they make room for others as well, but never for one more of where most come from.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::memory::network;

/// Places of those who were let in.
const LET_IN: usize = 512;
/// Most of them that are streams: those stay for hours, and others must get what they ask for at once.
const STREAMS: usize = 384;
/// Places of strangers.
const STRANGERS: Quota = Quota { most: 64, of_peer: 16 };
/// The same for loopback, where tunnels end, and addresses from which somebody was let in.
const FAMILIAR: Quota = Quota { most: 256, of_peer: 192 };
/// Addresses remembered from which somebody was let in.
const KNOWN: usize = 64;

#[derive(Clone, Copy)]
struct Quota {
    most: usize,
    of_peer: usize,
}

/// All places; cheap to clone.
#[derive(Clone, Default)]
pub struct Admission(Arc<Mutex<Places>>);

#[derive(Default)]
struct Places {
    next: u64,
    strangers: Waiting,
    familiar: Waiting,
    let_in: Waiting,
    /// Places that were let in and cannot be taken back: streams, which end by their own rules.
    streams: HashMap<u64, IpAddr>,
    /// The oldest first.
    known: VecDeque<IpAddr>,
}

/// Connections by age: whose, and what makes them leave.
#[derive(Default)]
struct Waiting(BTreeMap<u64, (IpAddr, CancellationToken)>);

impl Waiting {
    /// Makes room for one more of `peer`: the oldest of `peer` leaves if it has too many, else of whoever has most.
    fn make_room(&mut self, peer: IpAddr, quota: Quota) {
        let mut of: HashMap<IpAddr, usize> = HashMap::new();
        for (peer, _) in self.0.values() {
            *of.entry(*peer).or_default() += 1;
        }
        let crowd = if of.get(&peer).is_some_and(|n| *n >= quota.of_peer) {
            Some(peer)
        } else if self.0.len() >= quota.most {
            of.into_iter().max_by_key(|(_, n)| *n).map(|(peer, _)| peer)
        } else {
            None
        };
        if let Some(crowd) = crowd {
            self.oldest_leaves(crowd);
        }
    }

    /// False when there is none of `peer`.
    fn oldest_leaves(&mut self, peer: IpAddr) -> bool {
        let oldest = self.0.iter().find(|(_, (p, _))| *p == peer).map(|(number, _)| *number);
        let Some((_, leave)) = oldest.and_then(|number| self.0.remove(&number)) else { return false };
        leave.cancel();
        true
    }
}

impl Places {
    /// Makes room among those who were let in for one more of `peer`: of those who have more places than it has, the oldest of
    /// whoever has most leaves. False when there is nobody.
    fn make_room_let_in(&mut self, peer: IpAddr) -> bool {
        if self.let_in.0.len() + self.streams.len() < LET_IN {
            return true;
        }
        let mut of: HashMap<IpAddr, usize> = HashMap::new();
        for peer in self.let_in.0.values().map(|(peer, _)| peer).chain(self.streams.values()) {
            *of.entry(*peer).or_default() += 1;
        }
        let own = of.get(&peer).copied().unwrap_or_default();
        // one who has nothing but streams has none that could leave
        let mut crowds: Vec<(usize, IpAddr)> =
            of.into_iter().filter(|(_, n)| *n > own).map(|(peer, n)| (n, peer)).collect();
        crowds.sort_unstable_by(|a, b| b.cmp(a));
        crowds.into_iter().any(|(_, crowd)| self.let_in.oldest_leaves(crowd))
    }
}

impl Admission {
    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection of `peer`, as a stranger.
    pub fn enter(&self, peer: IpAddr) -> Place {
        let peer = network(peer);
        let mut places = self.places();
        places.next += 1;
        let number = places.next;
        let familiar = peer.is_loopback() || places.known.contains(&peer);
        let (waiting, quota) =
            if familiar { (&mut places.familiar, FAMILIAR) } else { (&mut places.strangers, STRANGERS) };
        waiting.make_room(peer, quota);
        let leave = CancellationToken::new();
        waiting.0.insert(number, (peer, leave.clone()));
        Place { admission: self.clone(), number, peer, let_in: AtomicBool::new(false), leave }
    }
}

/// One connection's place, until it is dropped.
pub struct Place {
    admission: Admission,
    number: u64,
    peer: IpAddr,
    let_in: AtomicBool,
    /// Cancelled when another needs the place.
    pub leave: CancellationToken,
}

impl Place {
    /// Keeps the place from now on: somebody was let in by this connection. False when there are too many of these, and no other
    /// peer has more of them.
    pub fn let_in(&self) -> bool {
        if self.is_let_in() {
            return true;
        }
        let mut places = self.admission.places();
        // two requests of a connection at once
        if self.is_let_in() {
            return true;
        }
        if !places.make_room_let_in(self.peer) {
            return false;
        }
        if !self.let_in.swap(true, Ordering::Relaxed) {
            places.let_in.0.insert(self.number, (self.peer, self.leave.clone()));
            places.strangers.0.remove(&self.number);
            places.familiar.0.remove(&self.number);
            places.known.retain(|known| *known != self.peer);
            places.known.push_back(self.peer);
            if places.known.len() > KNOWN {
                places.known.pop_front();
            }
        }
        true
    }

    /// The connection becomes a stream: nobody takes its place back. False when there are too many.
    pub fn becomes_stream(&self) -> bool {
        let mut places = self.admission.places();
        if places.streams.len() >= STREAMS {
            return false;
        }
        if places.let_in.0.remove(&self.number).is_some() {
            places.streams.insert(self.number, self.peer);
        }
        true
    }

    /// Whether somebody was let in by this connection.
    pub fn is_let_in(&self) -> bool {
        self.let_in.load(Ordering::Relaxed)
    }

    /// Whose connection it is.
    pub fn peer(&self) -> IpAddr {
        self.peer
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let places = &mut *self.admission.places();
        places.streams.remove(&self.number);
        for waiting in [&mut places.let_in, &mut places.strangers, &mut places.familiar] {
            waiting.0.remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    fn staying(places: &[Place]) -> usize {
        places.iter().filter(|p| !p.leave.is_cancelled()).count()
    }

    #[test]
    fn streams_leave_places_for_others() {
        let admission = Admission::default();
        let streams: Vec<_> = (0..STREAMS).map(|_| admission.enter(address(1))).collect();
        assert!(streams.iter().all(|place| place.let_in() && place.becomes_stream()));
        let more = admission.enter(address(1));
        assert!(more.let_in() && !more.becomes_stream(), "it is let in, and no stream");
        let other = admission.enter(address(2));
        assert!(other.let_in() && !other.becomes_stream());
        drop(streams);
        assert!(more.becomes_stream());
    }

    #[test]
    fn ten_thousand_strangers_push_out_nobody_who_was_let_in() {
        let admission = Admission::default();
        let friend = admission.enter(address(1));
        assert!(friend.let_in());
        // another connection of the friend's, and one of the tunnel, are not let in yet
        let (again, tunnel) = (admission.enter(address(1)), admission.enter([127, 0, 0, 1].into()));
        let crowd: Vec<_> = (0..10_000).map(|n| admission.enter(address(2 + (n % 200) as u8))).collect();
        assert_eq!(staying(&crowd), STRANGERS.most);
        assert!(!crowd[9_999].leave.is_cancelled(), "the oldest goes first");
        assert!([&friend, &again, &tunnel].iter().all(|p| !p.leave.is_cancelled()));
        assert!(again.let_in() && tunnel.let_in());
        drop(crowd);
        drop((friend, again, tunnel));
        let places = admission.places();
        assert_eq!((places.let_in.0.len(), places.strangers.0.len(), places.familiar.0.len()), (0, 0, 0));
    }

    #[test]
    fn one_address_pushes_out_its_own() {
        let admission = Admission::default();
        let other = admission.enter(address(1));
        let crowd: Vec<_> = (0..1000).map(|_| admission.enter(address(2))).collect();
        assert_eq!(staying(&crowd), STRANGERS.of_peer);
        let crowds: Vec<_> = (3..60).flat_map(|n| [address(n), address(n)]).map(|a| admission.enter(a)).collect();
        assert_eq!(staying(&crowds) + staying(&crowd) + 1, STRANGERS.most);
        assert!(!other.leave.is_cancelled(), "who has most makes room");
    }

    #[test]
    fn those_let_in_are_counted_as_well() {
        let admission = Admission::default();
        let mut places: Vec<_> = (0..LET_IN).map(|_| admission.enter(address(1))).collect();
        assert!(places.iter().all(Place::let_in));
        let one_more = admission.enter(address(1));
        assert!(!one_more.let_in());
        places.pop();
        assert!(one_more.let_in() && one_more.let_in());
    }

    #[test]
    fn a_crowd_that_was_let_in_makes_room_for_others() {
        let admission = Admission::default();
        let let_in = |n| {
            let place = admission.enter(address(n));
            assert!(place.let_in());
            place
        };
        let crowd: Vec<_> = (0..LET_IN).map(|_| let_in(1)).collect();
        let others: Vec<_> = (0..10).map(|_| let_in(2)).collect();
        assert_eq!(staying(&crowd), LET_IN - others.len());
        assert!(!admission.enter(address(1)).let_in(), "where most come from makes no room for itself");
        assert_eq!(staying(&others), others.len());
        drop(crowd);
        drop(others);
        // streams are never taken back
        let streams: Vec<_> = (0..STREAMS).map(|_| let_in(1)).collect();
        assert!(streams.iter().all(Place::becomes_stream));
        let others: Vec<_> = (0..LET_IN).map(|n| admission.enter(address(2 + (n % 100) as u8))).collect();
        let more = others.iter().filter(|place| place.let_in()).count();
        assert!(more > 0);
        assert_eq!(staying(&streams), STREAMS);
        drop((streams, others));
        assert!(admission.places().streams.is_empty());
    }
}
