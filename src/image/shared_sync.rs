//! One sync of the disk for all that wait for one: the layers of a pull arrive side by side, and each would flush the whole card.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Default)]
struct State {
    /// How many were begun, and the last of them that ended well.
    begun: u64,
    done: u64,
    running: bool,
}

/// Those of one disk.
#[derive(Default)]
pub struct SharedSync {
    state: Mutex<State>,
    ended: Condvar,
}

impl SharedSync {
    /// Returns when a sync that began after this call has ended well: one of somebody else, or `sync`, which is run one at a
    /// time. Its error is that of the caller alone; who shares it runs one of their own, and is told by that.
    pub fn run(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.state();
        let needed = state.begun + 1;
        while state.running {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
            if state.done >= needed {
                return Ok(());
            }
        }
        state.begun += 1;
        state.running = true;
        let own = state.begun;
        drop(state);
        let synced = sync();
        let mut state = self.state();
        state.running = false;
        if synced.is_ok() {
            state.done = own;
        }
        self.ended.notify_all();
        synced
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Barrier, mpsc};
    use std::time::Duration;

    use super::*;

    /// One that is under way, and how it is ended.
    fn under_way(shared: &Arc<SharedSync>) -> (std::thread::JoinHandle<io::Result<()>>, mpsc::Sender<io::Result<()>>) {
        let (begun_tx, begun) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let shared = shared.clone();
        let thread = std::thread::spawn(move || {
            shared.run(|| {
                begun_tx.send(()).unwrap();
                ended.recv().unwrap()
            })
        });
        begun.recv().unwrap();
        (thread, end)
    }

    fn waiters(shared: &Arc<SharedSync>, syncs: &Arc<AtomicUsize>, fails: bool) -> Vec<io::Result<()>> {
        let ((first, end), ready) = (under_way(shared), Arc::new(Barrier::new(9)));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (shared, syncs, ready) = (shared.clone(), syncs.clone(), ready.clone());
                std::thread::spawn(move || {
                    ready.wait();
                    shared.run(|| {
                        syncs.fetch_add(1, Ordering::SeqCst);
                        if fails { Err(io::Error::other("disk")) } else { Ok(()) }
                    })
                })
            })
            .collect();
        ready.wait();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(syncs.load(Ordering::SeqCst), 0, "one at a time");
        end.send(Ok(())).unwrap();
        first.join().unwrap().unwrap();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }

    #[test]
    fn those_that_wait_share_one_that_began_after_they_came() {
        let (shared, syncs) = (Arc::<SharedSync>::default(), Arc::<AtomicUsize>::default());
        assert!(waiters(&shared, &syncs, false).iter().all(Result::is_ok));
        assert_eq!(syncs.load(Ordering::SeqCst), 1, "not the one that was under way, and none of their own");
    }

    #[test]
    fn an_error_is_everybodys() {
        let (shared, syncs) = (Arc::<SharedSync>::default(), Arc::<AtomicUsize>::default());
        assert!(waiters(&shared, &syncs, true).iter().all(Result::is_err));
        assert_eq!(syncs.load(Ordering::SeqCst), 8);
    }
}
