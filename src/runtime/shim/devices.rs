//! Device access on cgroup version 2: a BPF program on the container's cgroup, made from its OCI device rules.
//!
//! Version 1 has files for them, which libcontainer writes. On version 2 the kernel asks a program at every `mknod` and
//! `open` of a device (kernel: cgroup-v2 "Device controller", `bpf(2)`). Attached to a cgroup it stays as long as that.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use libcontainer::oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use serde::Deserialize;
use serde_json::Value;

use super::bpf::{Instruction, attach, load};
use super::setup::context;
use crate::runtime::cgroup::Hierarchies;

/// Kinds of access as the kernel names them to the program (`BPF_DEVCG_ACC_*`), by their letters in rules.
const ACCESS: [(char, i32); 3] = [('m', MAKE), ('r', READ), ('w', WRITE)];
const MAKE: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
/// Kinds of devices (`BPF_DEVCG_DEV_*`).
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

/// The registers of the program: `RESULT` is its answer (1 allows), `CONTEXT` what it is given.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const MAJOR: u8 = 3;
const MINOR: u8 = 4;
/// The access that no rule has allowed yet.
const WANTED: u8 = 5;
const SCRATCH: u8 = 6;

/// Operations, 32 bit wide, with a number rather than a second register (`BPF_K`) unless they end in `_REGISTER`.
const LOAD: u8 = 0x61;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP: u8 = 0x05;
/// 64 bit wide comparisons: those of 32 bits are younger, and all values here are zero-extended.
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

const fn with(operation: u8, register: u8, number: i32) -> Instruction {
    Instruction { operation, registers: register, offset: 0, number }
}

/// What every container may do (the set of runc and crun): make any node, and use those each container has of its own. It
/// falls off the end when that does not decide. Nothing is asked twice, which the kernel's verifier would follow up.
fn defaults() -> Vec<Instruction> {
    // where these jumps go is known when all is written
    const ALLOW: i16 = -1;
    const END: i16 = -2;
    // null, zero, full, random and urandom; tty, console and ptmx; all of pts
    let own: [(i32, &[i32]); 3] = [(1, &[3, 5, 7, 8, 9]), (5, &[0, 1, 2]), (136, &[])];
    let jump = |operation, register, number, offset| Instruction { offset, ..with(operation, register, number) };
    let mut out = vec![with(AND, WANTED, READ | WRITE), jump(JUMP_EQUAL, WANTED, 0, ALLOW)];
    out.push(jump(JUMP_NOT_EQUAL, KIND, CHARACTER, END));
    for (major, minors) in own {
        out.push(jump(JUMP_NOT_EQUAL, MAJOR, major, minors.len() as i16 + 1));
        out.extend(minors.iter().map(|&minor| jump(JUMP_EQUAL, MINOR, minor, ALLOW)));
        out.push(jump(JUMP, 0, 0, if minors.is_empty() { ALLOW } else { END }));
    }
    out.push(jump(JUMP, 0, 0, END));
    let length = out.len();
    for (at, instruction) in out.iter_mut().enumerate() {
        let behind = (length - at - 1) as i16;
        match instruction.offset {
            ALLOW => instruction.offset = behind,
            END => instruction.offset = behind + 2,
            _ => {}
        }
    }
    out.extend([with(MOVE, RESULT, 1), with(EXIT, 0, 0)]);
    out
}

/// An OCI rule in the kernel's numbers; `None` stands for any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

impl Rule {
    fn from_oci(rule: &LinuxDeviceCgroup) -> Result<Self, String> {
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => None,
            LinuxDeviceType::B => Some(BLOCK),
            LinuxDeviceType::C | LinuxDeviceType::U => Some(CHARACTER),
            LinuxDeviceType::P => return Err(format!("device rule {rule}: a pipe is no device; use a, b or c")),
        };
        let number = |n: Option<i64>| match n {
            // OCI: -1 is any
            None | Some(-1) => Ok(None),
            Some(n) => i32::try_from(n).map(Some).map_err(|_| format!("device rule {rule}: {n} is no device number")),
        };
        let letters = rule.access().as_deref().unwrap_or("rwm");
        let access = ACCESS.iter().filter(|(letter, _)| letters.contains(*letter)).map(|(_, bit)| bit).sum();
        Ok(Self { allow: rule.allow(), kind, major: number(rule.major())?, minor: number(rule.minor())?, access })
    }

    fn everything(&self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none() && self.access == 7
    }

    /// What a program does about this rule: it falls off the end when the rule does not decide.
    fn instructions(&self) -> Vec<Instruction> {
        let mut out = Vec::new();
        for (register, value) in [(KIND, self.kind), (MAJOR, self.major), (MINOR, self.minor)] {
            out.extend(value.map(|value| with(JUMP_NOT_EQUAL, register, value)));
        }
        if self.allow {
            out.extend([with(AND, WANTED, 7 & !self.access), with(JUMP_NOT_EQUAL, WANTED, 0)]);
        } else {
            let copy = Instruction { registers: SCRATCH | WANTED << 4, ..with(MOVE_REGISTER, 0, 0) };
            out.extend([copy, with(AND, SCRATCH, self.access), with(JUMP_EQUAL, SCRATCH, 0)]);
        }
        out.extend([with(MOVE, RESULT, self.allow.into()), with(EXIT, 0, 0)]);
        let length = out.len();
        for (at, instruction) in out.iter_mut().enumerate() {
            if matches!(instruction.operation, JUMP_EQUAL | JUMP_NOT_EQUAL) {
                instruction.offset = (length - at - 1) as i16;
            }
        }
        out
    }
}

/// The program for OCI rules, of which the last that fits decides, and the defaults; `None` when all is allowed anyway.
fn program(rules: &[LinuxDeviceCgroup]) -> Result<Option<Vec<Instruction>>, String> {
    let mut latest_first: Vec<Rule> = rules.iter().map(Rule::from_oci).collect::<Result<_, _>>()?;
    latest_first.reverse();
    // what is older than a rule for everything has no say
    if let Some(last) = latest_first.iter().position(Rule::everything) {
        latest_first.truncate(last + 1);
    }
    if latest_first.first().is_some_and(|first| first.allow && first.everything()) {
        return Ok(None);
    }
    let load = |register: u8, offset| Instruction { offset, ..with(LOAD, register | CONTEXT << 4, 0) };
    // `struct bpf_cgroup_dev_ctx`: access in the upper half of the first word, kind of device in the lower
    let mut out = vec![
        load(KIND, 0),
        Instruction { registers: WANTED | KIND << 4, ..with(MOVE_REGISTER, 0, 0) },
        with(SHIFT_RIGHT, WANTED, 16),
        with(AND, KIND, 0xffff),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    // the defaults come on top, as on version 1
    out.extend(defaults());
    out.extend(latest_first.into_iter().flat_map(|rule| rule.instructions()));
    out.extend([with(MOVE, RESULT, 0), with(EXIT, 0, 0)]);
    Ok(Some(out))
}

/// The program of the latest container. The kernel takes as long to check one as all else about a container's cgroup takes,
/// and a pod's containers mostly have the same.
#[derive(Default)]
pub struct DeviceProgram(Option<(Vec<Instruction>, OwnedFd)>);

impl DeviceProgram {
    /// On version 2, limits the cgroup `path` to the devices that the OCI configuration and the defaults allow. To be called
    /// before any process is in it. libcontainer would ignore those rules.
    pub fn restrict(&mut self, hierarchies: &Hierarchies, path: &str, config: &Value) -> Result<(), String> {
        if !hierarchies.unified() {
            return Ok(());
        }
        let rules = Vec::deserialize(&config["linux"]["resources"]["devices"]);
        let rules: Vec<LinuxDeviceCgroup> = rules.map_err(context("reading the device rules"))?;
        let Some(program) = program(&rules)? else { return Ok(()) };
        for dir in hierarchies.dirs(path) {
            let attached = File::open(&dir).and_then(|cgroup| attach(self.loaded(&program)?, &cgroup));
            attached.map_err(|e| refused(&dir, &e))?;
        }
        Ok(())
    }

    fn loaded(&mut self, program: &[Instruction]) -> io::Result<&OwnedFd> {
        let known = self.0.take_if(|(instructions, _)| instructions == program);
        let loaded = match known {
            Some(loaded) => loaded,
            None => (program.to_vec(), load(program)?),
        };
        Ok(&self.0.insert(loaded).1)
    }
}

/// On version 1 libcgroups lets every container use `/dev/net/tun`: takes that away again, but for the permissions that were
/// granted. To be called before the program runs.
pub fn settle_tun(hierarchies: &Hierarchies, path: &str, granted: Option<&str>) -> Result<(), String> {
    let Some(dir) = hierarchies.dir_of("devices", path).filter(|_| !hierarchies.unified()) else { return Ok(()) };
    let set = |file: &str, permissions: &str| {
        let written = crate::files::set(dir.join(file), format!("c 10:200 {permissions}"));
        written.map_err(context("limiting the container's devices"))
    };
    set("devices.deny", "rwm")?;
    granted.map_or(Ok(()), |permissions| set("devices.allow", permissions))
}

fn refused(dir: &Path, e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(libc::ENOSYS | libc::EINVAL) => format!(
            "limiting the container's devices: {e}: this kernel has no BPF programs for cgroups, and without them a \
             container could use every device of the host; use a kernel with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF, \
             or cgroup version 1"
        ),
        _ => format!("limiting the container's devices by a BPF program on {}: {e}", dir.display()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules(rules: Value) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_value(rules).unwrap()
    }

    /// What the kernel would do: only the operations used, and no way to go on behind the end.
    fn run(program: &[Instruction], access: i32, kind: i32, major: i32, minor: i32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_i32; 11];
        let mut at = 0;
        loop {
            let Instruction { operation, registers: both, offset, number } = program[at];
            let (target, source) = (usize::from(both & 15), usize::from(both >> 4));
            at += 1;
            match operation {
                LOAD => registers[target] = context[offset as usize / 4],
                MOVE => registers[target] = number,
                MOVE_REGISTER => registers[target] = registers[source],
                AND => registers[target] &= number,
                SHIFT_RIGHT => registers[target] >>= number,
                JUMP_EQUAL | JUMP_NOT_EQUAL => {
                    if (registers[target] == number) == (operation == JUMP_EQUAL) {
                        at += usize::try_from(offset).unwrap();
                    }
                }
                JUMP => at += usize::try_from(offset).unwrap(),
                EXIT => return registers[0] == 1,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    #[test]
    fn a_container_has_the_usual_devices_only() {
        let program = program(&rules(json!([{ "allow": false, "access": "rwm" }]))).unwrap().unwrap();
        let may = |access, kind, major, minor| run(&program, access, kind, major, minor);
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, 0), (136, 77)] {
            assert!(may(READ | WRITE, CHARACTER, major, minor), "{major}:{minor}");
            assert!(may(MAKE, CHARACTER, major, minor));
            assert!(!may(READ, BLOCK, major, minor), "block {major}:{minor}");
        }
        // kmsg, mem, a serial line, a disk: may be made, not used
        for (kind, major, minor) in [(CHARACTER, 1, 11), (CHARACTER, 1, 1), (CHARACTER, 4, 64), (BLOCK, 8, 0)] {
            assert!(may(MAKE, kind, major, minor));
            for access in [READ, WRITE, READ | WRITE, READ | MAKE] {
                assert!(!may(access, kind, major, minor), "{kind} {major}:{minor} {access}");
            }
        }
    }

    #[test]
    fn the_last_rule_that_fits_decides() {
        let program = program(&rules(json!([
            { "allow": true, "access": "rwm" },
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 10, "minor": 229, "access": "r" },
            { "allow": true, "type": "c", "major": 10, "access": "w" },
            { "allow": false, "type": "c", "major": 10, "minor": 1, "access": "w" },
            { "allow": true, "type": "b", "major": 8, "minor": -1 },
        ])));
        let program = program.unwrap().unwrap();
        let may = |access, kind, major, minor| run(&program, access, kind, major, minor);
        // allowed by two rules together
        assert!(may(READ | WRITE, CHARACTER, 10, 229));
        assert!(may(WRITE, CHARACTER, 10, 2) && !may(READ, CHARACTER, 10, 2) && !may(READ | WRITE, CHARACTER, 10, 2));
        assert!(!may(WRITE, CHARACTER, 10, 1));
        assert!(may(READ | WRITE, BLOCK, 8, 3) && !may(READ, BLOCK, 9, 3));
    }

    #[test]
    fn privileged_needs_no_program() {
        assert_eq!(program(&rules(json!([{ "allow": true, "access": "rwm" }]))), Ok(None));
        let both = json!([{ "allow": false, "access": "rwm" }, { "allow": true, "type": "a" }]);
        assert_eq!(program(&rules(both)), Ok(None));
        assert!(program(&[]).unwrap().is_some(), "nothing is allowed that is not said");
        assert!(program(&rules(json!([{ "allow": true, "type": "p" }]))).unwrap_err().contains("pipe"));
    }

    #[test]
    fn a_kernel_without_bpf_is_named() {
        for code in [libc::ENOSYS, libc::EINVAL] {
            let text = refused(Path::new("/c"), &io::Error::from_raw_os_error(code));
            assert!(text.contains("CONFIG_CGROUP_BPF"), "{text}");
        }
        assert!(refused(Path::new("/c"), &io::Error::from_raw_os_error(libc::EPERM)).contains("/c"));
    }
}
