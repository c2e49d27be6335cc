//! Which images a machine runs: platforms as images say them (Go's names), against what its processor and kernel can do.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Deserializer};

/// Where the kernel says which programs others run for it.
const HANDLERS: &str = "/proc/sys/fs/binfmt_misc";
/// Size of a page for which 32-bit programs of ARM are made.
const ARM_PAGE: u64 = 4096;
/// How much of a program's first bytes says for which processor it is.
const ELF_HEAD: usize = 20;

/// Architectures by Go's names, and how their programs say it (ELF): class, byte order, machine.
const KNOWN: [(&str, u8, u8, u16); 15] = [
    ("386", 1, 1, 3),
    ("amd64", 2, 1, 62),
    ("arm", 1, 1, 40),
    ("arm64", 2, 1, 183),
    ("loong64", 2, 1, 258),
    ("mips", 1, 2, 8),
    ("mips64", 2, 2, 8),
    ("mips64le", 2, 1, 8),
    ("mipsle", 1, 1, 8),
    ("ppc64", 2, 2, 21),
    ("ppc64le", 2, 1, 21),
    ("riscv64", 2, 1, 243),
    ("s390x", 2, 2, 22),
    ("sparc64", 2, 2, 43),
    ("ppc", 1, 2, 20),
];

/// Null is as good as nothing: so Go writes what is empty.
pub fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// What an index or an image configuration says it is for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// Go's name of the architecture; empty: it does not say.
    #[serde(deserialize_with = "nullable")]
    pub architecture: String,
    /// Go's name of the operating system; empty: Linux.
    #[serde(deserialize_with = "nullable")]
    pub os: String,
    /// Such as `v7`.
    #[serde(deserialize_with = "nullable")]
    pub variant: String,
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let os = if self.os.is_empty() { "linux" } else { &self.os };
        write!(f, "{os}/{}", self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

impl Platform {
    /// The same in the names that Go has for it, as containerd takes what `uname` and distributions call them.
    fn normal(&self) -> Self {
        let (architecture, variant) = (self.architecture.to_lowercase(), self.variant.to_lowercase());
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            other => other,
        };
        let os = if self.os.is_empty() { "linux".to_owned() } else { self.os.to_lowercase() };
        Self { architecture: architecture.to_owned(), os, variant: variant.to_owned() }
    }

    /// `7` of `v7`; `default` where nothing is said.
    fn number(&self, default: u8) -> Option<u8> {
        match self.variant.trim_start_matches('v') {
            "" => Some(default),
            number => number.parse().ok(),
        }
    }
}

/// A machine, as far as images ask for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// For which this program was built (`std::env::consts::ARCH`).
    pub arch: String,
    /// Version of the ARM architecture, or level of x86-64.
    pub level: u8,
    /// Bytes of a page.
    pub page: u64,
    /// Architectures whose programs another program runs, anywhere (`binfmt_misc`).
    pub emulated: Vec<&'static str>,
}

impl Machine {
    /// This one, now: handlers of other architectures come and go.
    pub fn here() -> Self {
        let arch = std::env::consts::ARCH;
        let level = if arch == "arm" { arm_version(&machine_name()) } else { level() };
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
        let page = u64::try_from(page).unwrap_or(ARM_PAGE);
        Self { arch: arch.to_owned(), level, page, emulated: emulated(Path::new(HANDLERS)) }
    }

    /// How well an image of this platform suits: 0 is best; `None`: this machine's processor does not run it.
    pub fn rank(&self, platform: &Platform) -> Option<u8> {
        let platform = platform.normal();
        if platform.os != "linux" {
            return None;
        }
        let below = |most: u8, said: u8| most.checked_sub(said);
        match (self.arch.as_str(), platform.architecture.as_str()) {
            // what says its level in other words is tried last
            ("x86_64", "amd64") => platform.number(1).map_or(Some(5), |said| below(self.level, said)),
            ("x86_64" | "x86", "386") => Some(10),
            ("aarch64", "arm64") => Some(u8::from(!platform.variant.is_empty())),
            ("aarch64", "arm") => below(8, platform.number(7)?).map(|rank| rank + 10),
            ("arm", "arm") => below(self.level, platform.number(7)?),
            (mine, said) => (mine == said).then_some(0),
        }
    }

    /// Whether an image of this configuration runs here. One that does not say its variant may.
    pub fn runs(&self, config: &Platform) -> bool {
        let normal = config.normal();
        let lowest = Platform { variant: "v5".to_owned(), ..normal.clone() };
        let unsaid = normal.architecture == "arm" && config.variant.is_empty();
        self.rank(if unsaid { &lowest } else { &normal }).is_some()
    }

    /// Why an image of this configuration is of no use here; `None` if it may run, here or by an emulator, and where it
    /// says nothing that is known.
    pub fn refusal(&self, config: &Platform) -> Option<String> {
        let normal = config.normal();
        let known = KNOWN.iter().find(|known| known.0 == normal.architecture);
        let emulated = || normal.os == "linux" && known.is_some_and(|known| self.emulated.contains(&known.0));
        if normal.os == "linux" && known.is_none() || self.runs(config) || emulated() {
            return None;
        }
        Some(format!(
            "the image is for {config}, and this machine is {self}: its programs cannot run here (an image of the same \
             name for {self}, or for several platforms, is needed)"
        ))
    }

    /// What may be wrong with an image of this configuration though it is one this machine runs.
    pub fn doubt(&self, config: &Platform) -> Option<String> {
        let normal = config.normal();
        if self.arch != "aarch64" || normal.architecture != "arm" || self.page == ARM_PAGE {
            return None;
        }
        let page = self.page >> 10;
        Some(format!(
            "the image is for 32-bit ARM ({config}), and this kernel has pages of {page} KiB: most such programs crash \
             with those (a kernel with pages of 4 KiB, or an image for linux/arm64, is needed)"
        ))
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.arch.as_str() {
            "x86_64" => f.write_str("linux/amd64"),
            "aarch64" => f.write_str("linux/arm64"),
            "arm" => write!(f, "linux/arm/v{}", self.level),
            "x86" => f.write_str("linux/386"),
            other => write!(f, "linux/{other}"),
        }
    }
}

/// What the kernel calls the machine (`uname -m`).
fn machine_name() -> String {
    nix::sys::utsname::uname().map(|name| name.machine().to_string_lossy().into_owned()).unwrap_or_default()
}

/// The version of the ARM architecture by the kernel's name of the machine: `armv7l`, `aarch64`. (`/proc/cpuinfo` says 7 on
/// a Raspberry Pi Zero, which has 6.)
fn arm_version(machine: &str) -> u8 {
    if machine.starts_with("aarch64") || machine == "arm64" {
        return 8;
    }
    let version = machine.strip_prefix("armv").and_then(|rest| rest.chars().next()?.to_digit(10));
    // as old as what this program itself is built for
    version.and_then(|version| u8::try_from(version).ok()).unwrap_or(6)
}

/// The level of this x86-64 processor.
#[cfg(target_arch = "x86_64")]
fn level() -> u8 {
    let second = is_x86_feature_detected!("cmpxchg16b")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("sse3")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1")
        && is_x86_feature_detected!("sse4.2");
    let third = || {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("movbe")
    };
    let fourth = || {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512cd")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
    };
    match (second, second && third(), second && third() && fourth()) {
        (false, ..) => 1,
        (_, false, _) => 2,
        (.., false) => 3,
        _ => 4,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn level() -> u8 {
    8
}

/// The architectures for which a handler is there that containers can use: one whose program was opened when it was
/// registered (flag F).
fn emulated(handlers: &Path) -> Vec<&'static str> {
    let entries = fs::read_dir(handlers).into_iter().flatten().flatten();
    let control = |name: &OsStr| name == "register" || name == "status";
    let texts = entries.filter(|e| !control(&e.file_name())).filter_map(|e| fs::read_to_string(e.path()).ok());
    let mut found: Vec<&str> = texts.flat_map(|text| handled(&text)).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// The architectures whose programs a handler takes.
fn handled(text: &str) -> Vec<&'static str> {
    let line = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).map(str::trim);
    let bytes = |key: &str| {
        let hex = line(key)?;
        let pairs = hex.as_bytes().chunks_exact(2).map(|pair| std::str::from_utf8(pair).ok());
        pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect::<Option<Vec<u8>>>()
    };
    let fixed = line("flags:").is_some_and(|flags| flags.contains('F'));
    if !text.starts_with("enabled") || !fixed || line("offset ") != Some("0") {
        return Vec::new();
    }
    let Some(magic) = bytes("magic ").filter(|magic| magic.len() >= ELF_HEAD) else { return Vec::new() };
    let mask = bytes("mask ").unwrap_or_else(|| vec![0xff; magic.len()]);
    let takes =
        |head: &[u8]| head.iter().zip(&magic).zip(&mask).all(|((byte, magic), mask)| (byte ^ magic) & mask == 0);
    KNOWN.iter().filter(|known| takes(&head(known))).map(|known| known.0).collect()
}

/// The first bytes of a program of an architecture.
fn head((_, class, order, machine): &(&str, u8, u8, u16)) -> [u8; ELF_HEAD] {
    let mut head = [0; ELF_HEAD];
    head[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', *class, *order, 1]);
    let (kind, machine) = match order {
        1 => (2_u16.to_le_bytes(), machine.to_le_bytes()),
        _ => (2_u16.to_be_bytes(), machine.to_be_bytes()),
    };
    head[16..18].copy_from_slice(&kind);
    head[18..].copy_from_slice(&machine);
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_which_arm_it_is() {
        let versions = ["armv6l", "armv7l", "armv8l", "aarch64", "armv5tejl", "?"].map(arm_version);
        assert_eq!(versions, [6, 7, 8, 8, 5, 6]);
    }

    #[test]
    fn handlers_of_other_architectures_are_known_by_what_they_take() {
        let handler = |state: &str, flags: &str, class: &str, machine: &str| {
            format!(
                "{state}\ninterpreter /usr/bin/qemu-x-static\nflags: {flags}\noffset 0\n\
                 magic 7f454c46{class}010100000000000000000002{}{machine}\n\
                 mask ffffffffffffff00fffffffffffffffffeffffff\n",
                "00"
            )
        };
        assert_eq!(handled(&handler("enabled", "OCF", "02", "b700")), ["arm64"]);
        assert_eq!(handled(&handler("enabled", "F", "01", "2800")), ["arm"]);
        assert!(handled(&handler("enabled", "OC", "02", "b700")).is_empty(), "its program is not in the container");
        assert!(handled(&handler("disabled", "F", "02", "b700")).is_empty());
        assert!(handled("enabled\ninterpreter /usr/bin/jar\nflags: F\noffset 0\nmagic 504b0304\n").is_empty());
        assert!(handled("enabled\ninterpreter /x\nflags: F\nextension .exe\n").is_empty());
    }

    #[test]
    fn pages_of_16_kib_are_told_of() {
        let of = |arch: &str, page| Machine { arch: arch.to_owned(), level: 8, page, emulated: Vec::new() };
        let config = |architecture: &str| Platform { architecture: architecture.to_owned(), ..Platform::default() };
        let doubt = of("aarch64", 16384).doubt(&config("arm")).unwrap();
        assert!(doubt.contains("pages of 16 KiB"), "{doubt}");
        assert_eq!(of("aarch64", 4096).doubt(&config("arm")), None);
        assert_eq!(of("aarch64", 16384).doubt(&config("arm64")), None);
        assert_eq!(of("arm", 16384).doubt(&config("arm")), None);
    }

    #[test]
    fn this_machine_runs_what_it_was_built_for() {
        let here = Machine::here();
        let own = Platform { architecture: std::env::consts::ARCH.to_owned(), ..Platform::default() };
        assert!(here.runs(&own), "{here:?}");
    }
}
