//! The shim's own process, and that of a maker.

use std::fs;
use std::io;

use pathrs::procfs::ProcfsHandle;

use super::setup::context;

use crate::files;

const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";

/// What stays the same of it.
pub struct Process {
    oom_score: i32,
    /// Bit set of the capabilities it may hand on.
    pub capabilities: u64,
}

impl Process {
    /// The calling one.
    pub fn own() -> Result<Self, String> {
        let score = fs::read_to_string(OOM_SCORE_ADJ).map_err(context("reading the shim's oom_score_adj"))?;
        let oom_score = score.trim().parse().map_err(context("reading the shim's oom_score_adj"))?;
        let capabilities = bounding_set().map_err(context("reading own capabilities"))?;
        // pathrs keeps it, and the processes libcontainer forks find it: else each container would mount one for itself
        if let Err(e) = ProcfsHandle::new() {
            tracing::warn!("opening a /proc for libcontainer: {e}; containers start more slowly");
        }
        // asked of the processor once, which a virtual machine's host answers, rather than by each process that is forked
        #[cfg(target_arch = "x86_64")]
        std::hint::black_box(std::arch::is_x86_feature_detected!("avx2"));
        Ok(Self { oom_score, capabilities })
    }

    /// Sets the score of the calling process, a maker, or leaves the shim's: lowering it takes `CAP_SYS_RESOURCE`, and
    /// libcontainer gives up without it. Returns what it is now.
    pub fn set_oom_score(&self, wanted: i32) -> i32 {
        match files::set(OOM_SCORE_ADJ, wanted.to_string()) {
            Ok(()) => wanted,
            Err(e) => {
                let own = self.oom_score;
                tracing::warn!("oom_score_adj {wanted}: {e}; using {own} (lowering it takes CAP_SYS_RESOURCE)");
                own
            }
        }
    }
}

fn bounding_set() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let set = status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("CapBnd:")?.trim(), 16).ok());
    set.ok_or_else(|| io::Error::other("no CapBnd in /proc/self/status"))
}
