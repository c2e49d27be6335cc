//! What the board is: capacity, operating system, kernel, boot and machine ids.

pub mod apparmor;
pub mod board;
pub mod check;
pub mod clock;
pub mod devices;
pub mod disk;
#[cfg(test)]
pub(crate) mod folder;
pub mod folder_usage;
pub mod health;
pub mod logind;
mod notify;
pub mod oom;
pub mod usage;

use std::fs;
use std::path::Path;

/// A size of huge pages.
#[derive(Debug)]
pub struct HugePages {
    /// Of the resource.
    pub name: &'static str,
    /// Why a pod that asks for too many is refused.
    pub out_of: &'static str,
    kib: u64,
}

const fn pages(name: &'static str, out_of: &'static str, kib: u64) -> HugePages {
    HugePages { name, out_of, kib }
}

/// The sizes Linux has on the machines this program runs on.
pub const HUGE_PAGES: [HugePages; 6] = [
    pages("hugepages-64Ki", "OutOfhugepages-64Ki", 64),
    pages("hugepages-2Mi", "OutOfhugepages-2Mi", 2 << 10),
    pages("hugepages-16Mi", "OutOfhugepages-16Mi", 16 << 10),
    pages("hugepages-32Mi", "OutOfhugepages-32Mi", 32 << 10),
    pages("hugepages-512Mi", "OutOfhugepages-512Mi", 512 << 10),
    pages("hugepages-1Gi", "OutOfhugepages-1Gi", 1 << 20),
];

/// Bytes of the huge pages the kernel keeps, of each size it knows; `dir` is `/sys/kernel/mm/hugepages`.
fn huge_pages(dir: &Path) -> Vec<(&'static str, u64)> {
    let of = |pages: &HugePages| {
        let text = fs::read_to_string(dir.join(format!("hugepages-{}kB/nr_hugepages", pages.kib))).ok()?;
        Some((pages.name, text.trim().parse::<u64>().ok()? * pages.kib * 1024))
    };
    HUGE_PAGES.iter().filter_map(of).collect()
}

/// Facts of this machine that do not change while it is up.
#[derive(Debug, Clone, Default)]
pub struct MachineInfo {
    /// Logical processors.
    pub cpus: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Swap space in bytes, as the agent found it at its start.
    pub swap_bytes: u64,
    /// Huge pages by resource, in bytes: sizes the kernel knows, also those it keeps none of.
    pub huge_pages: Vec<(&'static str, u64)>,
    /// Size of the file system that holds the agent's data, in bytes.
    pub disk_bytes: u64,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// DMI product uuid, or the machine id.
    pub system_uuid: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel_version: String,
    /// `PRETTY_NAME` of `/etc/os-release`.
    pub os_image: String,
    /// Go's name of the architecture.
    pub architecture: String,
}

fn line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned()).filter(|s| !s.is_empty())
}

/// The machine's host name; empty when it is no text.
pub fn hostname() -> String {
    nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_default()
}

/// Processors this process may use, at least one.
pub fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// Go's name of the architecture this binary runs on.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

/// Reads the facts; `root` is where the agent's data lies.
pub fn inspect(root: &Path) -> MachineInfo {
    let (memory_bytes, swap_bytes) = sysinfo::System::new().map_or((0, 0), |mut system| {
        system.refresh_memory();
        (system.total_memory(), system.total_swap())
    });
    let disk = nix::sys::statvfs::statvfs(root).map_or(0, |s| s.blocks() * usage::block_size(&s));
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
    let machine_id = line("/etc/machine-id").unwrap_or_default();
    MachineInfo {
        cpus: cpus().into(),
        memory_bytes,
        swap_bytes,
        huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
        disk_bytes: disk,
        system_uuid: line("/sys/class/dmi/id/product_uuid").unwrap_or_else(|| machine_id.clone()),
        machine_id,
        boot_id: line("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
        kernel_version: line("/proc/sys/kernel/osrelease").unwrap_or_default(),
        os_image: name.trim_matches('"').to_owned(),
        architecture: architecture().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_counted_in_bytes() {
        let dir = std::env::temp_dir().join(format!("pikelet-hugepages-{}", std::process::id()));
        for (size, count) in [("2048kB", "3"), ("1048576kB", "0"), ("7kB", "9")] {
            let dir = dir.join(format!("hugepages-{size}"));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("nr_hugepages"), format!("{count}\n")).unwrap();
        }
        assert_eq!(huge_pages(&dir), [("hugepages-2Mi", 6 << 20), ("hugepages-1Gi", 0)]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
