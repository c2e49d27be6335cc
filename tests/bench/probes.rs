//! Probes at scale: each pod has a startup, a readiness and a liveness probe of one second by httpGet. When each came is
//! told by the pods' own servers, in their logs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use futures::future::try_join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{PostParams, WatchEvent};
use serde_json::json;

use super::procs::Node;
use super::{Outcome, delete, names, row, timed};

/// Milliseconds between two looks of a probe.
const PERIOD: f64 = 1000.0;

fn pod(name: &str) -> Outcome<Pod> {
    // -vv: a line for each request
    let command = ["sh", "-c", "mkdir /www; touch /www/up /www/ready /www/live; exec httpd -f -vv -p 8080 -h /www"];
    let probe =
        |path: &str| json!({"httpGet": {"path": path, "port": 8080}, "periodSeconds": 1, "failureThreshold": 60});
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": "n1", "terminationGracePeriodSeconds": 0, "containers": [
            {"name": "c", "image": std::env::var("BENCH_IMAGE")?, "imagePullPolicy": "IfNotPresent", "command": command,
             "startupProbe": probe("/up"), "readinessProbe": probe("/ready"), "livenessProbe": probe("/live")}]}
    }))?)
}

fn ready(event: &WatchEvent<Pod>) -> Option<String> {
    let WatchEvent::Modified(pod) = event else { return None };
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
    pod.metadata.name.clone().filter(|_| ready)
}

/// When each path of a server was asked for, from its log in the CRI format.
fn requests(log: &str) -> BTreeMap<&str, Vec<Timestamp>> {
    let mut found = BTreeMap::<&str, Vec<Timestamp>>::new();
    for line in log.lines() {
        let (Some((time, _)), Some((_, path))) = (line.split_once(' '), line.rsplit_once("url:/")) else { continue };
        found.entry(path.trim()).or_default().extend(time.parse::<Timestamp>());
    }
    found
}

/// Looks of all probes between two moments, and by how many milliseconds the latest came too late.
fn lateness(logs: &Path, count: usize, from: Timestamp, to: Timestamp) -> Outcome<(usize, f64)> {
    let (mut looks, mut probes, mut worst) = (0, 0, 0.0_f64);
    for folder in fs::read_dir(logs)?.flatten() {
        if !folder.file_name().to_string_lossy().starts_with("default_probed-") {
            continue;
        }
        let log = fs::read_to_string(folder.path().join("c/0.log"))?;
        for (_, times) in requests(&log).into_iter().filter(|(path, _)| matches!(*path, "ready" | "live")) {
            probes += 1;
            let within: Vec<Timestamp> = times.into_iter().filter(|t| (from..=to).contains(t)).collect();
            looks += within.len();
            // the ends count too: one that never came is late by the whole time
            let all: Vec<Timestamp> = [from].into_iter().chain(within).chain([to]).collect();
            let gaps = all.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs_f64() * 1000.0);
            worst = gaps.fold(worst, |worst, gap| worst.max(gap - PERIOD));
        }
    }
    if probes != 2 * count {
        return Err(format!(
            "{probes} probes of {count} pods were seen in {}: {} are needed",
            logs.display(),
            2 * count
        )
        .into());
    }
    Ok((looks, worst))
}

/// Measures `count` pods for `time`.
pub async fn measure(api: &Api<Pod>, node: &Node, count: usize, time: Duration) -> Outcome<()> {
    let probed = names("probed", count);
    let create = async {
        let pods = probed.iter().map(|n| pod(n)).collect::<Outcome<Vec<_>>>()?;
        let parameters = PostParams::default();
        try_join_all(pods.iter().map(|p| api.create(&parameters, p))).await?;
        Ok(())
    };
    let up = timed(api, count, create, ready).await?;
    row(&format!("{count} pods with three probes at once, all Ready"), &format!("{:.2} s", up.as_secs_f64()), "");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (from, cpu) = (Timestamp::now(), node.agent_cpu()?);
    tokio::time::sleep(time).await;
    let (to, used) = (Timestamp::now(), node.agent_cpu()? - cpu);
    // what the shims still copy
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (looks, worst) = lateness(&node.logs(), count, from, to)?;
    let rate = looks as f64 / time.as_secs_f64();
    row(&format!("httpGet probes of {count} pods"), &format!("{rate:.0} per second"), &format!("{}", 2 * count));
    row("  the latest came too late by", &format!("{worst:.0} ms"), "200 ms");
    let share = used / time.as_secs_f64() * 100.0;
    row("  CPU of the agent", &format!("{share:.2} % of a core"), "5 %");
    delete(api, &probed).await?;
    Ok(())
}
