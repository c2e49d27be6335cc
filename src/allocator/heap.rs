//! dlmalloc, for all threads, which gives the kernel whatever page is free. An agent has twice the memory with the malloc of
//! musl, which gives back little, and that of glibc would have an arena for each thread.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dlmalloc::{Allocator, Dlmalloc};

/// What is taken from the kernel, and given back, is a multiple of this: no kernel has larger pages.
const PAGE: usize = 64 << 10;
/// Free blocks are looked for from the size of the first down to that of the second, which holds a whole page of 4 KiB.
const LARGEST: usize = 1 << 20;
const SMALLEST: usize = 8 << 10;

/// Memory for all threads.
pub struct Heap {
    memory: Mutex<Dlmalloc<Kernel>>,
}

/// Where the heap has its memory from.
struct Kernel;

/// While it is set, the heap has to do with what it has.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// While it is set, what is given back is overwritten.
pub static ERASING: AtomicBool = AtomicBool::new(false);

/// A free block that is being held, at its start.
struct Held {
    next: *mut Held,
    size: usize,
}

impl Heap {
    /// An empty one.
    pub const fn new() -> Self {
        Self { memory: Mutex::new(Dlmalloc::new_with_allocator(Kernel)) }
    }

    fn lock(&self) -> MutexGuard<'_, Dlmalloc<Kernel>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the kernel the pages of all that is free, also between what is not: takes all that can be had without asking the
    /// kernel, tells it that the pages are not needed, and lets go.
    pub fn trim(&self) {
        let mut memory = self.lock();
        // SAFETY: only memory that is free is given back.
        unsafe { memory.trim(0) };
        CLOSED.store(true, Ordering::Relaxed);
        let (mut held, mut size) = (null_mut::<Held>(), LARGEST);
        while size >= SMALLEST {
            // SAFETY: the size is not 0, and the alignment a power of two.
            let block = unsafe { memory.malloc(size, align_of::<Held>()) };
            // aligned as was asked for
            #[allow(clippy::cast_ptr_alignment)]
            let block = block.cast::<Held>();
            if block.is_null() {
                size /= 2;
                continue;
            }
            // SAFETY: the block is new, large enough and aligned for it.
            unsafe { block.write(Held { next: held, size }) };
            held = block;
        }
        CLOSED.store(false, Ordering::Relaxed);
        while !held.is_null() {
            // SAFETY: written above, and nobody else knows it.
            let Held { next, size } = unsafe { held.read() };
            not_needed(held.cast(), size);
            // SAFETY: the block was had from this heap with this size.
            unsafe { memory.free(held.cast(), size, align_of::<Held>()) };
            held = next;
        }
    }
}

/// The whole pages of a block lose what is in them and are no memory any more, until they are written to.
fn not_needed(block: *mut u8, size: usize) {
    // SAFETY: sysconf only reads.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(PAGE);
    let before = block.align_offset(page);
    let pages = size.saturating_sub(before) / page * page;
    if pages > 0 {
        // SAFETY: these pages are within the block, which is the caller's and which nobody reads before writing to it.
        unsafe { libc::madvise(block.add(before).cast(), pages, libc::MADV_DONTNEED) };
    }
}

// SAFETY: dlmalloc has the contracts of GlobalAlloc, and one thread at a time is in it. A child that was forked, which only
// the shim does without execve, has one thread, as the shim has.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as promised by the caller, here and below.
        unsafe { self.lock().malloc(layout.size(), layout.align()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see above.
        unsafe { self.lock().calloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if ERASING.load(Ordering::Relaxed) {
            // SAFETY: the block is the caller's, and of that size.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        // SAFETY: see above.
        unsafe { self.lock().free(block, layout.size(), layout.align()) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if ERASING.load(Ordering::Relaxed) {
            // SAFETY: see above; both blocks are at least as large as what is copied, and are not the same.
            return unsafe {
                let moved = self.lock().malloc(size, layout.align());
                if !moved.is_null() {
                    moved.copy_from_nonoverlapping(block, size.min(layout.size()));
                    self.dealloc(block, layout);
                }
                moved
            };
        }
        // SAFETY: see above.
        unsafe { self.lock().realloc(block, layout.size(), layout.align(), size) }
    }
}

// SAFETY: what alloc returns is mapped, of that size, and nobody else's until it is given back.
unsafe impl Allocator for Kernel {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        if CLOSED.load(Ordering::Relaxed) {
            return (null_mut(), 0, 0);
        }
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, where the kernel likes.
        match unsafe { libc::mmap(null_mut(), size, access, kind, -1, 0) } {
            libc::MAP_FAILED => (null_mut(), 0, 0),
            start => (start.cast(), size, 0),
        }
    }

    fn remap(&self, start: *mut u8, size: usize, new_size: usize, can_move: bool) -> *mut u8 {
        let flags = if can_move { libc::MREMAP_MAYMOVE } else { 0 };
        // SAFETY: the caller's mapping.
        match unsafe { libc::mremap(start.cast(), size, new_size, flags) } {
            libc::MAP_FAILED => null_mut(),
            start => start.cast(),
        }
    }

    fn free_part(&self, start: *mut u8, size: usize, new_size: usize) -> bool {
        // SAFETY: the caller's mapping, of which it gives up the end.
        unsafe { libc::munmap(start.add(new_size).cast(), size - new_size) == 0 }
    }

    fn free(&self, start: *mut u8, size: usize) -> bool {
        // SAFETY: the caller's mapping, which it gives up.
        unsafe { libc::munmap(start.cast(), size) == 0 }
    }

    fn can_release_part(&self, _flags: u32) -> bool {
        true
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        PAGE
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    /// Of this process, in KiB.
    fn resident() -> usize {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    fn pages_between_blocks_in_use_go_back() {
        let mut blocks: Vec<Option<Vec<u8>>> = (0..4096).map(|n| Some(vec![n as u8; 16 << 10])).collect();
        let full = resident();
        for (n, block) in blocks.iter_mut().enumerate() {
            if n % 16 != 0 {
                *block = None;
            }
        }
        super::super::trim();
        let left = resident();
        assert!(left + (40 << 10) < full, "of {full} KiB, 60 MiB of them free, {left} are left");
        for (n, block) in blocks.iter().enumerate().filter_map(|(n, b)| Some((n, b.as_ref()?))) {
            assert!(block.iter().all(|&b| b == n as u8), "block {n} has changed");
        }
        // and it can be used again
        let again: Vec<Vec<u8>> = (0..2048).map(|n| vec![n as u8; 16 << 10]).collect();
        assert!(again.iter().enumerate().all(|(n, b)| b.iter().all(|&b| b == n as u8)));
    }
}
