//! Seccomp filters as the kernel takes them (`seccomp(2)`).
//!
//! To compile one takes longer than all else a container's start does. So what was compiled is kept below the state
//! directory, which is memory and ends with the machine, by the digest of its profile: most pods have the same.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall, ScmpVersion};
use nix::errno::Errno;
use nix::libc;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::newer;
use super::setup::context;
use crate::errors::causes;
use crate::files;
use crate::hex::hex;

/// In a container's directory.
const FILE: &str = "seccomp.bpf";
/// Most filters that are kept; profiles of a node are few.
const MOST: usize = 64;
/// Size of `struct sock_filter`, and of the flags before the first.
const INSTRUCTION: usize = 8;

/// Changes when another filter is made of the same profile.
const COMPILER: u32 = 2;

/// A compiled filter.
#[derive(Clone)]
pub struct Filter {
    flags: u32,
    program: Vec<libc::sock_filter>,
}

impl Filter {
    /// The filter of `profile` (the seccomp part of an OCI configuration), compiled unless `kept` has it, and put into
    /// `bundle` for [`Filter::of`].
    pub fn prepare(profile: &Value, kept: &Path, bundle: &Path) -> Result<Self, String> {
        let failed = context("keeping the seccomp filter");
        let version = ScmpVersion::current().map_err(context("asking for the version of libseccomp"))?;
        let digest = Sha256::digest(format!("{version:?} {COMPILER} {profile}"));
        let (known, own) = (kept.join(hex(&digest)), bundle.join(FILE));
        match fs::hard_link(&known, &own) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {
                compile(profile, &own).map_err(|e| format!("compiling the seccomp filter: {e}"))?;
                make_room(kept).map_err(&failed)?;
                match fs::hard_link(&own, &known) {
                    // another shim was there first
                    Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(failed(e)),
                    _ => {}
                }
            }
            Err(e) => return Err(failed(e)),
        }
        Self::of(bundle)?.ok_or_else(|| "keeping the seccomp filter: it is gone again".to_owned())
    }

    /// The filter of the container in `bundle`; `None` for an unconfined one.
    pub fn of(bundle: &Path) -> Result<Option<Self>, String> {
        let bytes = match fs::read(bundle.join(FILE)) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            read => read.map_err(context("reading the seccomp filter"))?,
        };
        let (flags, rest) = bytes.split_first_chunk().ok_or("reading the seccomp filter: it is cut off")?;
        let program = rest.as_chunks::<INSTRUCTION>().0.iter().map(|&[a, b, jt, jf, k @ ..]| libc::sock_filter {
            code: u16::from_ne_bytes([a, b]),
            jt,
            jf,
            k: u32::from_ne_bytes(k),
        });
        Ok(Some(Self { flags: u64::from_ne_bytes(*flags) as u32, program: program.collect() }))
    }

    /// Its instructions.
    pub fn program(&self) -> &[libc::sock_filter] {
        &self.program
    }

    /// As `seccomp(2)` takes it, good as long as the filter lives.
    pub fn parts(&mut self) -> (libc::sock_fprog, libc::c_ulong) {
        // the kernel takes less than that, and says so
        let len = u16::try_from(self.program.len()).unwrap_or(u16::MAX);
        (libc::sock_fprog { len, filter: self.program.as_mut_ptr() }, libc::c_ulong::from(self.flags))
    }

    /// Confines the calling process, for ever. Takes `no_new_privs` or `CAP_SYS_ADMIN`.
    pub fn load(&mut self) -> io::Result<()> {
        let (program, flags) = self.parts();
        // SAFETY: `program` names as many instructions as there are, and both live until the kernel has copied them.
        let done = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, std::ptr::from_ref(&program))
        };
        Errno::result(done).map(drop).map_err(io::Error::from)
    }
}

/// Forgets all filters when there are too many. Containers have links of their own.
fn make_room(kept: &Path) -> io::Result<()> {
    files::dir(kept, 0o700)?;
    let files: Vec<PathBuf> = fs::read_dir(kept)?.flatten().map(|e| e.path()).collect();
    if files.len() >= MOST {
        // other shims may be doing the same
        for file in files {
            let _ = fs::remove_file(file);
        }
    }
    Ok(())
}

fn compile(profile: &Value, file: &Path) -> Result<(), String> {
    let failed = |what: String| move |e: libseccomp::error::SeccompError| format!("{what}: {}", causes(&e));
    let action = |name: &Value, number: &Value| {
        let number = number.as_i64().map_or(libc::EPERM, |n| n as i32);
        ScmpAction::from_str(text(name), Some(number)).map_err(failed(format!("action {name}")))
    };
    let default = action(&profile["defaultAction"], &profile["defaultErrnoRet"])?;
    let mut filter = ScmpFilterContext::new(default).map_err(failed("starting it".into()))?;
    for name in list(&profile["architectures"]) {
        let known = ScmpArch::from_str(text(name)).and_then(|a| filter.add_arch(a).map(drop));
        known.map_err(failed(format!("architecture {name}")))?;
    }
    for call in list(&profile["syscalls"]) {
        let action = action(&call["action"], &call["errnoRet"])?;
        let comparisons: Vec<ScmpArgCompare> = list(&call["args"]).map(comparison).collect::<Result<_, _>>()?;
        // a rule compares an argument once; several comparisons of one are rules of their own, as with other runtimes
        let arguments: BTreeSet<_> = list(&call["args"]).map(|a| a["index"].as_u64()).collect();
        let size = if arguments.len() < comparisons.len() { 1 } else { comparisons.len() };
        // calls that libseccomp does not know are answered by default
        let known = list(&call["names"]).filter_map(|name| ScmpSyscall::from_name(text(name)).ok());
        for number in known.filter(|_| action != default) {
            let rules = comparisons.chunks(size.max(1));
            let added = if comparisons.is_empty() {
                filter.add_rule(action, number).map(drop)
            } else {
                rules.into_iter().try_for_each(|rule| filter.add_rule_conditional(action, number, rule).map(drop))
            };
            added.map_err(failed(format!("rule {call}")))?;
        }
    }
    // those that concern other threads and listeners have no meaning here
    let flag = |name: &Value| match text(name) {
        "SECCOMP_FILTER_FLAG_LOG" => libc::SECCOMP_FILTER_FLAG_LOG,
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        _ => 0,
    };
    let flags = list(&profile["flags"]).map(flag).fold(0, |all, flag| all | flag) as u32;
    let mut out = files::create(file, 0o600).map_err(|e| format!("{}: {e}", file.display()))?;
    let mut head = u64::from(flags).to_ne_bytes().to_vec();
    if matches!(default, ScmpAction::Errno(_) | ScmpAction::KillThread | ScmpAction::KillProcess | ScmpAction::Trap) {
        head.extend(newer::filter(profile).iter().flat_map(|step| {
            let k = step.k.to_ne_bytes();
            [&step.code.to_ne_bytes()[..], &[step.jt, step.jf], &k].concat()
        }));
    }
    io::Write::write_all(&mut out, &head).map_err(|e| format!("{}: {e}", file.display()))?;
    filter.export_bpf(&out).map_err(failed(format!("writing it to {}", file.display())))
}

fn comparison(of: &Value) -> Result<ScmpArgCompare, String> {
    let number = |name: &str| of[name].as_u64().unwrap_or(0);
    // OCI, after libseccomp: `value` is the mask, and `valueTwo` what is to be left under it
    let (operator, datum) = match text(&of["op"]) {
        "SCMP_CMP_NE" => (ScmpCompareOp::NotEqual, number("value")),
        "SCMP_CMP_LT" => (ScmpCompareOp::Less, number("value")),
        "SCMP_CMP_LE" => (ScmpCompareOp::LessOrEqual, number("value")),
        "SCMP_CMP_EQ" => (ScmpCompareOp::Equal, number("value")),
        "SCMP_CMP_GE" => (ScmpCompareOp::GreaterEqual, number("value")),
        "SCMP_CMP_GT" => (ScmpCompareOp::Greater, number("value")),
        "SCMP_CMP_MASKED_EQ" => (ScmpCompareOp::MaskedEqual(number("value")), number("valueTwo")),
        _ => return Err(format!("operator {}: there is no such", of["op"])),
    };
    let index = u32::try_from(number("index")).ok().filter(|i| *i < 6);
    let index = index.ok_or_else(|| format!("argument {}: there are six, from 0", of["index"]))?;
    Ok(ScmpArgCompare::new(index, operator, datum))
}

pub(super) fn text(of: &Value) -> &str {
    of.as_str().unwrap_or_default()
}

pub(super) fn list(of: &Value) -> impl Iterator<Item = &Value> {
    of.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_profile_is_compiled_once_and_few_are_kept() {
        let dir = std::env::temp_dir().join(format!("pikelet-filter-{}", std::process::id()));
        let kept = dir.join("kept");
        let prepare = |bundle: &str, profile: &Value| {
            fs::create_dir_all(dir.join(bundle)).unwrap();
            Filter::prepare(profile, &kept, &dir.join(bundle))
        };
        let profile = |errno: u32| {
            json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [{"names": ["mkdir", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno}]})
        };
        let first = prepare("a", &profile(1)).unwrap();
        assert!(first.program.len() > 3 && first.flags == libc::SECCOMP_FILTER_FLAG_LOG as u32);
        // a mark that only the kept file has
        let file = fs::read_dir(&kept).unwrap().flatten().next().unwrap().path();
        let mut marked = fs::read(&file).unwrap();
        marked.extend([0; 8]);
        fs::write(&file, marked).unwrap();
        assert_eq!(prepare("b", &profile(1)).unwrap().program.len(), first.program.len() + 1);
        for errno in 2..MOST as u32 + 10 {
            prepare(&format!("c{errno}"), &profile(errno)).unwrap();
        }
        assert!(fs::read_dir(&kept).unwrap().count() <= MOST);
        assert!(Filter::of(&dir.join("a")).unwrap().is_some());
        assert!(Filter::of(&dir.join("none")).unwrap().is_none());
        let bad = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_ABACUS"]});
        assert!(prepare("d", &bad).err().unwrap().contains("SCMP_ARCH_ABACUS"));
        fs::remove_dir_all(dir).unwrap();
    }
}
