//! `/metrics`: the agent about itself; `/metrics/probes`: about probes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use k8s_openapi::api::core::v1::Pod;

use super::text::Text;
use crate::machine::health::Readings;
use crate::machine::usage::{FileSystem, node_usage};
use crate::metrics;
use crate::pod::PodExt;
use crate::pod::probe::Counts;
use crate::server::api::Kubelet;
use crate::volume::ClaimFigures;

/// Kernel ticks per second in `/proc/self/stat`.
const TICKS: f64 = 100.0;
/// Bytes in a page as `/proc/self/statm` counts them.
fn page() -> f64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096.0, |n| n as f64)
}

type OfClaim = (&'static str, &'static str, fn(&FileSystem) -> u64);

const CLAIMS: [OfClaim; 6] = [
    ("kubelet_volume_stats_capacity_bytes", "Size of a claim's file system.", |f| f.capacity),
    ("kubelet_volume_stats_available_bytes", "Bytes that can still be written to a claim.", |f| f.available),
    ("kubelet_volume_stats_used_bytes", "Used bytes of a claim's file system.", |f| f.used),
    ("kubelet_volume_stats_inodes", "Inodes of a claim's file system.", |f| f.inodes),
    ("kubelet_volume_stats_inodes_free", "Free inodes of a claim's file system.", |f| f.inodes_free),
    ("kubelet_volume_stats_inodes_used", "Used inodes of a claim's file system.", |f| {
        f.inodes.saturating_sub(f.inodes_free)
    }),
];

/// The answer to `/metrics`.
pub async fn metrics(State(kubelet): State<Kubelet>) -> Response {
    let mut text = Text::default();
    let all = kubelet.pods.list();
    let running = all.iter().filter(|p| kubelet.runtime.sandbox_of(p.uid()).is_some());
    pods(&mut text, &kubelet.node, running.count(), &all);
    board(&mut text, &Readings::read(Path::new("/")));
    process(&mut text);
    let wanted = all.iter().map(|p| &**p).filter(|p| !p.is_done());
    volumes(&mut text, &kubelet.volumes.count(wanted), &kubelet.volumes.claims(&all).await);
    for family in metrics::ALL {
        text.family(family);
    }
    text.response()
}

/// The agent, and how many pods and containers it has.
fn pods(text: &mut Text, node: &str, running: usize, pods: &[Arc<Pod>]) {
    text.single("kubelet_running_pods", "gauge", "Number of pods that have a running pod sandbox", &[], running as f64);
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
    text.single("kubelet_node_name", "gauge", "The node's name. The count is always 1.", &[("node", node)], 1.0);
    let version = [("git_version", crate::cluster::KUBELET_VERSION), ("pikelet_version", env!("CARGO_PKG_VERSION"))];
    text.single("kubernetes_build_info", "gauge", "What is running, always 1.", &version, 1.0);
}

/// How many volumes there are, and how full those of claims are, each once.
fn volumes(text: &mut Text, counts: &BTreeMap<&'static str, [u64; 2]>, claims: &[ClaimFigures]) {
    let name = "volume_manager_total_volumes";
    text.metric(name, "gauge", "Volumes that pods want, and those that are set up, by kind.");
    for (plugin, of) in counts {
        for (state, count) in ["desired_state_of_world", "actual_state_of_world"].into_iter().zip(of) {
            text.sample(name, &[("plugin_name", plugin), ("state", state)], *count as f64, None);
        }
    }
    let claims: BTreeMap<_, _> = claims.iter().map(|c| ((c.namespace.as_str(), c.claim.as_str()), c.of)).collect();
    for (name, help, value) in CLAIMS {
        text.metric(name, "gauge", help);
        for ((namespace, claim), of) in &claims {
            text.sample(name, &[("namespace", namespace), ("persistentvolumeclaim", claim)], value(of) as f64, None);
        }
    }
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
    probed(&mut text, &kubelet.probe_counts);
    text.response()
}

fn probed(text: &mut Text, counts: &Counts) {
    let help = "Cumulative number of a liveness, readiness or startup probe for a container by result.";
    text.metric("prober_probe_total", "counter", help);
    for (probed, count) in counts.list() {
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
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::machine::health::Zone;
    use crate::pod::probe::Kind;

    /// What `/metrics` and `/metrics/probes` tell of a node with one pod that has all there can be.
    pub async fn told() -> (Text, Text) {
        let (mut text, mut of_probes) = (Text::default(), Text::default());
        pods(&mut text, "n", 1, &[]);
        process(&mut text);
        let of = FileSystem { capacity: 10, available: 3, used: 6, inodes: 5, inodes_free: 1 };
        // two pods of one claim
        let claim =
            ClaimFigures { pod_uid: "u".into(), volume: "v".into(), namespace: "n".into(), claim: "c".into(), of };
        volumes(&mut text, &[("kubernetes.io/nfs", [2, 1])].into(), &[claim.clone(), claim]);
        metrics::runtime("told", async { Ok::<_, ()>(()) }).await.unwrap();
        metrics::POD_WORKERS.observe(["sync".into()], std::time::Duration::ZERO);
        metrics::CGROUPS.observe(["update".into()], std::time::Duration::ZERO);
        metrics::VOLUMES.observe([const { std::borrow::Cow::Borrowed("x") }; 4], std::time::Duration::ZERO);
        metrics::REQUESTS_SENT.add(["200".into(), "h".into(), "GET".into()]);
        metrics::REQUEST_TIMES.observe(["h".into(), "GET".into()], std::time::Duration::ZERO);
        metrics::EVICTIONS.expect(["memory.available".into()]);
        metrics::CONTAINERS_STARTED.add(["container".into()]);
        for family in metrics::ALL {
            text.family(family);
        }
        let counts = Counts::default();
        counts.add(&Pod::default(), "c", Kind::Liveness, true);
        probed(&mut of_probes, &counts);
        (text, of_probes)
    }

    #[tokio::test]
    async fn a_claim_of_two_pods_is_told_of_once() {
        let (text, _) = told().await;
        let of = |start: &str| text.lines().filter(|l| l.starts_with(start)).map(str::to_owned).collect::<Vec<_>>();
        let claim = r#"{namespace="n",persistentvolumeclaim="c"}"#;
        assert_eq!(of("kubelet_volume_stats_used_bytes{"), [format!("kubelet_volume_stats_used_bytes{claim} 6")]);
        assert_eq!(of("kubelet_volume_stats_inodes_used{"), [format!("kubelet_volume_stats_inodes_used{claim} 4")]);
        let volumes = [("desired", 2), ("actual", 1)].map(|(state, count)| {
            let labels = format!(r#"plugin_name="kubernetes.io/nfs",state="{state}_state_of_world""#);
            format!("volume_manager_total_volumes{{{labels}}} {count}")
        });
        assert_eq!(of("volume_manager_total_volumes{"), volumes);
    }

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
