//! `make bench`: the figures of one pikelet node on a real control plane, beside `crun run` in the same run.
//!
//! Expects a cluster of tests/scripts/cluster.sh that is up with one node, its folder in `PIKELET_CLUSTER_DIR`, the
//! image in `BENCH_IMAGE` in its registry, the control plane's network namespace in `BENCH_NETNS`, and in `CRUN_MILLIS`
//! the times of single `crun run`s, one per line. With the argument `membership`: the figures of membership.rs alone.

mod exec;
mod membership;
mod probes;
mod procs;
mod streams;

use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use procs::Node;
use serde_json::json;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// How much is measured.
struct Extent {
    /// Pods of the one-by-one figures.
    single: usize,
    /// Pods started at once.
    many: usize,
    /// Pods on the node while memory and idle work are measured.
    standing: usize,
    /// How long idle work is measured.
    idle: Duration,
    /// Bytes through a stream.
    stream: usize,
    /// Pods with probes, and for how long they are watched.
    probed: (usize, Duration),
}

const FULL: Extent = Extent {
    single: 20,
    many: 100,
    standing: 50,
    idle: Duration::from_secs(30),
    stream: 1 << 30,
    probed: (110, Duration::from_secs(30)),
};
/// With `BENCH_SHORT`: shows that every figure can be measured, not what it is.
const SHORT: Extent = Extent {
    single: 3,
    many: 10,
    standing: 5,
    idle: Duration::from_secs(2),
    stream: 16 << 20,
    probed: (10, Duration::from_secs(3)),
};
/// Longest wait for any step.
const LIMIT: Duration = Duration::from_mins(2);

fn pod(name: &str) -> Outcome<Pod> {
    let command = ["sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"];
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": "n1", "containers": [
            {"name": "c", "image": std::env::var("BENCH_IMAGE")?, "imagePullPolicy": "IfNotPresent", "command": command}]}
    }))?)
}

fn running(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Running"))
}

/// Does `act`, then waits on a watch opened before until `done` has been true of `count` pods; returns how long.
async fn timed<F: Future<Output = Outcome<()>>>(
    api: &Api<Pod>,
    count: usize,
    act: F,
    done: impl Fn(&WatchEvent<Pod>) -> Option<String>,
) -> Outcome<Duration> {
    let list = api.list(&ListParams::default().limit(1)).await?;
    let mut version = list.metadata.resource_version.unwrap_or_default();
    let parameters = WatchParams::default().timeout(290);
    let mut events = api.watch(&parameters, &version).await?.boxed();
    let start = Instant::now();
    let seen = async {
        let mut seen = BTreeSet::new();
        while seen.len() < count {
            let Some(event) = tokio::time::timeout(LIMIT, events.try_next()).await?? else {
                // the API server ends the watch of a client it finds slow
                events = api.watch(&parameters, &version).await?.boxed();
                continue;
            };
            if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) | WatchEvent::Deleted(pod) = &event {
                version = pod.metadata.resource_version.clone().unwrap_or_default();
            }
            seen.extend(done(&event));
        }
        Ok(start.elapsed())
    };
    tokio::try_join!(act, seen).map(|((), time)| time)
}

async fn start(api: &Api<Pod>, names: &[String]) -> Outcome<Duration> {
    let create = async {
        let pods = names.iter().map(|n| pod(n)).collect::<Outcome<Vec<_>>>()?;
        let parameters = PostParams::default();
        futures::future::try_join_all(pods.iter().map(|p| api.create(&parameters, p))).await?;
        Ok(())
    };
    let done = |event: &WatchEvent<Pod>| match event {
        WatchEvent::Modified(p) if running(p) => p.metadata.name.clone(),
        _ => None,
    };
    timed(api, names.len(), create, done).await
}

async fn delete(api: &Api<Pod>, names: &[String]) -> Outcome<Duration> {
    let delete = async {
        let parameters = DeleteParams::default();
        futures::future::try_join_all(names.iter().map(|n| api.delete(n, &parameters))).await?;
        Ok(())
    };
    let done = |event: &WatchEvent<Pod>| match event {
        WatchEvent::Deleted(p) => p.metadata.name.clone(),
        _ => None,
    };
    timed(api, names.len(), delete, done).await
}

fn names(stem: &str, count: usize) -> Vec<String> {
    (0..count).map(|i| format!("{stem}-{i}")).collect()
}

/// Median and worst in milliseconds.
fn spread(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times.get(times.len() / 2).copied().unwrap_or(f64::NAN), times.last().copied().unwrap_or(f64::NAN))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn row(what: &str, value: &str, mark: &str) {
    println!("{what:<52} {value:>24}   {mark}");
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let short = std::env::var_os("BENCH_SHORT").is_some();
    let client = pikelet::cluster::connect(Path::new(&std::env::var("KUBECONFIG")?)).await?;
    match std::env::args().nth(1).as_deref() {
        Some("membership") => membership::measure(client, short).await,
        _ => measure(client, if short { SHORT } else { FULL }).await,
    }
}

/// Measures pods, one after the other and many at once.
async fn measure(client: Client, extent: Extent) -> Outcome<()> {
    let Extent { single, many: count, standing, idle, stream, probed } = extent;
    let node = Node::find()?;
    let api: Api<Pod> = Api::default_namespaced(client.clone());
    let crun: Vec<f64> =
        std::env::var("CRUN_MILLIS")?.lines().map(str::parse).collect::<Result<_, std::num::ParseFloatError>>()?;
    let (crun, crun_worst) = spread(crun);
    // the first pod pulls the image
    start(&api, &names("warm", 1)).await?;
    delete(&api, &names("warm", 1)).await?;
    row("figure", "measured", "to reach");
    row("crun run of the same image, p50 / worst", &format!("{crun:.1} / {crun_worst:.1} ms"), "");

    let (mut starts, mut deletes) = (Vec::new(), Vec::new());
    for name in names("one", single) {
        starts.push(millis(start(&api, std::slice::from_ref(&name)).await?));
        deletes.push(millis(delete(&api, std::slice::from_ref(&name)).await?));
    }
    let (p50, worst) = spread(starts);
    row("one pod, create to Running, p50 / worst", &format!("{p50:.1} / {worst:.1} ms"), "50 ms");
    row("  in times of crun run", &format!("{:.2}", p50 / crun), "");
    let (p50, worst) = spread(deletes);
    row("one pod, delete, p50 / worst", &format!("{p50:.1} / {worst:.1} ms"), "150 ms");

    let before = node.cpu()?;
    let many = names("many", count);
    let time = start(&api, &many).await?;
    row(&format!("{count} pods at once, all Running"), &format!("{:.2} s", time.as_secs_f64()), "3 s");
    let used = node.cpu()? - before;
    row("CPU of agent, shims and setup per pod started", &format!("{:.1} ms", used * 1000.0 / count as f64), "30 ms");
    let (scrapes, before) = (20, node.cpu()?);
    for _ in 0..scrapes {
        let request = http::Request::get("/api/v1/nodes/n1/proxy/metrics/resource").body(Vec::new())?;
        client.request_text(request).await?;
    }
    let used = (node.cpu()? - before) * 1000.0 / f64::from(scrapes);
    row(&format!("CPU of /metrics/resource with {count} pods"), &format!("{used:.1} ms"), "20 ms");
    let (gone, kept) = many.split_at(count - standing);
    let before = node.cpu()?;
    let time = delete(&api, gone).await?;
    row(&format!("{} pods deleted at once", gone.len()), &format!("{:.2} s", time.as_secs_f64()), "");
    let used = node.cpu()? - before;
    row("CPU per pod deleted", &format!("{:.1} ms", used * 1000.0 / gone.len() as f64), "");

    tokio::time::sleep(Duration::from_secs(5)).await;
    let (agent, shims) = node.memory()?;
    row(&format!("agent with {standing} pods, PSS"), &format!("{agent:.1} MiB"), "20 MiB");
    row("shim per pod, PSS", &format!("{shims:.2} MiB"), "1 MiB");
    let (cpu, written) = (node.cpu()?, node.written());
    tokio::time::sleep(idle).await;
    let share = (node.cpu()? - cpu) / idle.as_secs_f64() * 100.0;
    row(&format!("idle CPU with {standing} pods"), &format!("{share:.2} % of a core"), "0.5 %");
    let bytes = node.written() - written;
    row(&format!("bytes written to disk in {} s", idle.as_secs()), &bytes.to_string(), "0");
    let cluster = std::env::var("PIKELET_CLUSTER_DIR")?;
    let access = exec::Access::new(Path::new(&cluster), Path::new(&std::env::var("BENCH_NETNS")?), "10.77.0.1:6443")?;
    streams::measure(&access, &kept[0], &node, single, stream).await?;
    delete(&api, kept).await?;
    probes::measure(&api, &node, probed.0, probed.1).await?;
    Ok(())
}
