//! `/metrics/resource`: what metrics-server and the autoscalers read (KEP-2371's stable names).

use axum::extract::State;
use axum::response::Response;

use super::text::Text;
use super::{PodReading, read};
use crate::machine::usage::{NodeUsage, node_usage};
use crate::pod::PodExt;
use crate::runtime::Usage;
use crate::server::api::Kubelet;

const NANOS: f64 = 1e-9;

type Value = fn(&Usage) -> f64;

/// The answer.
pub async fn resource(State(kubelet): State<Kubelet>) -> Response {
    let mut text = Text::default();
    write(&mut text, &read(&kubelet), node_usage());
    text.response()
}

fn write(text: &mut Text, pods: &[PodReading], node: NodeUsage) {
    let NodeUsage { cpu, working_set, swap, .. } = node;
    let node = Usage { cpu, working_set, swap, ..Usage::default() };
    let at = Some(jiff::Timestamp::now().as_millisecond());
    let values: [(&str, &str, &str, Value); 3] = [
        ("cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in core-seconds", |u| {
            u.cpu as f64 * NANOS
        }),
        ("memory_working_set_bytes", "gauge", "Current working set in bytes", |u| u.working_set as f64),
        ("swap_usage_bytes", "gauge", "Current amount of swap usage in bytes", |u| u.swap as f64),
    ];
    for (name, kind, help, value) in values {
        let full = format!("container_{name}");
        text.metric(&full, kind, &format!("[STABLE] {help} of the container"));
        for PodReading { pod, containers, .. } in pods {
            for c in containers {
                let labels = [("container", c.name.as_str()), ("namespace", pod.ns()), ("pod", pod.name())];
                text.sample(&full, &labels, value(&c.usage), at);
            }
        }
    }
    text.metric(
        "container_start_time_seconds",
        "gauge",
        "[STABLE] Start time of the container since unix epoch in seconds",
    );
    for PodReading { pod, containers, .. } in pods {
        for c in containers {
            let labels = [("container", c.name.as_str()), ("namespace", pod.ns()), ("pod", pod.name())];
            text.sample("container_start_time_seconds", &labels, c.started, at);
        }
    }
    for (name, kind, help, value) in values {
        let full = format!("node_{name}");
        text.metric(&full, kind, &format!("[STABLE] {help} of the node"));
        text.sample(&full, &[], value(&node), at);
    }
    for (name, kind, help, value) in values {
        let full = format!("pod_{name}");
        text.metric(&full, kind, &format!("[STABLE] {help} of the pod"));
        for PodReading { pod, usage, .. } in pods {
            text.sample(&full, &[("namespace", pod.ns()), ("pod", pod.name())], value(usage), at);
        }
    }
    text.single("resource_scrape_error", "gauge", "[STABLE] 1 if there was an error, 0 otherwise", &[], 0.0);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::server::stats::ContainerReading;

    /// What is told of a node with one pod.
    pub fn told() -> Text {
        let (name, id, image) = ("c".to_owned(), "1".to_owned(), "i".to_owned());
        let container = ContainerReading { name, id, image, started: 1.0, usage: Usage::default() };
        let (usage, containers) = (Usage::default(), vec![container]);
        let (pod, cgroup) = (std::sync::Arc::default(), "podu".to_owned());
        let reading = PodReading { pod, cgroup, usage, interfaces: Vec::new(), containers };
        let mut text = Text::default();
        write(&mut text, &[reading], NodeUsage::default());
        text
    }
}
