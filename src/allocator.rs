//! The program's memory: where it comes from, and when what is free goes back to the kernel.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

mod heap;

/// How long after the first of many allocations that are gone again.
const TRIM_AFTER: Duration = Duration::from_secs(3);
static TRIM_IS_DUE: AtomicBool = AtomicBool::new(false);

/// All of it.
#[global_allocator]
static HEAP: heap::Heap = heap::Heap::new();

/// Gives free memory back to the kernel: for a process that has just done the most it ever will.
pub fn trim() {
    HEAP.trim();
}

/// The same a little later, once for all that ask until then. Needs a tokio runtime.
pub fn trim_soon() {
    if !TRIM_IS_DUE.swap(true, Ordering::Relaxed) {
        tokio::spawn(async {
            tokio::time::sleep(TRIM_AFTER).await;
            TRIM_IS_DUE.store(false, Ordering::Relaxed);
            trim();
        });
    }
}

/// From now on nothing is left in memory that is given back: for a process whose memory, and so that of what it forks, others
/// may come to see.
pub fn erase() {
    heap::ERASING.store(true, Ordering::Relaxed);
}
