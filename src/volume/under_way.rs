//! Work on volumes that may never end: a server or a disk does not answer, and no time limit ends what waits for it in the
//! kernel.
//!
//! Such work is done once at a time for each volume and waited for with a limit; whoever asks again joins it. What mounts
//! for a pod passes the pod's [`Gate`], which its teardown closes first: nothing is removed beside a mount that is still
//! being made.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

/// Set-ups of volumes that may wait for disks at once, of all pods.
const THREADS: usize = 64;
/// How long a teardown waits for mounts of its pod to end.
const TO_END: Duration = Duration::from_secs(5);

/// What work on a volume comes to: where the volume is, or why it is not there.
pub(super) type Outcome = Result<PathBuf, String>;

#[derive(Debug, Default, Clone, Copy)]
struct State {
    closed: bool,
    inside: usize,
}

/// What mounts for one pod goes through here.
#[derive(Debug, Default)]
pub(super) struct Gate(watch::Sender<State>);

/// Held by what may mount for a pod, as long as it may.
#[derive(Debug)]
pub(super) struct Pass(Arc<Gate>);

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.inside -= 1);
    }
}

impl Gate {
    /// Leave to mount; none once the pod is being taken down.
    pub fn enter(self: &Arc<Self>) -> Result<Pass, String> {
        let entered = self.0.send_if_modified(|state| {
            state.inside += usize::from(!state.closed);
            !state.closed
        });
        if entered { Ok(Pass(self.clone())) } else { Err("the pod is being taken down".to_owned()) }
    }

    /// Returns once the pod is being taken down.
    pub async fn closed(&self) {
        // the sender is this gate's own
        let _ = self.0.subscribe().wait_for(|state| state.closed).await;
    }

    /// Nobody enters any more; waits with a limit until all are out.
    pub async fn close(&self) -> Result<(), String> {
        self.0.send_modify(|state| state.closed = true);
        let mut state = self.0.subscribe();
        let ended = tokio::time::timeout(TO_END, state.wait_for(|state| state.inside == 0)).await;
        ended.map(drop).map_err(|_| {
            "a volume of the pod is still being mounted (its server or disk does not answer): nothing is removed yet".to_owned()
        })
    }
}

/// Uid of the pod, name of the volume.
type Key = (String, String);

/// The gates of all pods, and what is under way for their volumes.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    gates: Mutex<HashMap<String, Arc<Gate>>>,
    flights: Mutex<HashMap<Key, watch::Receiver<Option<Outcome>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl UnderWay {
    /// The gate of a pod.
    pub fn gate(&self, uid: &str) -> Arc<Gate> {
        lock(&self.gates).entry(uid.to_owned()).or_default().clone()
    }

    /// Starts the work, or joins what is under way for that volume, and waits for `patience`. The outcome of work nobody
    /// waited for is that of the next call.
    pub async fn run<F>(&self, uid: &str, volume: &str, patience: Duration, start: impl FnOnce() -> F) -> Outcome
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let key = (uid.to_owned(), volume.to_owned());
        let mut outcome = lock(&self.flights)
            .entry(key.clone())
            .or_insert_with(|| {
                let (done, outcome) = watch::channel(None);
                let work = start();
                tokio::spawn(async move { drop(done.send(Some(work.await))) });
                outcome
            })
            .clone();
        let ended = match tokio::time::timeout(patience, outcome.wait_for(Option::is_some)).await {
            Err(_) => {
                let seconds = patience.as_secs();
                return Err(format!("no answer from its server or disk within {seconds} s: still waiting"));
            }
            Ok(Ok(ended)) => ended.clone().unwrap_or_else(|| Err("no outcome".to_owned())),
            Ok(Err(_)) => Err("the work was given up".to_owned()),
        };
        lock(&self.flights).remove(&key);
        ended
    }

    /// Closes the pod's gate, and forgets what was under way for it; what mounts ends, or this is an error.
    pub async fn end(&self, uid: &str) -> Result<(), String> {
        self.gate(uid).close().await?;
        lock(&self.flights).retain(|(of, _), _| of != uid);
        Ok(())
    }

    /// The pod is taken down.
    pub fn forget(&self, uid: &str) {
        lock(&self.gates).remove(uid);
    }
}

/// Threads for what may wait for a disk or server for ever, so many at most: those others need are not used up.
pub(super) struct Threads {
    most: usize,
    running: AtomicUsize,
}

/// Those of the set-ups of volumes.
static SET_UPS: Threads = Threads::new(THREADS);

struct Running(&'static AtomicUsize);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Threads {
    /// At most so many.
    pub const fn new(most: usize) -> Self {
        Self { most, running: AtomicUsize::new(0) }
    }

    /// Runs the work on one of its own; an error when all wait.
    pub async fn run(&'static self, work: impl FnOnce() -> Outcome + Send + 'static) -> Outcome {
        let before = self.running.fetch_add(1, Ordering::Relaxed);
        let running = Running(&self.running);
        if before >= self.most {
            let most = self.most;
            return Err(format!("{most} volumes wait for disks or servers that do not answer: this one has to wait"));
        }
        let (done, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("volume".into()).spawn(move || {
            let outcome = work();
            drop(running);
            // who asked may have gone
            let _ = done.send(outcome);
        });
        thread.map_err(|e| format!("starting a thread: {e}"))?;
        ended.await.unwrap_or_else(|_| Err("the file work was given up".to_owned()))
    }
}

/// Runs a part of a volume's set-up that may wait for ever.
pub(super) async fn on_own_thread(work: impl FnOnce() -> Outcome + Send + 'static) -> Outcome {
    SET_UPS.run(work).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn what_does_not_end_is_joined_and_its_outcome_is_kept() {
        let under_way = UnderWay::default();
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let starts = Arc::new(AtomicUsize::new(0));
        let wait = Arc::new(Mutex::new(wait));
        let start = || {
            starts.fetch_add(1, Ordering::Relaxed);
            let wait = wait.clone();
            on_own_thread(move || {
                wait.lock().unwrap().recv().unwrap();
                Err("no such export".to_owned())
            })
        };
        for _ in 0..3 {
            let error = under_way.run("u", "v", SHORT, start).await.unwrap_err();
            assert!(error.contains("no answer"), "{error}");
        }
        assert_eq!(starts.load(Ordering::Relaxed), 1, "one at a time");
        release.send(()).unwrap();
        assert_eq!(under_way.run("u", "v", LONG, start).await.unwrap_err(), "no such export");
        release.send(()).unwrap();
        under_way.run("u", "v", LONG, start).await.unwrap_err();
        assert_eq!(starts.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_gate_closes_when_all_are_out_and_nobody_enters_a_closed_one() {
        let under_way = UnderWay::default();
        let gate = under_way.gate("u");
        let pass = gate.enter().unwrap();
        let closing = under_way.end("u");
        tokio::pin!(closing);
        assert!(tokio::time::timeout(SHORT, &mut closing).await.is_err());
        assert!(gate.enter().is_err());
        drop(pass);
        closing.await.unwrap();
        gate.closed().await;
        assert!(under_way.gate("u").enter().is_err(), "until the pod is forgotten");
        under_way.forget("u");
        assert!(under_way.gate("u").enter().is_ok());
    }
}
