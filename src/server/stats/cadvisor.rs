//! `/metrics/cadvisor`: the `container_*` series that dashboards use, with cAdvisor's names and labels.

use axum::extract::State;
use axum::response::Response;
use k8s_openapi::api::core::v1::Pod;

use super::text::{Labels, Text};
use super::{ContainerReading, PodReading, read};
use crate::machine::usage::node_usage;
use crate::pod::PodExt;
use crate::runtime::{Interface, Usage};
use crate::server::api::Kubelet;

type OfUsage = (&'static str, &'static str, &'static str, fn(&Usage) -> f64);
type OfInterface = (&'static str, &'static str, fn(&Interface) -> u64);

const USAGE: [OfUsage; 11] = [
    ("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", |u| {
        u.cpu as f64 * 1e-9
    }),
    ("container_memory_usage_bytes", "gauge", "Current memory usage, with all memory.", |u| u.memory as f64),
    ("container_memory_working_set_bytes", "gauge", "Current working set.", |u| u.working_set as f64),
    ("container_memory_rss", "gauge", "Size of RSS.", |u| u.rss as f64),
    ("container_memory_cache", "gauge", "Number of bytes of page cache memory.", |u| u.cache as f64),
    ("container_memory_swap", "gauge", "Container swap usage.", |u| u.swap as f64),
    ("container_memory_failures_total", "counter", "Cumulative count of page faults.", |u| u.page_faults as f64),
    ("container_oom_events_total", "counter", "Count of out of memory events observed for the container.", |u| {
        u.oom_kills as f64
    }),
    ("container_spec_memory_limit_bytes", "gauge", "Memory limit for the container, 0 for none.", |u| {
        u.memory_limit.unwrap_or_default() as f64
    }),
    ("container_threads", "gauge", "Number of threads running inside the container.", |u| u.processes as f64),
    ("container_last_seen", "gauge", "Last time a container was seen.", |_| jiff::Timestamp::now().as_second() as f64),
];

const NETWORK: [OfInterface; 8] = [
    ("container_network_receive_bytes_total", "Cumulative count of bytes received", |i| i.received[0]),
    ("container_network_receive_packets_total", "Cumulative count of packets received", |i| i.received[1]),
    ("container_network_receive_errors_total", "Cumulative count of errors while receiving", |i| i.received[2]),
    ("container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving", |i| {
        i.received[3]
    }),
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", |i| i.sent[0]),
    ("container_network_transmit_packets_total", "Cumulative count of packets transmitted", |i| i.sent[1]),
    ("container_network_transmit_errors_total", "Cumulative count of errors while transmitting", |i| i.sent[2]),
    ("container_network_transmit_packets_dropped_total", "Cumulative count of packets dropped while sending", |i| {
        i.sent[3]
    }),
];

/// The answer.
pub async fn cadvisor(State(kubelet): State<Kubelet>) -> Response {
    let pods = read(&kubelet);
    let mut text = Text::default();
    for (name, kind, help, value) in USAGE {
        text.metric(name, kind, help);
        each(&pods, |labels, usage| {
            let mut labels = labels.to_vec();
            match name {
                "container_cpu_usage_seconds_total" => labels.push(("cpu", "total")),
                "container_memory_failures_total" => {
                    labels.extend([("failure_type", "pgfault"), ("scope", "hierarchy")]);
                }
                _ => {}
            }
            text.sample(name, &labels, value(usage), None);
        });
    }
    text.metric("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds.");
    for PodReading { pod, cgroup, containers, .. } in &pods {
        for c in containers {
            let id = format!("/{cgroup}/{}", c.id);
            text.sample("container_start_time_seconds", &labels(pod, &id, Some(c)), c.started, None);
        }
    }
    for (name, help, value) in NETWORK {
        text.metric(name, "counter", help);
        for PodReading { pod, cgroup, interfaces, .. } in &pods {
            let id = format!("/{cgroup}");
            for interface in interfaces {
                let mut labels = labels(pod, &id, None).to_vec();
                labels.insert(3, ("interface", &interface.name));
                text.sample(name, &labels, value(interface) as f64, None);
            }
        }
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    text.single("machine_cpu_cores", "gauge", "Number of logical CPU cores.", &[], cpus as f64);
    text.single(
        "machine_memory_bytes",
        "gauge",
        "Amount of memory installed on the machine.",
        &[],
        node_usage().total as f64,
    );
    text.response()
}

/// cAdvisor's labels of a container, or of the pod's own cgroup.
fn labels<'a>(pod: &'a Pod, id: &'a str, container: Option<&'a ContainerReading>) -> [(&'static str, &'a str); 6] {
    let of = |part: fn(&ContainerReading) -> &String| container.map_or("", |c| part(c));
    [
        ("container", of(|c| &c.name)),
        ("id", id),
        ("image", of(|c| &c.image)),
        ("name", of(|c| &c.id)),
        ("namespace", pod.ns()),
        ("pod", pod.name()),
    ]
}

/// Every pod's cgroup, then every container's, with cAdvisor's labels.
fn each(pods: &[PodReading], mut tell: impl FnMut(Labels<'_>, &Usage)) {
    for PodReading { pod, cgroup, usage, containers, .. } in pods {
        let id = format!("/{cgroup}");
        tell(&labels(pod, &id, None), usage);
        for c in containers {
            let id = format!("{id}/{}", c.id);
            tell(&labels(pod, &id, Some(c)), &c.usage);
        }
    }
}
