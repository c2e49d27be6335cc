//! The ranges of addresses this node's pods have, and the pod network that follows them.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::warn;

use crate::cluster::{EventRecorder, Kept, NodeState, Slot};
use crate::network::{Network, NetworkError, Settled};

/// Where the ranges are kept.
const CIDRS: Slot = Slot("node", "", "podcidrs");
/// How long the Node is waited for before the ranges it had count.
const NODE_READ: Duration = Duration::from_millis(300);

/// A pod network that could not be set up is tried again after so long, and then less often.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_LATEST: Duration = Duration::from_mins(1);
/// Shortest and longest wait where one change follows the other, and the time without any after which the next counts as the
/// first.
const SOON: Duration = Duration::from_millis(100);
const LATE: Duration = Duration::from_secs(1);
const QUIET: Duration = Duration::from_secs(10);

/// Where the API server does not say what ranges this node has, it has those it had before.
pub async fn recall(kept: Kept, cidrs: watch::Sender<Vec<String>>) {
    let Some(known) = kept.get::<Vec<String>>(CIDRS) else { return };
    tokio::time::sleep(NODE_READ).await;
    cidrs.send_if_modified(|now| {
        now.is_empty() && {
            *now = known;
            true
        }
    });
}

/// Whom it is told how the pod network is.
pub struct Told {
    /// Pods that wait for it.
    pub ready: watch::Sender<bool>,
    /// The Node's status.
    pub state: watch::Sender<NodeState>,
    /// Its Events.
    pub events: EventRecorder,
}

impl Told {
    fn tell(&self, settled: Result<Settled, NetworkError>) {
        let (ready, refused, problems) = match settled {
            Ok(settled) => (true, settled.refused, settled.problems),
            Err(NetworkError::Ranges(refused)) => (false, refused, Vec::new()),
            Err(error) => (false, vec![error.to_string()], Vec::new()),
        };
        self.ready.send_if_modified(|now| {
            *now != ready && {
                *now = ready;
                true
            }
        });
        let wrong: Vec<String> = refused.into_iter().chain(problems).collect();
        let before = self.state.borrow().network_problems.clone();
        for problem in wrong.iter().filter(|p| !before.contains(p)) {
            warn!(problem, "pod network");
            self.events.node_event("Warning", "PodNetwork", problem.clone());
        }
        self.state.send_if_modified(|s| {
            let same = s.network_ready == ready && s.network_problems == wrong;
            (s.network_ready, s.network_problems) = (ready, wrong);
            !same
        });
    }
}

/// How long to wait before the pod network is looked at again: not at all after a quiet time, longer when one change follows the
/// other.
#[derive(Debug, Default)]
struct Pace {
    last: Option<Instant>,
    wait: Duration,
}

impl Pace {
    fn next(&mut self, now: Instant) -> Duration {
        let quiet = self.last.is_none_or(|last| now.duration_since(last) > QUIET);
        self.wait = if quiet { Duration::ZERO } else { (self.wait * 2).clamp(SOON, LATE) };
        self.last = Some(now + self.wait);
        self.wait
    }
}

/// Makes the pod network follow the ranges of this node, and be so again when others change it.
pub async fn keep(network: Network, mut cidrs: watch::Receiver<Vec<String>>, told: Told, kept: Kept) {
    let (mut links, mut rules) = (network.links_changed(), network.rules_changed());
    let mut pace = Pace::default();
    let mut again = AGAIN;
    let mut remembered = Vec::new();
    loop {
        let wanted: Vec<ipnet::IpNet> = cidrs.borrow_and_update().iter().filter_map(|c| c.parse().ok()).collect();
        // what changes from now on is looked at once more
        links.mark_unchanged();
        rules.mark_unchanged();
        let mut retry = None;
        if !wanted.is_empty() {
            let settled = network.settle(&wanted).await;
            let whole = settled.as_ref().is_ok_and(|s| s.refused.is_empty());
            if settled.is_ok() && remembered != wanted {
                kept.put(CIDRS, &wanted).await;
                remembered.clone_from(&wanted);
            }
            told.tell(settled);
            if whole {
                again = AGAIN;
            } else {
                retry = Some(again);
                again = (again * 2).min(AGAIN_LATEST);
            }
        }
        let retry = async {
            match retry {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        let changed = async {
            tokio::select! {
                Ok(()) = links.changed() => {}
                Ok(()) = rules.changed() => {}
                () = retry => {}
            }
            tokio::time::sleep(pace.next(Instant::now())).await;
        };
        tokio::select! {
            ended = cidrs.changed() => if ended.is_err() { return },
            () = changed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_do_all_the_time_does_not_keep_the_node_busy() {
        let mut pace = Pace::default();
        let start = Instant::now();
        assert_eq!(pace.next(start), Duration::ZERO, "the first is mended at once");
        let waits: Vec<Duration> = (0..9).map(|_| pace.next(start)).collect();
        assert!(waits.is_sorted() && waits[0] == SOON && waits[8] == LATE, "{waits:?}");
        assert_eq!(pace.next(start + LATE + QUIET * 2), Duration::ZERO);
    }
}
