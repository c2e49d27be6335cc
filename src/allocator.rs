//! How much memory the C library's allocator may keep for itself.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long after the first of many allocations that are gone again.
const TRIM_AFTER: Duration = Duration::from_secs(3);
static TRIM_IS_DUE: AtomicBool = AtomicBool::new(false);

/// Arenas of glibc's malloc: it would make up to eight per core, each with free memory of its own.
#[cfg(target_env = "gnu")]
const ARENAS: i32 = 1;
/// Free memory at the top of an arena that goes back to the kernel, in bytes.
#[cfg(target_env = "gnu")]
const TRIM: i32 = 128 << 10;

/// Bounds the memory an idle agent keeps after a burst. musl's malloc needs no such word.
pub fn bound() {
    #[cfg(target_env = "gnu")]
    // SAFETY: called before any thread exists; mallopt only sets parameters of the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM);
    }
}

/// Gives free memory back to the kernel: for a process that has just done the most it ever will.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim only touches memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
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
