//! More of what containers use, for who draws pictures of it: read when asked (kernel: cgroup-v1, cgroup-v2, psi,
//! blkio-controller, iostats).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::cgroup::Hierarchies;
use super::usage::{NO_LIMIT, fields, number};

/// Bytes of a sector, as the kernel counts them on every disk.
const SECTOR: u64 = 512;

/// Figures of one cgroup beside those of [`super::Usage`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Details {
    /// CPU time in user mode and in the kernel, in microseconds.
    pub cpu: [u64; 2],
    /// Share of the CPU, as version 1 writes it.
    pub shares: u64,
    /// Length of a period in microseconds.
    pub period: u64,
    /// What it may run in each, in microseconds, if there is a limit.
    pub quota: Option<u64>,
    /// Periods, those it was held up in, and for how many microseconds in all.
    pub throttled: [u64; 3],
    /// Most memory it has had.
    pub peak: u64,
    /// How often its memory was at the limit.
    pub at_limit: u64,
    /// Files mapped into memory.
    pub mapped: u64,
    /// Memory of the kernel.
    pub kernel: u64,
    /// Page cache in use, and not.
    pub files: [u64; 2],
    /// Page faults of its own processes, without those of cgroups below, and those that read from a disk.
    pub own_faults: [u64; 2],
    /// Processes in it, without those of cgroups below.
    pub processes: u64,
    /// Most processes and threads, 0 for no limit.
    pub most_processes: u64,
    /// Memory that is protected.
    pub reservation: u64,
    /// Limit of memory with swap, if there is one.
    pub swap_limit: Option<u64>,
    /// Disks.
    pub disks: Vec<DiskUse>,
    /// For want of CPU, memory, disk: microseconds that some of it, and all of it, stood still; where the kernel tells.
    pub pressure: Option<[[u64; 2]; 3]>,
}

/// What was read and written of one disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Its device, such as `/dev/mmcblk0`.
    pub device: String,
    /// Bytes and operations read.
    pub read: [u64; 2],
    /// Bytes and operations written.
    pub written: [u64; 2],
}

impl Hierarchies {
    /// Details of the cgroup `path`; what there is no file for is zero.
    pub fn details(&self, path: &str) -> Details {
        let read = |file: &str| {
            let controller = file.split('.').next().unwrap_or_default();
            let text = self.dir_of(controller, path).and_then(|dir| fs::read_to_string(dir.join(file)).ok());
            text.unwrap_or_default()
        };
        let mut details = if self.unified() { version_2(&read) } else { version_1(&read) };
        details.processes = self
            .dir_of("pids", path)
            .map_or(0, |dir| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines().count() as u64);
        details.most_processes = number(&read("pids.max")).unwrap_or_default();
        // beside version 1 the kernel counts in the hierarchy of version 2
        details.pressure =
            self.dirs(path).find_map(|dir| pressure(&dir, ["cpu.pressure", "memory.pressure", "io.pressure"]));
        details
    }
}

fn version_1(read: &impl Fn(&str) -> String) -> Details {
    let (memory, cpu, time) = (read("memory.stat"), read("cpu.stat"), read("cpuacct.usage_all"));
    let (memory, cpu) = (fields(&memory), fields(&cpu));
    let of = |key: &str| memory.get(key).copied().unwrap_or_default();
    let held = |key: &str| cpu.get(key).copied().unwrap_or_default();
    let of_file = |file: &str| number(&read(file)).unwrap_or_default();
    // a line for each processor, in nanoseconds, below a heading
    let times = |at: usize| time.lines().filter_map(|l| l.split(' ').nth(at)?.parse::<u64>().ok()).sum::<u64>() / 1000;
    let counted = |kind: &str| {
        let [bytes, operations] = ["_bytes", "d"].map(|of| read(&format!("blkio.{kind}.io_service{of}_recursive")));
        disks_1(&bytes, &operations)
    };
    // newer kernels count there only where a limit is set
    let disks = Some(counted("throttle")).filter(|d| !d.is_empty()).unwrap_or_else(|| counted("bfq"));
    Details {
        cpu: [times(1), times(2)],
        shares: of_file("cpu.shares"),
        period: of_file("cpu.cfs_period_us"),
        quota: number(&read("cpu.cfs_quota_us")),
        throttled: [held("nr_periods"), held("nr_throttled"), held("throttled_time") / 1000],
        peak: of_file("memory.max_usage_in_bytes"),
        at_limit: of_file("memory.failcnt"),
        mapped: of("total_mapped_file"),
        kernel: of_file("memory.kmem.usage_in_bytes"),
        files: [of("total_active_file"), of("total_inactive_file")],
        own_faults: [of("pgfault"), of("pgmajfault")],
        reservation: number(&read("memory.soft_limit_in_bytes")).filter(|n| *n < NO_LIMIT).unwrap_or_default(),
        swap_limit: number(&read("memory.memsw.limit_in_bytes")).filter(|n| *n < NO_LIMIT),
        disks,
        ..Details::default()
    }
}

fn version_2(read: &impl Fn(&str) -> String) -> Details {
    let (memory, cpu, events, max) = (read("memory.stat"), read("cpu.stat"), read("memory.events"), read("cpu.max"));
    let (memory, cpu, events) = (fields(&memory), fields(&cpu), fields(&events));
    let of = |key: &str| memory.get(key).copied().unwrap_or_default();
    let held = |key: &str| cpu.get(key).copied().unwrap_or_default();
    let of_file = |file: &str| number(&read(file)).unwrap_or_default();
    let (quota, period) = max.split_once(' ').unwrap_or_default();
    let swap = number(&read("memory.swap.max")).zip(number(&read("memory.max")));
    Details {
        cpu: [held("user_usec"), held("system_usec")],
        shares: shares_of(of_file("cpu.weight")),
        period: number(period).unwrap_or_default(),
        quota: number(quota),
        throttled: [held("nr_periods"), held("nr_throttled"), held("throttled_usec")],
        peak: of_file("memory.peak"),
        at_limit: events.get("max").copied().unwrap_or_default(),
        mapped: of("file_mapped"),
        kernel: of("kernel"),
        files: [of("active_file"), of("inactive_file")],
        own_faults: [of("pgfault"), of("pgmajfault")],
        reservation: of_file("memory.min"),
        swap_limit: swap.map(|(swap, memory)| swap + memory),
        disks: disks_2(&read("io.stat")),
        ..Details::default()
    }
}

/// CPU shares that have a weight of version 2, as near as it tells: back on the curve of `limits.rs`.
fn shares_of(weight: u64) -> u64 {
    match weight {
        0 => 0,
        1 => 2,
        10_000.. => 262_144,
        _ => {
            let height = 612.0 * ((weight as f64).log10() + 7.0 / 34.0);
            (((125.0 * 125.0 + 4.0 * height).sqrt() - 125.0) / 2.0).exp2().round() as u64
        }
    }
}

/// The name of a device by its numbers, `M:m`; the numbers themselves where the kernel has none.
fn device(number: &str) -> String {
    let event = fs::read_to_string(format!("/sys/dev/block/{number}/uevent")).unwrap_or_default();
    event
        .lines()
        .find_map(|l| l.strip_prefix("DEVNAME="))
        .map_or_else(|| number.to_owned(), |name| format!("/dev/{name}"))
}

/// The device of the file system that holds `path`.
pub fn device_of(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let number = fs::metadata(path).ok()?.dev();
    Some(device(&format!("{}:{}", libc::major(number), libc::minor(number))))
}

/// What the machine tells of itself as a whole.
pub fn machine_details() -> Details {
    Details {
        disks: disks_of_machine(&fs::read_to_string("/proc/diskstats").unwrap_or_default()),
        pressure: pressure(Path::new("/proc/pressure"), ["cpu", "memory", "io"]),
        ..Details::default()
    }
}

/// From `blkio.throttle.io_service_bytes` and `io_serviced`: `M:m Read N`.
fn disks_1(bytes: &str, operations: &str) -> Vec<DiskUse> {
    let mut disks = BTreeMap::<&str, DiskUse>::new();
    for (at, text) in [bytes, operations].into_iter().enumerate() {
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [numbers, what, count] = words[..] else { continue };
            let Some(count) = number(count) else { continue };
            let disk = disks.entry(numbers).or_default();
            match what {
                "Read" => disk.read[at] = count,
                "Write" => disk.written[at] = count,
                _ => {}
            }
        }
    }
    disks.into_iter().map(|(number, disk)| DiskUse { device: device(number), ..disk }).collect()
}

/// From `io.stat`: `M:m rbytes=N wbytes=N rios=N wios=N ...`.
fn disks_2(text: &str) -> Vec<DiskUse> {
    let disk = |line: &str| {
        let (numbers, rest) = line.split_once(' ')?;
        let of = |key: &str| {
            let mut words = rest.split(' ').filter_map(|w| w.split_once('='));
            words.find(|(k, _)| *k == key).and_then(|(_, v)| number(v))
        };
        let (read, written) = ([of("rbytes")?, of("rios")?], [of("wbytes")?, of("wios")?]);
        Some(DiskUse { device: device(numbers), read, written })
    };
    text.lines().filter_map(disk).collect()
}

/// What the machine's disks were asked for since boot (`/proc/diskstats`); those only in memory are left out.
fn disks_of_machine(text: &str) -> Vec<DiskUse> {
    let disk = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let name = *words.get(2)?;
        let at = |n: usize| words.get(n).copied().and_then(number);
        let in_memory = ["loop", "ram", "zram"].iter().any(|kind| name.starts_with(kind));
        let (read, written) = ([at(5)? * SECTOR, at(3)?], [at(9)? * SECTOR, at(7)?]);
        (!in_memory).then(|| DiskUse { device: format!("/dev/{name}"), read, written })
    };
    text.lines().filter_map(disk).collect()
}

/// How long what is in `dir` stood still, by those files; `None` where the kernel does not count it.
fn pressure(dir: &Path, files: [&str; 3]) -> Option<[[u64; 2]; 3]> {
    let mut all = [[0; 2]; 3];
    for (file, of) in files.into_iter().zip(&mut all) {
        // a kernel that can, but was not told to, has the files, and says so when they are read
        let text = fs::read_to_string(dir.join(file)).ok()?;
        for (kind, value) in ["some", "full"].into_iter().zip(of) {
            // of the whole machine's processors not all kernels tell `full`
            let line = text.lines().find_map(|l| l.strip_prefix(kind)).unwrap_or_default();
            *value = line.split(' ').find_map(|w| number(w.strip_prefix("total=")?)).unwrap_or_default();
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_tell_the_same() {
        let v1 = |file: &str| {
            let text = match file {
                "memory.stat" => {
                    "pgfault 3\npgmajfault 1\ntotal_mapped_file 4096\ntotal_active_file 8\ntotal_inactive_file 9\n"
                }
                "cpu.stat" => "nr_periods 10\nnr_throttled 4\nthrottled_time 5000000\n",
                "cpuacct.usage_all" => "cpu user system\n0 1000000 2000000\n1 3000000 0\n",
                "cpu.shares" => "1024\n",
                "cpu.cfs_period_us" => "100000\n",
                "cpu.cfs_quota_us" => "50000\n",
                "memory.max_usage_in_bytes" => "77\n",
                "memory.failcnt" => "2\n",
                "memory.memsw.limit_in_bytes" => "500\n",
                "memory.soft_limit_in_bytes" => "9223372036854771712\n",
                "blkio.throttle.io_service_bytes_recursive" => {
                    "999:9 Read 5\n999:9 Write 6\n999:9 Total 11\nTotal 11\n"
                }
                "blkio.throttle.io_serviced_recursive" => "999:9 Read 1\n999:9 Write 2\n",
                _ => "",
            };
            text.to_owned()
        };
        let v2 = |file: &str| {
            let text = match file {
                "memory.stat" => "pgfault 3\npgmajfault 1\nfile_mapped 4096\nactive_file 8\ninactive_file 9\n",
                "cpu.stat" => "user_usec 4000\nsystem_usec 2000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 5000\n",
                "cpu.weight" => "100\n",
                "cpu.max" => "50000 100000\n",
                "memory.peak" => "77\n",
                "memory.events" => "low 0\nmax 2\noom 0\n",
                "memory.max" => "400\n",
                "memory.swap.max" => "100\n",
                "io.stat" => "999:9 rbytes=5 wbytes=6 rios=1 wios=2 dbytes=0 dios=0\n",
                _ => "",
            };
            text.to_owned()
        };
        let want = Details {
            cpu: [4000, 2000],
            shares: 1024,
            period: 100_000,
            quota: Some(50_000),
            throttled: [10, 4, 5000],
            peak: 77,
            at_limit: 2,
            mapped: 4096,
            files: [8, 9],
            own_faults: [3, 1],
            swap_limit: Some(500),
            disks: vec![DiskUse { device: "999:9".to_owned(), read: [5, 1], written: [6, 2] }],
            ..Details::default()
        };
        assert_eq!(version_1(&v1), want);
        assert_eq!(version_2(&v2), want);
        let unlimited = |file: &str| match file {
            "cpu.max" => "max 100000\n".to_owned(),
            "cpu.cfs_quota_us" => "-1\n".to_owned(),
            _ => String::new(),
        };
        assert_eq!((version_1(&unlimited).quota, version_2(&unlimited).quota), (None, None));
    }

    #[test]
    fn the_machine_tells_of_its_disks_and_of_what_stood_still() {
        let text = "   7       0 loop0 1 0 8 0 0 0 0 0 0 0 0\n 254       0 vda 10 0 16 0 20 0 32 0 0 0 0 0 0 0\n";
        let vda = DiskUse { device: "/dev/vda".to_owned(), read: [16 * 512, 10], written: [32 * 512, 20] };
        assert_eq!(disks_of_machine(text), [vda]);
        let folder = crate::machine::folder::Folder::new();
        let files = ["cpu", "memory", "io"];
        assert_eq!(pressure(folder.path(), files), None, "this kernel does not count");
        folder.put("cpu", "some avg10=1.00 avg60=0.00 avg300=0.00 total=215\n");
        folder.put("memory", "some avg10=0.00 total=7\nfull avg10=0.00 total=5\n");
        folder.put("io", "some avg10=0.00 total=0\nfull avg10=0.00 total=0\n");
        assert_eq!(pressure(folder.path(), files), Some([[215, 0], [7, 5], [0, 0]]));
    }
}
