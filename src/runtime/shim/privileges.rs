//! Who a process is and what it may do: users, groups and capabilities, by the system calls themselves.
#![allow(unsafe_code)]

use std::io;

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use serde::Deserialize;

use crate::runtime::spec::capability_number;

/// `CAP_SYS_ADMIN`, as a set.
pub const SYS_ADMIN: u64 = 1 << 21;
/// `_LINUX_CAPABILITY_VERSION_3`: sets of 64.
const VERSION: u32 = 0x2008_0522;

/// The capabilities of an OCI configuration, by name.
#[derive(Deserialize)]
pub struct Named {
    bounding: Vec<String>,
    permitted: Vec<String>,
    effective: Vec<String>,
}

/// The same as sets of bits. Programs here have no inheritable or ambient ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sets {
    /// What can ever be had.
    pub bounding: u64,
    /// What may be used.
    pub permitted: u64,
    /// What is used.
    pub effective: u64,
}

impl TryFrom<&Named> for Sets {
    type Error = String;

    fn try_from(named: &Named) -> Result<Self, String> {
        let set = |names: &Vec<String>| {
            names.iter().try_fold(0, |set, name| {
                let number = capability_number(name).ok_or_else(|| format!("unknown capability {name:?}"))?;
                Ok::<_, String>(set | 1_u64 << number)
            })
        };
        Ok(Self {
            bounding: set(&named.bounding)?,
            permitted: set(&named.permitted)?,
            effective: set(&named.effective)?,
        })
    }
}

/// Takes all but `kept` from the bounding set. Takes `CAP_SETPCAP`.
pub fn bound(kept: u64) -> io::Result<()> {
    for number in (0..64).filter(|number| kept >> number & 1 == 0) {
        // SAFETY: prctl only takes numbers here.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number as libc::c_ulong, 0, 0, 0) };
        match Errno::result(dropped) {
            // the kernel has no more of them
            Err(Errno::EINVAL) => return Ok(()),
            other => other?,
        };
    }
    Ok(())
}

/// Becomes a user with exactly these groups, whatever was inherited, and keeps the permitted capabilities.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    setgroups(&groups.iter().map(|&group| Gid::from_raw(group)).collect::<Vec<_>>())?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    nix::sys::prctl::set_keepcaps(true)?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    nix::sys::prctl::set_keepcaps(false)?;
    Ok(())
}

/// Sets what may be and what is used; none is inherited by programs.
pub fn set(permitted: u64, effective: u64) -> nix::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header = Header { version: VERSION, pid: 0 };
    let part = |shift: u32| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: 0,
    };
    let data = [part(0), part(32)];
    // SAFETY: both live through the call and are as large as the version says.
    let set = unsafe { libc::syscall(libc::SYS_capset, std::ptr::from_ref(&header), data.as_ptr()) };
    Errno::result(set).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_sets() {
        let names = |list: &[&str]| list.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        let named = Named {
            bounding: names(&["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE"]),
            permitted: names(&["CAP_SYS_ADMIN"]),
            effective: Vec::new(),
        };
        let sets = Sets::try_from(&named).unwrap();
        assert_eq!(sets, Sets { bounding: 1 | SYS_ADMIN | 1 << 40, permitted: SYS_ADMIN, effective: 0 });
        let unknown = Named { bounding: names(&["CAP_FLY"]), permitted: Vec::new(), effective: Vec::new() };
        assert!(Sets::try_from(&unknown).unwrap_err().contains("CAP_FLY"));
    }
}
