//! Figures of membership: how soon a node is Ready after its agent was started, as a member and as a new node with a
//! bootstrap token; how soon the pods of a board run again that booted with no API server; how soon every status is right
//! once the API server is back.
//!
//! Expects, beside what all figures need, a cluster that lets nodes join by `BENCH_TOKEN` and `BENCH_CA_HASH`, and the
//! program to measure in `PIKELET_BIN`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::runtime::wait::await_condition;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::process::Command;

use super::{LIMIT, Outcome, delete, millis, names, row, running, spread, timed};

/// How much is measured.
struct Extent {
    /// Starts of the agent of a member, and joins.
    rounds: usize,
    /// Pods that end while there is no API server.
    ending: usize,
    /// Pods of the board that boots.
    booted: usize,
    /// How long the API server is away at least: long enough for whoever waits to wait as long as it ever does.
    away: Duration,
}

const FULL: Extent = Extent { rounds: 5, ending: 100, booted: 20, away: Duration::from_secs(30) };
const SHORT: Extent = Extent { rounds: 1, ending: 5, booted: 2, away: Duration::ZERO };

/// The server nodes join.
const SERVER: &str = "https://10.77.0.1:6443";
/// How often what no watch tells is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// The cluster, seen from outside.
struct Cluster {
    dir: PathBuf,
    client: Client,
}

impl Cluster {
    /// `tests/scripts/cluster.sh ARGS`.
    async fn script(&self, args: &[&str]) -> Outcome<()> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/cluster.sh");
        let status = Command::new(script).args(args).stdout(Stdio::null()).status().await?;
        if status.success() { Ok(()) } else { Err(format!("cluster.sh {args:?}: {status}").into()) }
    }

    /// From the start of a node's agent until its Node is Ready.
    async fn start(&self, node: &str) -> Outcome<Duration> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let agent = format!("agent-{node}");
        let args = ["start", &agent];
        let start = Instant::now();
        let ready = async {
            tokio::time::timeout(LIMIT, await_condition(nodes, node, is_ready)).await??;
            Ok(start.elapsed())
        };
        tokio::try_join!(self.script(&args), ready).map(|((), time)| time)
    }

    /// Pods of a node in some phase, as its agent tells without an API server.
    async fn local(&self, node: &str, phase: &str) -> Outcome<usize> {
        let state = self.dir.join(node).join("run");
        let mut ps = Command::new(std::env::var("PIKELET_BIN")?);
        let said = ps.args(["ps", "-a", "-o", "json", "--state-dir"]).arg(state).output().await?;
        let list: Value = serde_json::from_slice(&said.stdout).unwrap_or_default();
        let pods = list["items"].as_array().into_iter().flatten();
        Ok(pods.filter(|pod| pod["status"]["phase"] == phase).count())
    }

    /// Waits until so many pods of a node are in that phase, by its agent.
    async fn until(&self, node: &str, phase: &str, count: usize) -> Outcome<()> {
        let start = Instant::now();
        while self.local(node, phase).await? != count {
            if start.elapsed() > LIMIT {
                return Err(format!("not all of {count} pods of {node} are {phase}").into());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Waits until the API server answers: it does so before it calls itself ready.
    async fn answers(&self) -> Outcome<()> {
        let start = Instant::now();
        loop {
            let request = http::Request::get("/api/v1/namespaces/default").body(Vec::new())?;
            match self.client.request_text(request).await {
                Ok(_) => return Ok(()),
                Err(error) if start.elapsed() > LIMIT => return Err(error.into()),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }
}

fn is_ready(node: Option<&Node>) -> bool {
    let conditions = node.and_then(|n| n.status.as_ref()).and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// From when the next new object is seen until the control plane has done its part of it.
async fn part<K>(api: Api<K>, done: impl Fn(&K) -> bool) -> Outcome<Duration>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let version = api.list(&ListParams::default().limit(1)).await?.metadata.resource_version.unwrap_or_default();
    let mut events = api.watch(&WatchParams::default().timeout(290), &version).await?.boxed();
    let mut new = None;
    while let Some(event) = tokio::time::timeout(LIMIT, events.try_next()).await?? {
        match event {
            WatchEvent::Added(object) => new = Some((object.meta().name.clone(), Instant::now(), object)),
            WatchEvent::Modified(changed) => {
                if let Some((name, _, object)) = &mut new
                    && *name == changed.meta().name
                {
                    *object = changed;
                }
            }
            _ => {}
        }
        if let Some((_, since, object)) = &new
            && done(object)
        {
            return Ok(since.elapsed());
        }
    }
    Err("the watch ended".into())
}

/// A pod of `node`; with `fifo` it ends when somebody has opened that for writing, else never.
fn pod(name: &str, node: &str, fifo: Option<&Path>) -> Outcome<Pod> {
    let command = if fifo.is_some() { ["cat", "/fifo"] } else { ["sleep", "100000"] };
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": node, "restartPolicy": "OnFailure", "terminationGracePeriodSeconds": 1, "containers": [
            {"name": "c", "image": std::env::var("BENCH_IMAGE")?, "imagePullPolicy": "IfNotPresent", "command": command}]}
    });
    if let Some(fifo) = fifo {
        pod["spec"]["volumes"] = json!([{"name": "fifo", "hostPath": {"path": fifo}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "fifo", "mountPath": "/fifo"}]);
    }
    Ok(serde_json::from_value(pod)?)
}

async fn create(api: &Api<Pod>, pods: Vec<Pod>) -> Outcome<()> {
    let make = async {
        let parameters = PostParams::default();
        futures::future::try_join_all(pods.iter().map(|p| api.create(&parameters, p))).await?;
        Ok(())
    };
    let done = |event: &WatchEvent<Pod>| match event {
        WatchEvent::Modified(p) if running(p) => p.metadata.name.clone(),
        _ => None,
    };
    timed(api, pods.len(), make, done).await.map(drop)
}

fn figure(what: &str, times: Vec<Duration>, mark: &str) {
    let (p50, worst) = spread(times.into_iter().map(millis).collect());
    row(what, &format!("{p50:.0} / {worst:.0} ms"), mark);
}

/// Measures all of it, on `n1` and on a node `n2` that joins.
pub async fn measure(client: Client, short: bool) -> Outcome<()> {
    let extent = if short { SHORT } else { FULL };
    let cluster = Cluster { dir: std::env::var("PIKELET_CLUSTER_DIR")?.into(), client: client.clone() };
    starts(&cluster, extent.rounds).await?;
    joins(&cluster, extent.rounds).await?;
    outage(&cluster, &extent).await
}

/// Starts of a member.
async fn starts(cluster: &Cluster, rounds: usize) -> Outcome<()> {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let (mut known, mut deleted) = (Vec::new(), Vec::new());
    // as the control plane does to one that was silent
    let unknown = Patch::Strategic(json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}));
    for _ in 0..rounds {
        cluster.script(&["stop", "agent-n1"]).await?;
        nodes.patch_status("n1", &PatchParams::default(), &unknown).await?;
        known.push(cluster.start("n1").await?);
        cluster.script(&["stop", "agent-n1"]).await?;
        nodes.delete("n1", &DeleteParams::default()).await?;
        deleted.push(cluster.start("n1").await?);
    }
    figure("a member's start to Ready, p50 / worst", known, "1000 ms");
    figure("  when its Node has been deleted, p50 / worst", deleted, "1000 ms");
    Ok(())
}

/// First joins with a bootstrap token.
async fn joins(cluster: &Cluster, rounds: usize) -> Outcome<()> {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let (token, hash) = (std::env::var("BENCH_TOKEN")?, std::env::var("BENCH_CA_HASH")?);
    let (mut times, mut theirs) = (Vec::new(), Vec::new());
    let way = ["--server", SERVER, "--token", &token, "--ca-cert-hash", &hash];
    let local = ["--insecure-registry", "10.77.0.1:5000", "--cluster-cidr", "10.244.0.0/16"];
    cluster.script(&[&["add", "n2"][..], &way, &local].concat()).await?;
    for round in 0..rounds {
        if round > 0 {
            cluster.script(&["stop", "agent-n2"]).await?;
            std::fs::remove_dir_all(cluster.dir.join("n2/lib"))?;
            nodes.delete("n2", &DeleteParams::default()).await?;
        }
        let issued = |c: &CertificateSigningRequest| c.status.as_ref().is_some_and(|s| s.certificate.is_some());
        let ranged = |n: &Node| n.spec.as_ref().is_some_and(|s| s.pod_cidr.is_some());
        let signing = part(Api::all(cluster.client.clone()), issued);
        let (time, signed, ranged) = tokio::try_join!(cluster.start("n2"), signing, part(nodes.clone(), ranged))?;
        times.push(time);
        theirs.push(signed + ranged);
    }
    figure("first join with a token to Ready, p50 / worst", times, "2000 ms and");
    figure("  of it the control plane's: approval, range", theirs, "");
    Ok(())
}

/// While there is no API server a board boots, and pods of another end; then it is back.
async fn outage(cluster: &Cluster, extent: &Extent) -> Outcome<()> {
    let api: Api<Pod> = Api::default_namespaced(cluster.client.clone());
    let (ending, booted) = (names("ending", extent.ending), names("booted", extent.booted));
    let fifo = cluster.dir.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
    create(&api, booted.iter().map(|n| pod(n, "n2", None)).collect::<Outcome<_>>()?).await?;
    create(&api, ending.iter().map(|n| pod(n, "n1", Some(&fifo))).collect::<Outcome<_>>()?).await?;

    // by itself it would wait for its watches
    cluster.script(&["stop", "apiserver", "KILL"]).await?;
    let left = Instant::now();
    cluster.script(&["cut", "n2"]).await?;
    let start = Instant::now();
    cluster.script(&["start", "agent-n2"]).await?;
    cluster.until("n2", "Running", booted.len()).await?;
    let time = format!("{:.2} s", start.elapsed().as_secs_f64());
    row(&format!("boot with no API server to {} pods Running", booted.len()), &time, "3 s");
    // every reader has opened it: this one waits for none
    drop(std::fs::OpenOptions::new().write(true).open(&fifo)?);
    cluster.until("n1", "Succeeded", ending.len()).await?;
    tokio::time::sleep(extent.away.saturating_sub(left.elapsed())).await;

    cluster.script(&["start", "apiserver"]).await?;
    cluster.answers().await?;
    let back = Instant::now();
    let mut seen = watcher(api.clone(), watcher::Config::default()).applied_objects().boxed();
    let mut right = BTreeSet::new();
    while right.len() < ending.len() {
        let pod = tokio::time::timeout(LIMIT, seen.next()).await?.ok_or("the watch ended")??;
        if pod.status.is_some_and(|s| s.phase.as_deref() == Some("Succeeded")) {
            right.extend(pod.metadata.name);
        }
    }
    let time = format!("{:.2} s", back.elapsed().as_secs_f64());
    row(&format!("API server back to {} statuses caught up", ending.len()), &time, "3 s");
    delete(&api, &ending).await?;
    delete(&api, &booted).await?;
    Ok(())
}
