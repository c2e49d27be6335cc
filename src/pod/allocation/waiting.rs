//! Resizes that wait for room, and who of them has it first when there is some.
//!
//! Rules: the kubelet's allocation manager. One that asks for no more than before needs no room; of the others the higher
//! priority comes first, then Guaranteed pods, then who has waited longer. One that does not fit leaves the room to those behind.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;

use super::fit::Weighed;
use crate::pod::PodExt;
use crate::pod::qos::qos_class;

/// One that was not asked for again for so long does not count: its worker tries every three seconds.
const FORGOTTEN: Duration = Duration::from_secs(15);

#[derive(Debug)]
struct Waiter {
    /// As it would be.
    pod: Weighed,
    rank: Rank,
    since: Instant,
    asked: Instant,
}

/// Those that wait, by uid.
#[derive(Debug, Default)]
pub struct Waiting(BTreeMap<String, Waiter>);

/// What is less comes first, and of equals who has waited longer.
type Rank = (Reverse<i32>, bool);

fn rank(pod: &Pod) -> Rank {
    let priority = pod.pod_spec().and_then(|s| s.priority).unwrap_or(0);
    (Reverse(priority), qos_class(pod) != "Guaranteed")
}

impl Waiting {
    /// The pod has what it asked for, asks for nothing more, or is gone.
    pub fn end(&mut self, uid: &str) {
        self.0.remove(uid);
    }

    /// The pod waits, since it first asked.
    pub fn add(&mut self, pod: Weighed, now: Instant) {
        let uid = pod.pod.uid().to_owned();
        let (since, rank) = (self.0.get(&uid).map_or(now, |waiter| waiter.since), rank(&pod.pod));
        self.0.insert(uid, Waiter { pod, rank, since, asked: now });
    }

    /// Those that come before the pod, in their order.
    pub fn before(&self, pod: &Pod, now: Instant) -> Vec<&Weighed> {
        let own = (rank(pod), self.0.get(pod.uid()).map_or(now, |waiter| waiter.since));
        let others = self.0.iter().filter(|(uid, _)| *uid != pod.uid()).map(|(_, waiter)| waiter);
        let asking = others.filter(|waiter| now.saturating_duration_since(waiter.asked) < FORGOTTEN);
        let mut before: Vec<_> = asking.map(|w| ((w.rank, w.since), &w.pod)).filter(|(p, _)| *p < own).collect();
        before.sort_by_key(|(place, _)| *place);
        before.into_iter().map(|(_, pod)| pod).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::pod::allocation::fit::Allocatable;

    fn weighed(pod: &Arc<Pod>) -> Weighed {
        Weighed::of(pod, &Allocatable::from([("cpu", 1), ("memory", 1)]))
    }

    fn pod(uid: &str, cpu: &str, priority: i32, guaranteed: bool) -> Arc<Pod> {
        let mut resources = json!({"requests": {"cpu": cpu, "memory": "1Mi"}});
        if guaranteed {
            resources["limits"] = resources["requests"].clone();
        }
        let pod = json!({"metadata": {"uid": uid}, "spec": {"priority": priority,
            "containers": [{"name": "a", "resources": resources}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn priority_then_qos_then_time() {
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let mut waiting = Waiting::default();
        let pods = [
            pod("late", "1", 0, false),
            pod("early", "1", 0, false),
            pod("guaranteed", "1", 0, true),
            pod("high", "1", 9, false),
        ];
        for (pod, at) in pods.iter().zip([3, 1, 4, 5]) {
            waiting.add(weighed(pod), later(at));
        }
        waiting.add(weighed(&pods[1]), later(6));
        let names =
            |pod: &Pod, at| waiting.before(pod, later(at)).iter().map(|p| p.pod.uid().to_owned()).collect::<Vec<_>>();
        assert_eq!(names(&pods[0], 6), ["high", "guaranteed", "early"]);
        assert_eq!(names(&pod("new", "1", 0, false), 6), ["high", "guaranteed", "early", "late"]);
        assert_eq!(names(&pod("new", "1", 10, false), 6), [""; 0]);
        assert_eq!(names(&pods[3], 6), [""; 0]);
        assert_eq!(names(&pods[0], 20), ["early"], "the others were not heard of for too long");
        waiting.end("early");
        assert_eq!(waiting.before(&pods[0], later(6)).len(), 2);
    }

    #[test]
    fn less_of_one_and_more_of_another_is_more() {
        let (small, large) = (pod("a", "100m", 0, false), pod("a", "200m", 0, false));
        let more = |new: &Arc<Pod>, old: &Arc<Pod>| weighed(new).asks.exceed(&weighed(old).asks);
        assert!(more(&large, &small) && !more(&small, &large) && !more(&small, &small));
    }
}
