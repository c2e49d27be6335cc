//! The program's pages that the shim knows already, handed on to every process it forks.
//!
//! fork(2) leaves out what can be looked up in a file again, one fault at a time: a hundred of them for each container that is
//! made, more than all the rest that its maker costs. But it copies what is known of a mapping that has a page of its own
//! (`vma_needs_copy` in the kernel's `mm/memory.c`), which one gets that was written to.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

/// Sees to it: a byte of each of the program's mappings is replaced by itself, for which the kernel makes a page.
pub fn hand_on() -> io::Result<()> {
    let memory = OpenOptions::new().read(true).write(true).open("/proc/self/mem")?;
    for start in fs::read_to_string("/proc/self/maps")?.lines().filter_map(of_file) {
        let mut byte = [0];
        memory.read_exact_at(&mut byte, start)?;
        memory.write_all_at(&byte, start)?;
    }
    Ok(())
}

/// Where a private mapping of a file begins that is only read or run.
fn of_file(line: &str) -> Option<u64> {
    let mut words = line.split_ascii_whitespace();
    let start = words.next()?.split_once('-')?.0;
    let (access, inode) = (words.next()?, words.nth(2)?);
    let is =
        access.starts_with('r') && access.as_bytes().get(1) == Some(&b'-') && access.ends_with('p') && inode != "0";
    is.then(|| u64::from_str_radix(start, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_the_program_are_told() {
        let lines = [
            "01001000-011ef000 r--p 00000000 00:01 1234                       /memfd:pikelet (deleted)",
            "011ef000-01bcd000 r-xp 001ee000 00:01 1234                       /memfd:pikelet (deleted)",
            "01bcf000-01bd6000 rw-p 00bcc000 00:01 1234                       /memfd:pikelet (deleted)",
            "7f0000000000-7f0000001000 r--s 00000000 fd:00 99                 /usr/share/x",
            "7fff00000000-7fff00002000 r-xp 00000000 00:00 0                  [vdso]",
        ];
        let found: Vec<_> = lines.iter().filter_map(|line| of_file(line)).collect();
        assert_eq!(found, [0x0100_1000, 0x011e_f000]);
    }

    #[test]
    fn each_mapping_of_this_program_gets_a_page_of_its_own() {
        hand_on().unwrap();
        let program = std::env::current_exe().unwrap();
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut own, mut seen) = (false, 0);
        for line in smaps.lines() {
            if line.split_ascii_whitespace().nth(1).is_some_and(|access| access.len() == 4 && access.ends_with('p')) {
                own = line.ends_with(program.to_str().unwrap()) && of_file(line).is_some();
            } else if own && line.starts_with("Anonymous:") {
                assert!(!line.contains(" 0 kB"), "{line}");
                seen += 1;
            }
        }
        assert!(seen >= 2, "{smaps}");
    }
}
