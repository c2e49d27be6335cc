//! System calls that are newer than a seccomp profile: ENOSYS, as from a kernel that does not know them, so that a C library
//! which tries them falls back to older ones. With what a profile refuses by default it would take that for a failure.
//!
//! As the OCI runtimes do, by instructions before the filter (classic BPF; kernel: `seccomp(2)`). The newest call of each
//! architecture is the newest the profile names.

use libseccomp::{ScmpArch, ScmpSyscall};
use nix::libc::{self, sock_filter};
use serde_json::Value;

use super::filter::{list, text};

/// Architectures by their name in a profile and their `AUDIT_ARCH_*`. `SCMP_ARCH_X32` has the latter of `SCMP_ARCH_X86_64`.
const ARCHITECTURES: [(&str, ScmpArch, u32); 5] = [
    ("SCMP_ARCH_X86_64", ScmpArch::X8664, 0xc000_003e),
    ("SCMP_ARCH_X86", ScmpArch::X86, 0x4000_0003),
    ("SCMP_ARCH_AARCH64", ScmpArch::Aarch64, 0xc000_00b7),
    ("SCMP_ARCH_ARM", ScmpArch::Arm, 0x4000_0028),
    ("SCMP_ARCH_RISCV64", ScmpArch::Riscv64, 0xc000_00f3),
];
/// From here on numbers are of other kinds: those of ARM alone, of x32, and -1 of a tracer.
const OTHERS: u32 = 0x000f_0000;

/// `seccomp_data`'s number and architecture, in bytes from its beginning.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// The newest call of each architecture that a profile names.
fn newest(profile: &Value) -> Vec<(u32, u32)> {
    // the machine's own counts always
    let listed = |name: &str, arch: ScmpArch| {
        arch == ScmpArch::native() || list(&profile["architectures"]).any(|a| text(a) == name)
    };
    let newest = |arch: ScmpArch| {
        let names = list(&profile["syscalls"]).flat_map(|call| list(&call["names"])).map(text);
        let numbers = names.filter_map(|name| ScmpSyscall::from_name_by_arch(name, arch).ok()).map(i32::from);
        // those an architecture does not have are negative
        numbers.filter_map(|number| u32::try_from(number).ok()).filter(|number| *number < OTHERS).max()
    };
    let wanted = ARCHITECTURES.into_iter().filter(|(name, arch, _)| listed(name, *arch));
    wanted.filter_map(|(_, arch, audit)| Some((audit, newest(arch)?))).collect()
}

fn step(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

/// What goes before the filter of a profile; it ends where that begins.
pub fn filter(profile: &Value) -> Vec<sock_filter> {
    let newest = newest(profile);
    let (load, jump) = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, |test: u32| libc::BPF_JMP | test | libc::BPF_K);
    let unknown = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    let mut steps = vec![step(load, 0, 0, ARCHITECTURE)];
    for (at, (audit, number)) in newest.iter().enumerate() {
        let behind = (newest.len() - at - 1) * 6;
        steps.extend([
            step(jump(libc::BPF_JEQ), 0, 5, *audit),
            step(load, 0, 0, NUMBER),
            step(jump(libc::BPF_JGE), 2, 0, OTHERS),
            step(jump(libc::BPF_JGT), 0, 1, *number),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, unknown),
            step(jump(libc::BPF_JA), 0, 0, behind as u32),
        ]);
    }
    steps
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::filter_check::{call, first_refused};
    use super::*;
    use crate::runtime::types::Seccomp;

    #[test]
    fn only_calls_newer_than_the_profile_are_unknown() {
        let profile = crate::runtime::seccomp::section(&Seccomp::RuntimeDefault, &BTreeSet::new()).unwrap().unwrap();
        let own = match std::env::consts::ARCH {
            "x86_64" => 0xc000_003e,
            "aarch64" => 0xc000_00b7,
            _ => return,
        };
        let newest = newest(&profile).into_iter().find(|(audit, _)| *audit == own).unwrap().1;
        // openat2 at least is in every libseccomp
        assert!((437..600).contains(&newest), "{newest}");
        let mut program = filter(&profile);
        program.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW));
        let passes = |number: i64| first_refused(&program, &[call(number)]).is_none();
        let newest = i64::from(newest);
        assert!(passes(0) && passes(newest) && passes(0x4000_0001) && passes(0xf_0002));
        assert!(!passes(newest + 1) && !passes(999));
        // another architecture's calls are none of it
        for step in &mut program {
            step.k = if step.k == own { 1 } else { step.k };
        }
        assert!(first_refused(&program, &[call(999)]).is_none());
    }
}
