//! `AppArmor`: whether the kernel enforces it, and the profile containers get unless their pods say otherwise.
//!
//! Only `apparmor_parser` (Debian's package apparmor) can make what the kernel loads of a profile's text. Without it
//! there is no default profile, as with other container runtimes.

use std::io::Write;
use std::process::{Command, Stdio};

/// Name of the default profile.
pub const DEFAULT_PROFILE: &str = "pikelet-default";

/// What container engines deny by `AppArmor`: mounting, what of /proc and /sys belongs to the whole machine, and processes
/// that are not confined in the same way.
const DEFAULT_TEXT: &str = "
profile pikelet-default flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,
  unix,
  signal (receive) peer=unconfined,
  signal (send, receive) peer=pikelet-default,
  ptrace (trace, read, tracedby, readby) peer=pikelet-default,
  deny mount,
  deny /proc/{kcore,sysrq-trigger} rwklx,
  deny /proc/{acpi,asound,bus,driver,fs,irq,scsi,sys/fs,sys/vm}/** wkl,
  deny /sys/{block,bus,class,dev,devices,hypervisor,kernel,module,power}/** wklx,
  deny /sys/{firmware,kernel/security}/** rwklx,
}
";

/// What this machine can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppArmor {
    /// The kernel has none, or it is off.
    Off,
    /// Profiles that are loaded are enforced, and there is no default one; says why.
    NoDefault(String),
    /// The default profile is loaded.
    Ready,
}

/// Finds out, and loads the default profile into the kernel. One of an earlier start is replaced.
pub fn prepare() -> AppArmor {
    if super::line("/sys/module/apparmor/parameters/enabled").is_none_or(|enabled| enabled != "Y") {
        return AppArmor::Off;
    }
    load(DEFAULT_TEXT).map_or_else(AppArmor::NoDefault, |()| AppArmor::Ready)
}

fn load(text: &str) -> Result<(), String> {
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => {
            "there is no apparmor_parser to load a profile with; install the package apparmor".to_owned()
        }
        _ => format!("running apparmor_parser: {e}"),
    };
    let mut command = Command::new("apparmor_parser");
    // replace, and neither read nor write a cache
    command.args(["--replace", "--skip-cache"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut parser = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = parser.stdin.take() {
        // one that ends early says why
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = parser.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("apparmor_parser: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
