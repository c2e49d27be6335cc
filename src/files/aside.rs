//! Work on a disk, out of the way of what else the agent does: a card may take seconds for what a container made dear.

use std::io;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;
use tokio::task::{block_in_place, spawn_blocking};

/// Trees that are removed at once: fewer than there are threads, so that many that are large leave some to others.
const REMOVALS: usize = 6;
static SLOTS: Semaphore = Semaphore::const_new(REMOVALS);

/// Runs what waits for a disk. Where a thread of tokio's does so, another one takes over its other tasks first.
pub fn aside<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(work),
        _ => work(),
    }
}

/// Removes what may be large, as `work` does, on a thread of its own; waits while many others do. An error says that the
/// thread came to nothing.
pub async fn removal<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let _slot = SLOTS.acquire().await.map_err(io::Error::other)?;
    spawn_blocking(work).await.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};
    use std::time::Duration;

    use super::*;

    /// A runtime like the agent's, with one thread for all tasks.
    fn alone() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(REMOVALS + 1)
            .enable_all()
            .build()
            .unwrap()
    }

    fn wait(until: &Receiver<()>) -> bool {
        until.recv_timeout(Duration::from_secs(20)).is_ok()
    }

    #[test]
    fn other_tasks_go_on_beside_a_slow_disk() {
        let (release, released): (Sender<()>, _) = mpsc::channel();
        let waited = alone().block_on(async move {
            let slow = tokio::spawn(async move { aside(|| wait(&released)) });
            tokio::time::sleep(Duration::from_millis(50)).await;
            tokio::spawn(async move { release.send(()).unwrap() }).await.unwrap();
            slow.await.unwrap()
        });
        assert!(waited, "the one thread waited for a disk, and nothing else ran");
    }

    #[test]
    fn many_removals_leave_threads_to_others() {
        let runtime = alone();
        runtime.block_on(async {
            let (release, mut released) = mpsc::channel::<()>();
            let mut removals = Vec::new();
            let mut releases = vec![release];
            for _ in 0..REMOVALS + 4 {
                removals.push(tokio::spawn(removal(move || wait(&released))));
                let (release, next) = mpsc::channel();
                released = next;
                releases.push(release);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            let other = tokio::time::timeout(Duration::from_secs(10), spawn_blocking(|| 1)).await;
            assert_eq!(other.expect("no thread was left").unwrap(), 1);
            for release in releases {
                let _ = release.send(());
            }
            for removal in removals {
                removal.await.unwrap().unwrap();
            }
        });
    }
}
