//! What has happened since the agent's start, counted and timed where it happens: `/metrics` tells it. Names and labels are
//! the kubelet's. In memory only, and bounded, as labels are words of the program or few (HTTP codes).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most combinations of labels that are kept of one family.
const SERIES: usize = 256;

/// Values of labels.
pub type Words<const K: usize> = [Cow<'static, str>; K];

/// A sample to be told of.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// What follows the family's name, such as `_bucket`.
    pub suffix: &'static str,
    /// Labels.
    pub labels: Vec<(&'static str, Cow<'static, str>)>,
    /// Value.
    pub value: f64,
}

/// Metrics of one name.
pub trait Family: Sync {
    /// Name, type and help text.
    fn head(&self) -> (&'static str, &'static str, &'static str);
    /// What is known of them.
    fn samples(&self) -> Vec<Sample>;
}

/// What counts, by labels.
pub struct Counters<const K: usize> {
    name: &'static str,
    help: &'static str,
    labels: [&'static str; K],
    kept: Mutex<BTreeMap<Words<K>, u64>>,
}

/// How long something took, by labels: a histogram.
pub struct Durations<const K: usize> {
    name: &'static str,
    help: &'static str,
    labels: [&'static str; K],
    bounds: &'static [f64],
    kept: Mutex<BTreeMap<Words<K>, Timing>>,
}

#[derive(Debug, Clone, Default)]
struct Timing {
    /// How many took no longer than each bound, and longer than the one before; the last: longer than all.
    buckets: Vec<u64>,
    sum: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The entry of those labels, unless there are too many.
fn entry<const K: usize, V: Default>(kept: &mut BTreeMap<Words<K>, V>, words: Words<K>) -> Option<&mut V> {
    if kept.len() >= SERIES && !kept.contains_key(&words) {
        return None;
    }
    Some(kept.entry(words).or_default())
}

/// All there are; what has no labels is there from the start.
fn all<const K: usize, V: Clone + Default>(kept: &Mutex<BTreeMap<Words<K>, V>>) -> BTreeMap<Words<K>, V> {
    let mut kept = lock(kept).clone();
    if K == 0 {
        kept.entry(std::array::from_fn(|_| Cow::default())).or_default();
    }
    kept
}

fn named<const K: usize>(names: [&'static str; K], words: &Words<K>) -> Vec<(&'static str, Cow<'static, str>)> {
    names.into_iter().zip(words.iter().cloned()).collect()
}

impl<const K: usize> Counters<K> {
    const fn new(name: &'static str, labels: [&'static str; K], help: &'static str) -> Self {
        Self { name, help, labels, kept: Mutex::new(BTreeMap::new()) }
    }

    /// One more.
    pub fn add(&self, words: Words<K>) {
        if let Some(count) = entry(&mut lock(&self.kept), words) {
            *count += 1;
        }
    }

    /// From now on it is told of, if it never happens too: what begins with one has no increase.
    pub fn expect(&self, words: Words<K>) {
        entry(&mut lock(&self.kept), words);
    }
}

impl<const K: usize> Family for Counters<K> {
    fn head(&self) -> (&'static str, &'static str, &'static str) {
        (self.name, "counter", self.help)
    }

    fn samples(&self) -> Vec<Sample> {
        let sample = |(words, value): (&Words<K>, &u64)| Sample {
            suffix: "",
            labels: named(self.labels, words),
            value: *value as f64,
        };
        all(&self.kept).iter().map(sample).collect()
    }
}

impl<const K: usize> Durations<K> {
    const fn new(name: &'static str, labels: [&'static str; K], bounds: &'static [f64], help: &'static str) -> Self {
        Self { name, help, labels, bounds, kept: Mutex::new(BTreeMap::new()) }
    }

    /// It took so long.
    pub fn observe(&self, words: Words<K>, took: Duration) {
        let mut kept = lock(&self.kept);
        let Some(timing) = entry(&mut kept, words) else { return };
        timing.buckets.resize(self.bounds.len() + 1, 0);
        let seconds = took.as_secs_f64();
        let at = self.bounds.iter().position(|bound| seconds <= *bound).unwrap_or(self.bounds.len());
        timing.buckets[at] += 1;
        timing.sum += took;
    }
}

impl<const K: usize> Family for Durations<K> {
    fn head(&self) -> (&'static str, &'static str, &'static str) {
        (self.name, "histogram", self.help)
    }

    fn samples(&self) -> Vec<Sample> {
        let mut samples = Vec::new();
        for (words, timing) in all(&self.kept) {
            let labels = named(self.labels, &words);
            let mut count = 0;
            for at in 0..=self.bounds.len() {
                count += timing.buckets.get(at).copied().unwrap_or(0);
                let bound = self.bounds.get(at).map_or_else(|| "+Inf".to_owned(), f64::to_string);
                let labels = labels.iter().cloned().chain([("le", bound.into())]).collect();
                samples.push(Sample { suffix: "_bucket", labels, value: count as f64 });
            }
            samples.push(Sample { suffix: "_sum", labels: labels.clone(), value: timing.sum.as_secs_f64() });
            samples.push(Sample { suffix: "_count", labels, value: count as f64 });
        }
        samples
    }
}

/// When a certificate that is in use ends.
pub struct Ending {
    name: &'static str,
    help: &'static str,
    /// Seconds since the epoch.
    at: AtomicI64,
}

/// No certificate yet.
const NONE: i64 = i64::MIN;

impl Ending {
    const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help, at: AtomicI64::new(NONE) }
    }

    /// One is in use that ends then, in seconds since the epoch; `None`: none is.
    pub fn set(&self, at: Option<i64>) {
        self.at.store(at.unwrap_or(NONE), Ordering::Relaxed);
    }
}

impl Family for Ending {
    fn head(&self) -> (&'static str, &'static str, &'static str) {
        (self.name, "gauge", self.help)
    }

    fn samples(&self) -> Vec<Sample> {
        let at = self.at.load(Ordering::Relaxed);
        let left = at.saturating_sub(jiff::Timestamp::now().as_second());
        let value = if at == NONE { f64::INFINITY } else { left as f64 };
        vec![Sample { suffix: "", labels: Vec::new(), value }]
    }
}

/// Bounds in seconds: of Prometheus' clients, of pods' starts, of the runtime, of volumes, of requests.
const USUAL: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const STARTS: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0,
    600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
const RUNTIME: &[f64] = &[
    0.005,
    0.0125,
    0.031_25,
    0.078_125,
    0.195_312_5,
    0.488_281_25,
    1.220_703_125,
    3.051_757_812_5,
    7.629_394_531_25,
    19.073_486_328_125,
    47.683_715_820_312_5,
    119.209_289_550_781_25,
    298.023_223_876_953_1,
    745.058_059_692_382_8,
];
const STORAGE: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];
const REQUESTS: &[f64] = &[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

/// What was asked of the runtime.
static RUNTIME_OPERATIONS: Counters<1> = Counters::new(
    "kubelet_runtime_operations_total",
    ["operation_type"],
    "What was asked of the container runtime, by operation.",
);
static RUNTIME_TIMES: Durations<1> = Durations::new(
    "kubelet_runtime_operations_duration_seconds",
    ["operation_type"],
    RUNTIME,
    "How long the container runtime took, by operation.",
);
static RUNTIME_ERRORS: Counters<1> = Counters::new(
    "kubelet_runtime_operations_errors_total",
    ["operation_type"],
    "What the container runtime could not do, by operation.",
);
/// Steps of the pods' workers: create, update, sync, kill.
pub static POD_WORKERS: Durations<1> = Durations::new(
    "kubelet_pod_worker_duration_seconds",
    ["operation_type"],
    USUAL,
    "How long a pod's worker took for one step towards what is wanted, by what it was for.",
);
/// From the first sight of a pod to its running.
pub static POD_STARTS: Durations<0> = Durations::new(
    "kubelet_pod_start_duration_seconds",
    [],
    STARTS,
    "From when this node first saw a pod until it ran.",
);
/// From a pod's making.
pub static POD_STARTS_IN_ALL: Durations<0> = Durations::new(
    "kubelet_pod_start_total_duration_seconds",
    [],
    STARTS,
    "From a pod's creation until all of its containers ran.",
);
/// The same but for what is the pod's own matter.
pub static POD_STARTS_OF_NODE: Durations<0> = Durations::new(
    "kubelet_pod_start_sli_duration_seconds",
    [],
    STARTS,
    "From a pod's creation until all of its containers ran, without pulls and init containers; pods that keep state are left out.",
);
/// Changes of cgroups.
pub static CGROUPS: Durations<1> = Durations::new(
    "kubelet_cgroup_manager_duration_seconds",
    ["operation_type"],
    USUAL,
    "How long changes of cgroups took, by operation.",
);
/// Set-up of volumes.
pub static VOLUMES: Durations<4> = Durations::new(
    "storage_operation_duration_seconds",
    ["migrated", "operation_name", "status", "volume_plugin"],
    STORAGE,
    "How long volumes took, by operation, kind and outcome.",
);
/// Requests to API servers: code, host, method.
pub static REQUESTS_SENT: Counters<3> = Counters::new(
    "rest_client_requests_total",
    ["code", "host", "method"],
    "Requests to the API server, by the code of its answer and method.",
);
/// The same until the answer began: host, method.
pub static REQUEST_TIMES: Durations<2> = Durations::new(
    "rest_client_request_duration_seconds",
    ["host", "verb"],
    REQUESTS,
    "How long the API server took until it began to answer, by method.",
);
/// Evicted pods, by signal.
pub static EVICTIONS: Counters<1> = Counters::new(
    "kubelet_evictions",
    ["eviction_signal"],
    "Pods that were evicted, by what the node, or the pod, ran short of.",
);
/// Pods that were started.
pub static PODS_STARTED: Counters<0> =
    Counters::new("kubelet_started_pods_total", [], "Sandboxes of pods that were started.");
/// Pods that could not be.
pub static PODS_NOT_STARTED: Counters<0> =
    Counters::new("kubelet_started_pods_errors_total", [], "Sandboxes of pods that could not be started.");
/// Containers that were started, by their kind.
pub static CONTAINERS_STARTED: Counters<1> =
    Counters::new("kubelet_started_containers_total", ["container_type"], "Containers that were started, by kind.");
/// Containers that could not be: reason, kind.
pub static CONTAINERS_NOT_STARTED: Counters<2> = Counters::new(
    "kubelet_started_containers_errors_total",
    ["code", "container_type"],
    "Containers that could not be started, by reason and kind.",
);
/// The certificate this node shows to the API server.
pub static CLIENT_CERTIFICATE: Ending = Ending::new(
    "kubelet_certificate_manager_client_ttl_seconds",
    "Seconds until the certificate ends that this node shows to the API server; +Inf without one.",
);
/// It could not be renewed.
pub static CLIENT_NOT_RENEWED: Counters<0> = Counters::new(
    "kubelet_certificate_manager_client_expiration_renew_errors",
    [],
    "How often the certificate for the API server could not be renewed.",
);
/// The certificate of the kubelet API.
pub static SERVING_CERTIFICATE: Ending = Ending::new(
    "kubelet_certificate_manager_server_ttl_seconds",
    "Seconds until the certificate of the kubelet API ends; +Inf without one.",
);
/// It could not be renewed.
pub static SERVING_NOT_RENEWED: Counters<0> = Counters::new(
    "kubelet_server_expiration_renew_errors",
    [],
    "How often the certificate of the kubelet API could not be renewed.",
);

/// All of them.
pub static ALL: [&dyn Family; 20] = [
    &RUNTIME_OPERATIONS,
    &RUNTIME_TIMES,
    &RUNTIME_ERRORS,
    &POD_WORKERS,
    &POD_STARTS,
    &POD_STARTS_IN_ALL,
    &POD_STARTS_OF_NODE,
    &CGROUPS,
    &VOLUMES,
    &REQUESTS_SENT,
    &REQUEST_TIMES,
    &EVICTIONS,
    &PODS_STARTED,
    &PODS_NOT_STARTED,
    &CONTAINERS_STARTED,
    &CONTAINERS_NOT_STARTED,
    &CLIENT_CERTIFICATE,
    &CLIENT_NOT_RENEWED,
    &SERVING_CERTIFICATE,
    &SERVING_NOT_RENEWED,
];

/// Asks something of the runtime; what is given up is not counted.
pub async fn runtime<T, E>(operation: &'static str, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let began = Instant::now();
    let outcome = work.await;
    RUNTIME_OPERATIONS.add([operation.into()]);
    RUNTIME_TIMES.observe([operation.into()], began.elapsed());
    if outcome.is_err() {
        RUNTIME_ERRORS.add([operation.into()]);
    } else {
        RUNTIME_ERRORS.expect([operation.into()]);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_histogram() {
        static TIMES: Durations<1> = Durations::new("t", ["op"], &[0.5, 2.0], "");
        static NONE: Durations<0> = Durations::new("n", [], &[1.0], "");
        for millis in [100, 500, 1000, 9000] {
            TIMES.observe(["a".into()], Duration::from_millis(millis));
        }
        let told: Vec<_> =
            TIMES.samples().into_iter().map(|s| (s.suffix, s.labels.last().unwrap().1.to_string(), s.value)).collect();
        let of = |suffix, label: &str, value| (suffix, label.to_owned(), value);
        let want = [
            of("_bucket", "0.5", 2.0),
            of("_bucket", "2", 3.0),
            of("_bucket", "+Inf", 4.0),
            of("_sum", "a", 10.6),
            of("_count", "a", 4.0),
        ];
        assert_eq!(told, want);
        assert_eq!(NONE.samples().iter().map(|s| s.value).collect::<Vec<_>>(), [0.0; 4], "there from the start");
    }

    #[test]
    fn counters_are_bounded_and_told_of_before_they_count() {
        static SOME: Counters<1> = Counters::new("c", ["code"], "");
        SOME.expect(["never".into()]);
        for code in 0..2 * SERIES {
            SOME.add([code.to_string().into()]);
        }
        let samples = SOME.samples();
        assert_eq!(samples.len(), SERIES);
        assert!(samples.iter().any(|s| s.labels[0].1 == "never" && s.value == 0.0));
    }

    #[tokio::test]
    async fn operations_are_counted_timed_and_blamed() {
        let of = |family: &dyn Family| {
            family.samples().into_iter().filter(|s| s.labels[0].1 == "test").map(|s| s.value).next_back()
        };
        runtime("test", async { Ok::<_, ()>(()) }).await.unwrap();
        assert_eq!(of(&RUNTIME_ERRORS), Some(0.0));
        runtime("test", async { Err::<(), _>(()) }).await.unwrap_err();
        assert_eq!(
            (of(&RUNTIME_OPERATIONS), of(&RUNTIME_TIMES), of(&RUNTIME_ERRORS)),
            (Some(2.0), Some(2.0), Some(1.0))
        );
    }
}
