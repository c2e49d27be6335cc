//! `/metrics/cadvisor`: the `container_*` and `machine_*` series that dashboards use, with cAdvisor's names and labels.

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use k8s_openapi::api::core::v1::Pod;

use super::text::Text;
use super::{ContainerReading, PodReading, apart, read};
use crate::machine::MachineInfo;
use crate::machine::usage::{self, FileSystem, file_system, node_usage};
use crate::pod::PodExt;
use crate::runtime::{Details, DiskUse, Interface, Usage, device_of, interfaces, machine_details};
use crate::server::api::Kubelet;

/// A value of a cgroup, if it has one.
type OfGroup = (&'static str, &'static str, &'static str, fn(&Group) -> Option<f64>);
type OfDisk = (&'static str, &'static str, fn(&DiskUse) -> u64);
type OfInterface = (&'static str, &'static str, fn(&Interface) -> u64);
type OfDevice = (&'static str, &'static str, fn(&FileSystem) -> u64);

const MICROS: f64 = 1e-6;

/// A cgroup at one moment; the whole machine is `/`.
#[derive(Default)]
struct Group {
    container: String,
    id: String,
    image: String,
    /// Id of the container.
    name: String,
    namespace: String,
    pod: String,
    started: Option<f64>,
    usage: Usage,
    details: Details,
    interfaces: Vec<Interface>,
    /// Of the machine: the file system that holds the agent's data, and its device.
    disk: Option<(String, FileSystem)>,
}

impl Group {
    /// What only a cgroup has, and the machine does not count.
    fn own<T>(&self, value: T) -> Option<T> {
        (self.id != "/").then_some(value)
    }

    /// One of the figures of a limit of CPU time.
    fn throttled(&self, at: usize) -> Option<u64> {
        self.details.quota.map(|_| self.details.throttled[at])
    }

    fn pressure(&self, of: usize, how: usize) -> Option<f64> {
        self.details.pressure.map(|p| p[of][how] as f64 * MICROS)
    }
}

const GAUGE: &str = "gauge";
const COUNTER: &str = "counter";

const GROUPS: [OfGroup; 34] = [
    ("container_cpu_user_seconds_total", COUNTER, "CPU time in user mode.", |g| {
        g.own(g.details.cpu[0] as f64 * MICROS)
    }),
    ("container_cpu_system_seconds_total", COUNTER, "CPU time in the kernel.", |g| {
        g.own(g.details.cpu[1] as f64 * MICROS)
    }),
    ("container_cpu_cfs_periods_total", COUNTER, "Periods in which its limit of CPU time was looked at.", |g| {
        g.throttled(0).map(|n| n as f64)
    }),
    ("container_cpu_cfs_throttled_periods_total", COUNTER, "Periods in which it was held up by its limit.", |g| {
        g.throttled(1).map(|n| n as f64)
    }),
    ("container_cpu_cfs_throttled_seconds_total", COUNTER, "How long it was held up by its limit of CPU time.", |g| {
        g.throttled(2).map(|n| n as f64 * MICROS)
    }),
    ("container_spec_cpu_period", GAUGE, "Length of a period of CPU time, in microseconds.", |g| {
        g.own(g.details.period as f64)
    }),
    ("container_spec_cpu_quota", GAUGE, "CPU time it may use in a period, in microseconds.", |g| {
        g.details.quota.map(|n| n as f64)
    }),
    ("container_spec_cpu_shares", GAUGE, "Share of the CPU when it is short.", |g| g.own(g.details.shares as f64)),
    ("container_memory_usage_bytes", GAUGE, "All memory, page cache too.", |g| Some(g.usage.memory as f64)),
    ("container_memory_working_set_bytes", GAUGE, "Memory without page cache that is not in use.", |g| {
        Some(g.usage.working_set as f64)
    }),
    ("container_memory_rss", GAUGE, "Anonymous memory.", |g| Some(g.usage.rss as f64)),
    ("container_memory_cache", GAUGE, "Page cache.", |g| Some(g.usage.cache as f64)),
    ("container_memory_swap", GAUGE, "Swap space in use.", |g| Some(g.usage.swap as f64)),
    ("container_memory_mapped_file", GAUGE, "Files mapped into memory.", |g| g.own(g.details.mapped as f64)),
    ("container_memory_kernel_usage", GAUGE, "Memory of the kernel.", |g| g.own(g.details.kernel as f64)),
    ("container_memory_max_usage_bytes", GAUGE, "Most memory it has had.", |g| g.own(g.details.peak as f64)),
    ("container_memory_failcnt", COUNTER, "How often its memory was at the limit.", |g| {
        g.own(g.details.at_limit as f64)
    }),
    ("container_memory_total_active_file_bytes", GAUGE, "Page cache in use.", |g| g.own(g.details.files[0] as f64)),
    ("container_memory_total_inactive_file_bytes", GAUGE, "Page cache not in use.", |g| {
        g.own(g.details.files[1] as f64)
    }),
    ("container_oom_events_total", COUNTER, "Processes the OOM killer has ended.", |g| Some(g.usage.oom_kills as f64)),
    ("container_spec_memory_limit_bytes", GAUGE, "Limit of memory, 0 for none.", |g| {
        Some(g.usage.memory_limit.unwrap_or_default() as f64)
    }),
    ("container_spec_memory_swap_limit_bytes", GAUGE, "Limit of memory with swap, 0 for none.", |g| {
        g.own(g.details.swap_limit.unwrap_or_default() as f64)
    }),
    ("container_spec_memory_reservation_limit_bytes", GAUGE, "Memory that is protected.", |g| {
        g.own(g.details.reservation as f64)
    }),
    ("container_processes", GAUGE, "Processes.", |g| g.own(g.details.processes as f64)),
    ("container_threads", GAUGE, "Processes and threads.", |g| Some(g.usage.processes as f64)),
    ("container_threads_max", GAUGE, "Most processes and threads, 0 for no limit.", |g| {
        g.own(g.details.most_processes as f64)
    }),
    ("container_pressure_cpu_waiting_seconds_total", COUNTER, "How long some of it waited for CPU.", |g| {
        g.pressure(0, 0)
    }),
    ("container_pressure_cpu_stalled_seconds_total", COUNTER, "How long all of it waited for CPU.", |g| {
        g.pressure(0, 1)
    }),
    ("container_pressure_memory_waiting_seconds_total", COUNTER, "How long some of it waited for memory.", |g| {
        g.pressure(1, 0)
    }),
    ("container_pressure_memory_stalled_seconds_total", COUNTER, "How long all of it waited for memory.", |g| {
        g.pressure(1, 1)
    }),
    ("container_pressure_io_waiting_seconds_total", COUNTER, "How long some of it waited for disks.", |g| {
        g.pressure(2, 0)
    }),
    ("container_pressure_io_stalled_seconds_total", COUNTER, "How long all of it waited for disks.", |g| {
        g.pressure(2, 1)
    }),
    ("container_start_time_seconds", GAUGE, "Start in seconds since the epoch.", |g| g.started),
    ("container_last_seen", GAUGE, "When it was looked at.", |_| Some(jiff::Timestamp::now().as_second() as f64)),
];

const DISKS: [OfDisk; 4] = [
    ("container_fs_reads_bytes_total", "Bytes read from a disk.", |d| d.read[0]),
    ("container_fs_reads_total", "Reads from a disk.", |d| d.read[1]),
    ("container_fs_writes_bytes_total", "Bytes written to a disk.", |d| d.written[0]),
    ("container_fs_writes_total", "Writes to a disk.", |d| d.written[1]),
];

const DEVICES: [OfDevice; 4] = [
    ("container_fs_limit_bytes", "Size of a file system.", |f| f.capacity),
    ("container_fs_usage_bytes", "Used bytes of a file system.", |f| f.used),
    ("container_fs_inodes_total", "Inodes of a file system.", |f| f.inodes),
    ("container_fs_inodes_free", "Free inodes of a file system.", |f| f.inodes_free),
];

const NETWORK: [OfInterface; 8] = [
    ("container_network_receive_bytes_total", "Bytes received.", |i| i.received[0]),
    ("container_network_receive_packets_total", "Packets received.", |i| i.received[1]),
    ("container_network_receive_errors_total", "Errors while receiving.", |i| i.received[2]),
    ("container_network_receive_packets_dropped_total", "Packets dropped while receiving.", |i| i.received[3]),
    ("container_network_transmit_bytes_total", "Bytes sent.", |i| i.sent[0]),
    ("container_network_transmit_packets_total", "Packets sent.", |i| i.sent[1]),
    ("container_network_transmit_errors_total", "Errors while sending.", |i| i.sent[2]),
    ("container_network_transmit_packets_dropped_total", "Packets dropped while sending.", |i| i.sent[3]),
];

/// The answer.
pub async fn cadvisor(State(kubelet): State<Kubelet>) -> Response {
    // some thirty small files for each container
    let told = apart(move || {
        let mut text = Text::default();
        write(&mut text, &groups(&kubelet), &kubelet.machine);
        text.response()
    });
    told.await.unwrap_or_else(|message| {
        axum::response::IntoResponse::into_response((StatusCode::INTERNAL_SERVER_ERROR, message))
    })
}

/// The machine, what all pods are in, every pod, every container.
fn groups(kubelet: &Kubelet) -> Vec<Group> {
    let runtime = &kubelet.runtime;
    let mut groups = vec![machine(kubelet)];
    for cgroup in ["", "burstable", "besteffort"] {
        let Some(usage) = runtime.usage(cgroup) else { continue };
        let id = runtime.cgroup_path(cgroup).trim_end_matches('/').to_owned();
        groups.push(Group { id, usage, details: runtime.details(cgroup), ..Group::default() });
    }
    for PodReading { pod, cgroup, usage, interfaces, containers } in read(kubelet) {
        let id = runtime.cgroup_path(&cgroup);
        let of_pod = of(&pod, id.clone(), usage, runtime.details(&cgroup));
        let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0.as_second() as f64);
        groups.push(Group { started, interfaces, ..of_pod });
        for ContainerReading { name, id: own, image, started, usage } in containers {
            let of_container = of(&pod, format!("{id}/{own}"), usage, runtime.details(&format!("{cgroup}/{own}")));
            groups.push(Group { container: name, image, name: own, started: Some(started), ..of_container });
        }
    }
    groups
}

fn of(pod: &Pod, id: String, usage: Usage, details: Details) -> Group {
    let (namespace, pod) = (pod.ns().to_owned(), pod.name().to_owned());
    Group { id, namespace, pod, usage, details, ..Group::default() }
}

fn machine(kubelet: &Kubelet) -> Group {
    let node = node_usage();
    let [page_faults, major_page_faults, oom_kills] = usage::events();
    let usage = Usage {
        cpu: node.cpu,
        memory: node.memory,
        working_set: node.working_set,
        rss: node.rss,
        cache: node.cache,
        swap: node.swap,
        memory_limit: Some(node.total),
        page_faults,
        major_page_faults,
        processes: usage::processes().0,
        oom_kills,
    };
    // the ends of pods' links are counted with the pods
    let port = |i: &Interface| std::path::Path::new("/sys/class/net").join(&i.name).join("brport").exists();
    let interfaces = interfaces(&usage::interfaces_text()).into_iter().filter(|i| !port(i)).collect();
    let disk = file_system(&kubelet.root_dir).and_then(|of| Some((device_of(&kubelet.root_dir)?, of)));
    let (id, started) = ("/".to_owned(), Some(node.booted as f64));
    Group { id, started, usage, details: machine_details(), interfaces, disk, ..Group::default() }
}

/// What is told of them.
fn write(text: &mut Text, groups: &[Group], machine: &MachineInfo) {
    let name = "container_cpu_usage_seconds_total";
    text.metric(name, COUNTER, "CPU time.");
    for group in groups {
        text.sample(name, &labels(group, [("cpu", "total")]), group.usage.cpu as f64 * 1e-9, None);
    }
    for (name, kind, help, value) in GROUPS {
        text.metric(name, kind, help);
        for group in groups {
            if let Some(value) = value(group) {
                text.sample(name, &labels(group, []), value, None);
            }
        }
    }
    let name = "container_memory_failures_total";
    text.metric(name, COUNTER, "Page faults.");
    for group in groups {
        let all = [group.usage.page_faults, group.usage.major_page_faults];
        for (scope, faults) in [("container", group.own(group.details.own_faults)), ("hierarchy", Some(all))] {
            for (kind, count) in ["pgfault", "pgmajfault"].into_iter().zip(faults.into_iter().flatten()) {
                text.sample(name, &labels(group, [("failure_type", kind), ("scope", scope)]), count as f64, None);
            }
        }
    }
    for (name, help, value) in DISKS {
        text.metric(name, COUNTER, help);
        for group in groups {
            for disk in &group.details.disks {
                text.sample(name, &labels(group, [("device", &disk.device)]), value(disk) as f64, None);
            }
        }
    }
    for (name, help, value) in DEVICES {
        text.metric(name, GAUGE, help);
        for (group, (device, of)) in groups.iter().filter_map(|g| Some((g, g.disk.as_ref()?))) {
            text.sample(name, &labels(group, [("device", device)]), value(of) as f64, None);
        }
    }
    for (name, help, value) in NETWORK {
        text.metric(name, COUNTER, help);
        for group in groups {
            for interface in &group.interfaces {
                text.sample(name, &labels(group, [("interface", &interface.name)]), value(interface) as f64, None);
            }
        }
    }
    let ids = [
        ("boot_id", machine.boot_id.as_str()),
        ("machine_id", &machine.machine_id),
        ("system_uuid", &machine.system_uuid),
    ];
    text.single("machine_cpu_cores", GAUGE, "Logical processors.", &ids, machine.cpus as f64);
    text.single("machine_memory_bytes", GAUGE, "Memory of the machine.", &ids, machine.memory_bytes as f64);
    text.single("machine_swap_bytes", GAUGE, "Swap space of the machine.", &ids, machine.swap_bytes as f64);
}

/// cAdvisor's labels of a cgroup, and more.
fn labels<'a, const N: usize>(group: &'a Group, more: [(&'static str, &'a str); N]) -> Vec<(&'static str, &'a str)> {
    let own = [
        ("container", group.container.as_str()),
        ("id", &group.id),
        ("image", &group.image),
        ("name", &group.name),
        ("namespace", &group.namespace),
        ("pod", &group.pod),
    ];
    own.into_iter().chain(more).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What is told of a machine with one pod that has all there can be.
    pub fn told() -> Text {
        let disks = vec![DiskUse { device: "/dev/sda".into(), read: [1, 2], written: [3, 4] }];
        let pressure = Some([[1_500_000, 0], [0, 0], [0, 250_000]]);
        let details =
            Details { quota: Some(50_000), throttled: [9, 4, 7_000_000], disks, pressure, ..Details::default() };
        let eth0 = Interface { name: "eth0".into(), received: [1; 4], sent: [2; 4] };
        let machine = Group {
            id: "/".into(),
            started: Some(1.0),
            disk: Some(("/dev/sda1".into(), FileSystem::default())),
            ..Group::default()
        };
        let usage = Usage { cpu: 1_500_000_000, page_faults: 8, ..Usage::default() };
        let own = |id: &str| Group {
            id: id.into(),
            namespace: "n".into(),
            pod: "p".into(),
            usage,
            details: details.clone(),
            ..Group::default()
        };
        let pod = Group { interfaces: vec![eth0], ..own("/pikelet/podu") };
        let container = Group { container: "c".into(), image: "i".into(), name: "1".into(), ..own("/pikelet/podu/1") };
        let mut text = Text::default();
        write(&mut text, &[machine, pod, container], &MachineInfo::default());
        text
    }

    #[test]
    fn labels_and_values_are_cadvisors() {
        let text = told();
        let own = r#"container="c",id="/pikelet/podu/1",image="i",name="1",namespace="n",pod="p""#;
        for line in [
            format!(r#"container_cpu_usage_seconds_total{{{own},cpu="total"}} 1.5"#),
            format!("container_cpu_cfs_throttled_periods_total{{{own}}} 4"),
            format!("container_cpu_cfs_throttled_seconds_total{{{own}}} 7"),
            format!("container_pressure_cpu_waiting_seconds_total{{{own}}} 1.5"),
            format!("container_pressure_io_stalled_seconds_total{{{own}}} 0.25"),
            format!(r#"container_fs_writes_total{{{own},device="/dev/sda"}} 4"#),
            format!(r#"container_memory_failures_total{{{own},failure_type="pgfault",scope="hierarchy"}} 8"#),
            format!(r#"container_memory_failures_total{{{own},failure_type="pgfault",scope="container"}} 0"#),
            r#"container_cpu_usage_seconds_total{container="",id="/",image="",name="",namespace="",pod="",cpu="total"} 0"#
                .to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}");
        }
        let machine = text.lines().filter(|l| l.contains(r#"id="/""#)).collect::<Vec<_>>();
        for unknown in ["container_cpu_cfs", "container_memory_mapped_file", "container_pressure"] {
            assert!(!machine.iter().any(|l| l.starts_with(unknown)), "{unknown} is nothing the machine counts");
        }
    }
}
