//! What a seccomp filter would answer, found without asking the kernel: an interpreter of the classic BPF that filters
//! are made of (kernel: "Linux Socket Filtering", `seccomp(2)`).

use libseccomp::ScmpSyscall;
use nix::libc::{self, sock_filter};

/// A system call with its arguments.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Its number on this architecture.
    pub number: libc::c_long,
    /// All six, unused ones 0.
    pub arguments: [u64; 6],
}

/// A call without arguments that a filter would look at.
pub const fn call(number: libc::c_long) -> Call {
    Call { number, arguments: [0; 6] }
}

/// `AUDIT_ARCH_*` of this program; 0 where that is not known here.
const ARCHITECTURE: u32 = if cfg!(target_arch = "x86_64") {
    0xc000_003e
} else if cfg!(target_arch = "aarch64") {
    0xc000_00b7
} else if cfg!(target_arch = "arm") {
    0x4000_0028
} else if cfg!(target_arch = "riscv64") {
    0xc000_00f3
} else {
    0
};
/// `SECCOMP_RET_ALLOW` and `SECCOMP_RET_LOG`, without their data.
const ALLOWED: [u32; 2] = [0x7fff_0000, 0x7ffc_0000];

/// The first of `calls` that `program` does not let pass; of one with operations that are not known here, the first.
pub fn first_refused<'a>(program: &[sock_filter], calls: &'a [Call]) -> Option<&'a Call> {
    calls.iter().find(|call| !answer(program, call).is_some_and(|a| ARCHITECTURE != 0 && ALLOWED.contains(&a)))
}

/// Why a filter that refuses `call` cannot be had.
pub fn refusal(call: &Call) -> String {
    let name = ScmpSyscall::from(call.number as i32).get_name().unwrap_or_else(|_| call.number.to_string());
    format!(
        "the seccomp profile refuses {name}, which is called behind it before the program runs: allow it, or set \
         allowPrivilegeEscalation: false"
    )
}

fn answer(program: &[sock_filter], call: &Call) -> Option<u32> {
    // struct seccomp_data as 32 bit words: number, architecture, instruction pointer, arguments
    let mut data = [0_u32; 16];
    (data[0], data[1]) = (u32::try_from(call.number).ok()?, ARCHITECTURE);
    for (number, argument) in call.arguments.iter().enumerate() {
        let (low, high) = if cfg!(target_endian = "little") { (0, 1) } else { (1, 0) };
        data[4 + 2 * number + low] = *argument as u32;
        data[4 + 2 * number + high] = (*argument >> 32) as u32;
    }
    let (mut accumulator, mut index, mut memory) = (0_u32, 0_u32, [0_u32; 16]);
    let mut at = 0_usize;
    // jumps go forward only, so each instruction runs at most once
    loop {
        let &sock_filter { code, jt, jf, k } = program.get(at)?;
        at += 1;
        let operand = if code & 0x08 == 0 { k } else { index };
        let jump = |condition: bool| usize::from(if condition { jt } else { jf });
        match code {
            0x20 => accumulator = *data.get(usize::try_from(k).ok()?.checked_div(4)?).filter(|_| k % 4 == 0)?,
            0x00 => accumulator = k,
            0x01 => index = k,
            0x60 => accumulator = *memory.get(k as usize)?,
            0x61 => index = *memory.get(k as usize)?,
            0x02 => *memory.get_mut(k as usize)? = accumulator,
            0x03 => *memory.get_mut(k as usize)? = index,
            0x07 => index = accumulator,
            0x87 => accumulator = index,
            0x04 | 0x0c => accumulator = accumulator.wrapping_add(operand),
            0x14 | 0x1c => accumulator = accumulator.wrapping_sub(operand),
            0x44 | 0x4c => accumulator |= operand,
            0x54 | 0x5c => accumulator &= operand,
            0xa4 | 0xac => accumulator ^= operand,
            0x64 | 0x6c => accumulator = accumulator.checked_shl(operand).unwrap_or(0),
            0x74 | 0x7c => accumulator = accumulator.checked_shr(operand).unwrap_or(0),
            0x05 => at = at.checked_add(k as usize)?,
            0x15 | 0x1d => at += jump(accumulator == operand),
            0x25 | 0x2d => at += jump(accumulator > operand),
            0x35 | 0x3d => at += jump(accumulator >= operand),
            0x45 | 0x4d => at += jump(accumulator & operand != 0),
            0x06 => return Some(k & 0xffff_0000),
            0x16 => return Some(accumulator & 0xffff_0000),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn step(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
        sock_filter { code, jt, jf, k }
    }

    #[test]
    fn answers_are_those_of_the_kernel() {
        // write is refused; clone is if it makes a user namespace; the rest may be
        let program = [
            step(0x20, 0, 0, 4),
            step(0x15, 1, 0, ARCHITECTURE),
            step(0x06, 0, 0, 0x8000_0000),
            step(0x20, 0, 0, 0),
            step(0x15, 4, 0, libc::SYS_write as u32),
            step(0x15, 0, 2, libc::SYS_clone as u32),
            step(0x20, 0, 0, 16),
            step(0x45, 1, 0, libc::CLONE_NEWUSER as u32),
            step(0x06, 0, 0, 0x7fff_0000),
            step(0x06, 0, 0, 0x0005_0001),
        ];
        let clone = |flags: i32| Call { number: libc::SYS_clone, arguments: [flags as u64, 0, 0, 0, 0, 0] };
        let refused = |program: &[sock_filter], calls: &[Call]| first_refused(program, calls).map(|call| call.number);
        assert_eq!(refused(&program, &[call(libc::SYS_read), clone(libc::CLONE_VM)]), None);
        assert_eq!(refused(&program, &[call(libc::SYS_read), call(libc::SYS_write)]), Some(libc::SYS_write));
        assert_eq!(refused(&program, &[clone(libc::CLONE_NEWUSER | libc::CLONE_VM)]), Some(libc::SYS_clone));
        let read = [call(libc::SYS_read)];
        assert!(refused(&[step(0x20, 0, 0, 0)], &read).is_some(), "runs off its end");
        assert!(refused(&[step(0xff, 0, 0, 0)], &read).is_some(), "unknown");
        assert_eq!(refused(&[step(0x06, 0, 0, 0x7ffc_0000)], &read), None, "logged, and let through");
    }
}
