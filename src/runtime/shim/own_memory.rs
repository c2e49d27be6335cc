//! The memory of a process that others may look into before it is its program.
//!
//! A forked process has a copy of all that its parent knows: for one that is made in a container, that is what the shim knows
//! of the pod's other containers, their environments with them. Whoever may trace it there would read it. So all memory
//! that was there before is empty in the process (`MADV_WIPEONFORK` of madvise(2)), and what it needs lies in a [`Region`]
//! made for it.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs;
use std::num::NonZeroUsize;
use std::ptr::{NonNull, null};

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

use super::setup::context;

/// Alignment of all that is put into a region, in bytes.
const ALIGN: usize = 16;
/// What a thread's own data may take beyond the parts of it that have names here, in bytes.
const THREAD: usize = 8 << 10;

/// Stack below and above the caller's frame that the C library's `clone` may use, in bytes: musl's child finds there what it is
/// to run, though it has a stack of its own.
const BELOW: usize = 8 << 10;
const ABOVE: usize = 2 << 10;

/// From now on nothing that is in this process's memory is in that of a process it forks, but for the program's own data, what
/// the C library keeps of the thread, and the page or two of the stack that are in use now. To be called while `/proc` is the
/// host's, by whoever forks.
#[inline(never)]
pub fn forget_on_fork() -> Result<(), String> {
    let page = page_size();
    let here = 0_u8;
    let here = &raw const here as usize;
    let stack = (here.saturating_sub(BELOW) / page * page, (here + ABOVE).next_multiple_of(page));
    let maps = fs::read_to_string("/proc/self/maps").map_err(context("looking at this process's memory"))?;
    for (start, end) in maps.lines().filter_map(anonymous) {
        let parts = without(start, end, thread(page)).flat_map(|(start, end)| without(start, end, stack));
        for (start, end) in parts {
            let (Some(start), length) = (NonNull::new(start as *mut c_void), end - start) else { continue };
            // SAFETY: the pages stay as they are in this process; what it forks uses none of them.
            let advised = unsafe { madvise(start, length, MmapAdvise::MADV_WIPEONFORK) };
            advised.map_err(context("emptying memory for a process of the container"))?;
        }
    }
    drop(maps);
    scrub();
    Ok(())
}

/// Overwrites what calls of before have left on the stack below the caller's frame.
#[inline(never)]
fn scrub() {
    let mut left = [0_u8; 2 * BELOW];
    std::hint::black_box(&mut left);
}

fn page_size() -> usize {
    // SAFETY: takes a number, and changes nothing.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(64 << 10)
}

/// Start and end of a private mapping that can be written to and is of no file.
fn anonymous(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (access, inode) = (words.next()?, words.nth(2)?);
    let is = access.as_bytes().get(1) == Some(&b'w') && access.ends_with('p') && inode == "0";
    let number = |text| usize::from_str_radix(text, 16).ok();
    is.then(|| Some((number(start)?, number(end)?))).flatten()
}

/// The pages of this thread's own data, without which no system call can say what went wrong.
fn thread(page: usize) -> (usize, usize) {
    // SAFETY: neither takes or changes anything.
    let places = unsafe { [libc::__errno_location() as usize, libc::pthread_self() as usize] };
    let (first, last) = (places[0].min(places[1]), places[0].max(places[1]));
    (first / page * page, (last + THREAD).next_multiple_of(page))
}

/// What is left of a range without another one.
fn without(start: usize, end: usize, hole: (usize, usize)) -> impl Iterator<Item = (usize, usize)> {
    [(start, end.min(hole.0)), (start.max(hole.1), end)].into_iter().filter(|(start, end)| start < end)
}

/// Memory for what a process needs, all of it, in one piece.
pub struct Region {
    start: NonNull<c_void>,
    size: usize,
    used: usize,
}

impl Region {
    /// One of at least `size` bytes: what [`Region::room`] says of each thing that is put into it, and the stack.
    pub fn new(size: usize) -> Result<Self, String> {
        let failed = context("taking memory for a process of the container");
        let size = NonZeroUsize::new(size.next_multiple_of(page_size())).ok_or(Errno::EINVAL);
        let size = size.map_err(&failed)?;
        let (access, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: a new mapping, anywhere.
        let start = unsafe { mmap_anonymous(None, size, access, flags) }.map_err(&failed)?;
        Ok(Self { start, size: size.get(), used: 0 })
    }

    /// Bytes that a thing of `size` takes.
    pub fn room(size: usize) -> usize {
        size.next_multiple_of(ALIGN)
    }

    /// Room for so many bytes, which are zero.
    pub fn take(&mut self, size: usize) -> Result<NonNull<c_void>, String> {
        let end = self.used + Self::room(size);
        if end > self.size {
            return Err("memory for a process of the container: too little was taken".into());
        }
        // SAFETY: within the mapping, as was just looked at.
        let place = unsafe { self.start.byte_add(self.used) };
        self.used = end;
        Ok(place)
    }

    /// Copies `items` there.
    pub fn put<T: Copy>(&mut self, items: &[T]) -> Result<*mut T, String> {
        const { assert!(align_of::<T>() <= ALIGN) };
        let place = self.take(size_of_val(items))?.cast::<T>().as_ptr();
        // SAFETY: as large as the items, aligned, and of nobody else.
        unsafe { place.copy_from_nonoverlapping(items.as_ptr(), items.len()) };
        Ok(place)
    }

    /// Copies a list of strings there, with its end, as execve(2) takes it.
    pub fn put_strings<S: AsRef<CStr>>(&mut self, strings: &[S]) -> Result<*const *const c_char, String> {
        let mut pointers = Vec::with_capacity(strings.len() + 1);
        for string in strings {
            pointers.push(self.put(string.as_ref().to_bytes_with_nul())?.cast_const().cast::<c_char>());
        }
        pointers.push(null());
        Ok(self.put(&pointers)?.cast_const())
    }

    /// Bytes that [`Region::put_strings`] takes.
    pub fn room_of_strings<S: AsRef<CStr>>(strings: &[S]) -> usize {
        let texts: usize = strings.iter().map(|s| Self::room(s.as_ref().to_bytes_with_nul().len())).sum();
        texts + Self::room((strings.len() + 1) * size_of::<*const c_char>())
    }

    /// Forks a process that has this region and what the program itself has, with the last `stack` bytes for its stack, and
    /// runs `work` with `argument`.
    ///
    /// # Safety
    ///
    /// `work` uses no memory but the region's, and `argument` points into it.
    pub unsafe fn fork(
        &mut self,
        stack: usize,
        flags: c_int,
        work: extern "C" fn(*mut c_void) -> c_int,
        argument: *mut c_void,
    ) -> Result<libc::pid_t, Errno> {
        if self.used + stack > self.size {
            return Err(Errno::ENOMEM);
        }
        // SAFETY: the end of the mapping, which is aligned; what is below it is free. The caller has promised the rest.
        let pid = unsafe { libc::clone(work, self.start.byte_add(self.size).as_ptr(), flags, argument) };
        Errno::result(pid)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: nobody has anything in it any more. A filter may refuse it, and then it ends with the process.
        let _ = unsafe { munmap(self.start, self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_mappings_are_found() {
        let lines = [
            "55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0                          [heap]",
            "7f0000000000-7f0000001000 rw-p 00001000 fd:00 1234                       /usr/bin/x",
            "7f0000001000-7f0000002000 rw-p 00000000 00:00 0 ",
            "7f0000002000-7f0000003000 r--p 00000000 00:00 0 ",
            "7f0000003000-7f0000004000 rw-s 00000000 00:00 0 ",
        ];
        let found: Vec<_> = lines.iter().filter_map(|l| anonymous(l)).collect();
        assert_eq!(found, [(0x55d0_c000_0000, 0x55d0_c002_1000), (0x7f00_0000_1000, 0x7f00_0000_2000)]);
    }

    #[test]
    fn a_hole_divides_a_range() {
        let left = |start, end| without(start, end, (40, 60)).collect::<Vec<_>>();
        assert_eq!(left(0, 100), [(0, 40), (60, 100)]);
        assert_eq!((left(0, 30), left(70, 90)), (vec![(0, 30)], vec![(70, 90)]));
        assert_eq!((left(50, 90), left(30, 50), left(45, 50)), (vec![(60, 90)], vec![(30, 40)], vec![]));
    }

    #[test]
    fn what_is_put_into_a_region_fits() {
        let strings = [c"one", c"", c"three and more than sixteen bytes"];
        let mut region = Region::new(Region::room_of_strings(&strings) + Region::room(3)).unwrap();
        let list = region.put_strings(&strings).unwrap();
        for (i, string) in strings.iter().enumerate() {
            // SAFETY: as many as there are strings, all of them in the region.
            assert_eq!(unsafe { CStr::from_ptr(*list.add(i)) }, *string);
        }
        // SAFETY: as above.
        assert!(unsafe { *list.add(3) }.is_null());
        let bytes = region.put(&[1_u8, 2, 3]).unwrap();
        assert_eq!(bytes as usize % ALIGN, 0);
        assert!(region.take(page_size()).is_err());
    }
}
