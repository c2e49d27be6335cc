//! `/metrics`: the agent about itself; `/metrics/probes`: about probes.

use std::fs;
use std::path::Path;

use axum::extract::State;
use axum::response::Response;

use super::text::Text;
use crate::machine::health::Readings;
use crate::machine::usage::node_usage;
use crate::pod::PodExt;
use crate::server::api::Kubelet;

/// Kernel ticks per second in `/proc/self/stat`.
const TICKS: f64 = 100.0;
/// Bytes in a page as `/proc/self/statm` counts them.
fn page() -> f64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096.0, |n| n as f64)
}

/// The answer to `/metrics`.
pub async fn metrics(State(kubelet): State<Kubelet>) -> Response {
    let mut text = Text::default();
    let pods = kubelet.pods.list();
    let running = pods.iter().filter(|p| kubelet.runtime.sandbox_of(p.uid()).is_some());
    text.single(
        "kubelet_running_pods",
        "gauge",
        "Number of pods that have a running pod sandbox",
        &[],
        running.count() as f64,
    );
    text.metric("kubelet_running_containers", "gauge", "Number of containers by state");
    let states = pods.iter().flat_map(|p| p.status.iter().flat_map(|s| s.container_statuses.iter().flatten()));
    let (mut up, mut ended, mut waiting) = (0, 0, 0);
    for state in states.filter_map(|c| c.state.as_ref()) {
        match state {
            s if s.running.is_some() => up += 1,
            s if s.terminated.is_some() => ended += 1,
            _ => waiting += 1,
        }
    }
    for (state, count) in [("running", up), ("exited", ended), ("created", waiting)] {
        text.sample("kubelet_running_containers", &[("container_state", state)], f64::from(count), None);
    }
    let node = kubelet.node.as_str();
    text.single("kubelet_node_name", "gauge", "The node's name. The count is always 1.", &[("node", node)], 1.0);
    let version = [("git_version", crate::cluster::KUBELET_VERSION), ("pikelet_version", env!("CARGO_PKG_VERSION"))];
    text.single("kubernetes_build_info", "gauge", "What is running, always 1.", &version, 1.0);
    board(&mut text, &Readings::read(Path::new("/")));
    process(&mut text);
    text.response()
}

/// What the board's sensors say; nothing of those it does not have.
fn board(text: &mut Text, readings: &Readings) {
    if !readings.zones.is_empty() {
        let name = "pikelet_board_temperature_celsius";
        text.metric(name, "gauge", "Temperature of a thermal zone of the board.");
        for zone in &readings.zones {
            let labels = [("zone", zone.name.as_str()), ("type", &zone.kind)];
            text.sample(name, &labels, zone.temperature as f64 / 1000.0, None);
        }
    }
    let told = [
        (
            "pikelet_board_under_voltage",
            "1 while the board's supply is too weak, 0 otherwise.",
            readings.under_voltage(),
        ),
        ("pikelet_board_cpu_throttled", "1 while the processor is slowed down, 0 otherwise.", readings.slowed()),
    ];
    for (name, help, value) in told {
        if let Some(value) = value {
            text.single(name, "gauge", help, &[], f64::from(u8::from(value)));
        }
    }
}

fn process(text: &mut Text) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = stat
        .rsplit_once(") ")
        .map(|(_, rest)| rest.split_whitespace().skip(1).map(|f| f.parse().unwrap_or(0.0)).collect())
        .unwrap_or_default();
    // counted from the parent's id: utime and stime, then the start time
    let field = |at: usize| fields.get(at).copied().unwrap_or_default();
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let resident = statm.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok()).unwrap_or_default() * page();
    let files = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let started = node_usage().booted as f64 + field(18) / TICKS;
    for (name, kind, help, value) in [
        (
            "process_cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            (field(10) + field(11)) / TICKS,
        ),
        ("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", resident),
        ("process_open_fds", "gauge", "Number of open file descriptors.", files as f64),
        ("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", started),
    ] {
        text.single(name, kind, help, &[], value);
    }
}

/// The answer to `/metrics/probes`.
pub async fn probes(State(kubelet): State<Kubelet>) -> Response {
    let mut text = Text::default();
    let help = "Cumulative number of a liveness, readiness or startup probe for a container by result.";
    text.metric("prober_probe_total", "counter", help);
    for (probed, count) in kubelet.probe_counts.list() {
        for (result, value) in [("successful", count.successful), ("failed", count.failed)] {
            let labels = [
                ("container", probed.container.as_str()),
                ("namespace", &probed.namespace),
                ("pod", &probed.pod),
                ("pod_uid", &probed.pod_uid),
                ("probe_type", probed.kind.name()),
                ("result", result),
            ];
            if value > 0 {
                text.sample("prober_probe_total", &labels, value as f64, None);
            }
        }
    }
    text.response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::health::Zone;

    #[test]
    fn a_board_is_told_by_its_sensors() {
        let mut text = Text::default();
        board(&mut text, &Readings::default());
        assert_eq!(text, Text::default());
        let zone = Zone { name: "thermal_zone0".into(), kind: "cpu-thermal".into(), temperature: 48_686 };
        board(&mut text, &Readings { zones: vec![zone], firmware: Some(5), ..Readings::default() });
        let said = format!("{text:?}");
        for line in [
            r#"pikelet_board_temperature_celsius{zone=\"thermal_zone0\",type=\"cpu-thermal\"} 48.686"#,
            "pikelet_board_under_voltage 1",
            "pikelet_board_cpu_throttled 1",
        ] {
            assert!(said.contains(line), "{line} in {said}");
        }
    }
}
