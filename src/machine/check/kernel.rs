//! What the running kernel was built with: its options, its modules, and what a container needs of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

use super::{Finding, read};

/// Most bytes read of a kernel's options; they are a quarter of a MiB.
const MAX_CONFIG: u64 = 4 << 20;
/// `openat2` came with it, and without that a path of an image could lead out of it.
const OLDEST: (u32, u32) = (5, 6);

/// Whether the kernel has something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It is there.
    Present,
    /// It is loaded when it is needed.
    Loadable,
    /// A module that is not on this machine.
    NotInstalled,
    /// Left out when the kernel was built.
    Absent,
    /// The kernel does not say what it was built with.
    Unknown,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    /// Options by their names without `CONFIG_`; `None` when they cannot be read.
    config: Option<BTreeMap<String, char>>,
    /// Modules built in, and those on disk.
    builtin: BTreeSet<String>,
    installed: BTreeSet<String>,
    loaded: BTreeSet<String>,
}

/// The options of a kernel's `.config`: `y` or `m` for each that is on.
fn options(text: &str) -> BTreeMap<String, char> {
    let option = |line: &str| {
        let (name, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
        Some((name.to_owned(), value.chars().next().filter(|c| matches!(c, 'y' | 'm'))?))
    };
    text.lines().filter_map(option).collect()
}

/// The modules of `modules.builtin` or `modules.dep`: the file names, as the kernel writes them.
fn modules(text: &str) -> BTreeSet<String> {
    let module = |line: &str| {
        let name = line.split(':').next()?.rsplit('/').next()?;
        Some(name.split_once(".ko")?.0.replace('-', "_"))
    };
    text.lines().filter_map(module).collect()
}

fn config(root: &Path, release: &str) -> Option<BTreeMap<String, char>> {
    let mut text = String::new();
    if let Ok(file) = fs::File::open(root.join("proc/config.gz")) {
        GzDecoder::new(file).take(MAX_CONFIG).read_to_string(&mut text).ok()?;
    } else {
        let file = root.join(format!("boot/config-{release}"));
        fs::File::open(file).ok()?.take(MAX_CONFIG).read_to_string(&mut text).ok()?;
    }
    Some(options(&text)).filter(|o| !o.is_empty())
}

impl Kernel {
    /// A kernel of these options, with the modules of this `modules.dep`.
    #[cfg(test)]
    pub fn of(config: &str, installed: &str) -> Self {
        Self { config: Some(options(config)), installed: modules(installed), ..Self::default() }
    }

    /// Reads what the kernel tells; `root` is where `/proc`, `/boot` and `/lib` lie.
    pub fn read(root: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let release = read("proc/sys/kernel/osrelease").trim().to_owned();
        let folder = format!("lib/modules/{release}");
        let loaded = read("proc/modules").lines().filter_map(|l| l.split(' ').next()).map(str::to_owned).collect();
        Self {
            config: config(root, &release),
            builtin: modules(&read(&format!("{folder}/modules.builtin"))),
            installed: modules(&read(&format!("{folder}/modules.dep"))),
            loaded,
            release,
        }
    }

    /// Whether the option (without `CONFIG_`) is on; `None` when the kernel does not tell its options.
    pub fn option(&self, option: &str) -> Option<bool> {
        self.config.as_ref().map(|c| c.contains_key(option))
    }

    /// Whether it has the option (without `CONFIG_`), whose module is called `module`.
    pub fn has(&self, option: &str, module: &str) -> Support {
        let there = self.loaded.contains(module) || self.builtin.contains(module);
        match self.config.as_ref().map(|c| c.get(option)) {
            Some(None) => Support::Absent,
            Some(Some('y')) => Support::Present,
            _ if there => Support::Present,
            _ if self.installed.contains(module) => Support::Loadable,
            Some(Some(_)) => Support::NotInstalled,
            None if !self.installed.is_empty() => Support::Absent,
            None => Support::Unknown,
        }
    }

    /// How to get the option.
    pub fn mend(&self, option: &str, module: &str) -> String {
        match self.has(option, module) {
            Support::NotInstalled => format!(
                "module {module} of the running kernel {} is not in /lib/modules: reboot if the kernel was upgraded, else \
                 install the kernel's package of modules",
                self.release
            ),
            Support::Loadable | Support::Present => {
                format!("modprobe {module}, and `echo {module} >>/etc/modules-load.d/pikelet.conf` for the next boot")
            }
            Support::Absent | Support::Unknown => format!("use a kernel with CONFIG_{option}"),
        }
    }

    /// What can be told of an option nobody tries; `warn` when a node works without, because of `why`.
    pub fn finding(&self, check: &str, option: &str, module: &str, warn: Option<&str>) -> Finding {
        let lacks = |what: &str| match warn {
            Some(why) => Finding::warning(check, format!("{what}: {why}"), self.mend(option, module)),
            None => Finding::missing(check, what, self.mend(option, module)),
        };
        match self.has(option, module) {
            Support::Present => Finding::ok(check, "in the kernel"),
            Support::Loadable => Finding::ok(check, format!("module {module}, loaded when it is needed")),
            Support::NotInstalled => lacks("the module is not installed"),
            Support::Absent => lacks("not in this kernel"),
            Support::Unknown => Finding::unknown(check, "this kernel does not tell what it was built with"),
        }
    }
}

/// Major and minor number of a release such as `6.12.34+rpt-rpi-v8`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn age(release: &str) -> Finding {
    let (major, minor) = OLDEST;
    match version(release) {
        Some(found) if found < OLDEST => Finding::missing(
            "kernel",
            format!("{release}, older than {major}.{minor}"),
            format!("upgrade to Linux {major}.{minor} or newer"),
        ),
        _ => Finding::ok("kernel", release),
    }
}

fn namespaces() -> Finding {
    let needed = [("mnt", "NAMESPACES"), ("uts", "UTS_NS"), ("ipc", "IPC_NS"), ("pid", "PID_NS"), ("net", "NET_NS")];
    let lacking: Vec<&str> = needed
        .into_iter()
        .filter(|(name, _)| !Path::new("/proc/self/ns").join(name).exists())
        .map(|(_, option)| option)
        .collect();
    if lacking.is_empty() {
        return Finding::ok("namespaces", "mount, uts, ipc, pid, network");
    }
    let options = lacking.join(", CONFIG_");
    Finding::missing("namespaces", "not all are in this kernel", format!("use a kernel with CONFIG_{options}"))
}

/// `most`: `/proc/sys/user/max_user_namespaces`.
fn user_namespaces(exists: bool, most: &str) -> Finding {
    let check = "user namespaces";
    match most.trim().parse::<u64>() {
        _ if !exists => Finding::warning(
            check,
            "not in this kernel: pods with hostUsers: false cannot be isolated",
            "use a kernel with CONFIG_USER_NS",
        ),
        Ok(0) => Finding::warning(
            check,
            "none are allowed: pods with hostUsers: false cannot be isolated",
            "sysctl -w user.max_user_namespaces=10000, and the same in /etc/sysctl.d",
        ),
        _ => Finding::ok(check, "in the kernel"),
    }
}

/// The kernel, and what containers need of it beside control groups, file systems and network.
pub fn check(kernel: &Kernel) -> Vec<Finding> {
    let users = Path::new("/proc/self/ns/user").exists();
    let seccomp = if Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() {
        Finding::ok("seccomp", "filters of system calls are in the kernel")
    } else {
        Finding::warning(
            "seccomp",
            "not in this kernel: system calls of pods cannot be filtered",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        )
    };
    let queues = read("/proc/filesystems").lines().any(|l| l.trim_start_matches("nodev").trim() == "mqueue");
    let queues = if queues {
        Finding::ok("message queues", "in the kernel")
    } else {
        Finding::missing(
            "message queues",
            "no file system mqueue: /dev/mqueue of containers cannot be made",
            "use a kernel with CONFIG_POSIX_MQUEUE",
        )
    };
    vec![
        age(&kernel.release),
        namespaces(),
        user_namespaces(users, &read("/proc/sys/user/max_user_namespaces")),
        seccomp,
        queues,
    ]
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use crate::machine::folder::Folder;

    fn kernel(config: Option<&str>, installed: &str) -> Kernel {
        let builtin = modules("kernel/net/bridge/bridge.ko\n");
        Kernel {
            release: "6.12.1".into(),
            config: config.map(options),
            builtin,
            installed: modules(installed),
            ..Kernel::default()
        }
    }

    #[test]
    fn options_and_modules_are_told_apart() {
        let dep = "kernel/net/netfilter/nft_masq.ko.xz: kernel/net/netfilter/nf_tables.ko.xz\nkernel/drivers/net/vxlan/vxlan.ko:\n";
        let found = kernel(
            Some("CONFIG_OVERLAY_FS=y\nCONFIG_VXLAN=m\nCONFIG_VETH=m\n# CONFIG_SECCOMP is not set\nCONFIG_HZ=100\n"),
            dep,
        );
        assert_eq!(found.has("OVERLAY_FS", "overlay"), Support::Present);
        assert_eq!(found.has("VXLAN", "vxlan"), Support::Loadable);
        assert_eq!(found.has("VETH", "veth"), Support::NotInstalled);
        assert!(found.mend("VETH", "veth").contains("reboot"));
        assert_eq!(found.has("SECCOMP", "seccomp"), Support::Absent);
        assert_eq!(found.finding("veth", "VETH", "veth", None).state, State::Missing);
        assert_eq!(found.finding("vxlan", "NOPE", "nope", Some("why")).state, State::Warning);
        // without options, the modules on disk tell
        let found = kernel(None, dep);
        assert_eq!(found.has("BRIDGE", "bridge"), Support::Present);
        assert_eq!(found.has("NFT_MASQ", "nft_masq"), Support::Loadable);
        assert_eq!(found.has("VETH", "veth"), Support::Absent);
        let found = kernel(None, "");
        assert_eq!(found.has("VETH", "veth"), Support::Unknown);
        assert_eq!(found.finding("veth", "VETH", "veth", None).state, State::Unknown);
    }

    #[test]
    fn a_kernel_without_its_module_of_vxlan_says_what_mends_it() {
        let root = Folder::new();
        root.put("proc/sys/kernel/osrelease", "6.12.34-v8\n");
        root.put("boot/config-6.12.34-v8", "CONFIG_VXLAN=m\nCONFIG_VETH=y\n");
        root.put("lib/modules/6.12.34-v8/modules.dep", "kernel/net/bridge/bridge.ko.xz:\n");
        let without = Kernel::read(root.path());
        assert_eq!(without.has("VXLAN", "vxlan"), Support::NotInstalled);
        assert!(without.mend("VXLAN", "vxlan").contains("module vxlan of the running kernel 6.12.34-v8 is not in"));
        root.put("lib/modules/6.12.34-v8/modules.dep", "kernel/drivers/net/vxlan/vxlan.ko.xz:\n");
        assert_eq!(Kernel::read(root.path()).has("VXLAN", "vxlan"), Support::Loadable);
        root.put("proc/modules", "vxlan 155648 0 - Live 0x0\n");
        root.remove("lib");
        assert_eq!(Kernel::read(root.path()).has("VXLAN", "vxlan"), Support::Present);
    }

    #[test]
    fn releases_of_kernels() {
        assert_eq!(version("6.12.34+rpt-rpi-v8"), Some((6, 12)));
        assert_eq!((age("5.4.0-generic").state, age("5.6").state, age("6.1.21-v8+").state), {
            (State::Missing, State::Ok, State::Ok)
        });
        assert_eq!(user_namespaces(true, "0\n").state, State::Warning);
        assert_eq!(user_namespaces(true, "63000\n").state, State::Ok);
        assert_eq!(user_namespaces(false, "").state, State::Warning);
    }
}
