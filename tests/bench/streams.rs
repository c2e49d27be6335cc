//! Figures of exec: how long a command takes, how fast bytes go, what a reader that stops costs.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::AttachParams;
use kube::{Api, Client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::procs::Node;
use super::{Outcome, millis, row, spread};

/// Measures on a running pod; `bytes` is how much goes through a stream.
pub async fn measure(pod: &str, node: &Node, single: usize, bytes: usize) -> Outcome<()> {
    // kube's own client: a websocket needs HTTP/1.1
    let api: Api<Pod> = Api::default_namespaced(Client::try_default().await?);
    let mut times = Vec::new();
    for _ in 0..single {
        let start = Instant::now();
        let mut process = api.exec(pod, ["true"], &AttachParams::default().stderr(false)).await?;
        let status = process.take_status().ok_or("no status")?.await;
        if status.and_then(|s| s.status).as_deref() != Some("Success") {
            return Err("true did not succeed".into());
        }
        times.push(millis(start.elapsed()));
    }
    let (p50, worst) = spread(times);
    row("exec of true through the API server, p50 / worst", &format!("{p50:.1} / {worst:.1} ms"), "40 ms");

    let rate = |time: Duration| format!("{:.0} MB/s", bytes as f64 / 1e6 / time.as_secs_f64());
    let all = bytes.to_string();
    let command = ["head", "-c", &all, "/dev/zero"];
    let start = Instant::now();
    let mut process = api.exec(pod, command, &AttachParams::default().stderr(false)).await?;
    let mut out = process.stdout().ok_or("no standard output")?;
    let (mut buffer, mut seen) = (vec![0; 256 << 10], 0);
    while seen < bytes {
        match out.read(&mut buffer).await? {
            0 => return Err(format!("{seen} of {bytes} bytes arrived").into()),
            count => seen += count,
        }
    }
    row("exec, bytes out of the container", &rate(start.elapsed()), "200 MB/s");

    let start = Instant::now();
    let parameters = AttachParams::default().stdin(true).stderr(false);
    let mut process = api.exec(pod, ["sh", "-c", &format!("head -c {bytes} | wc -c")], &parameters).await?;
    let (mut stdin, mut out) =
        (process.stdin().ok_or("no standard input")?, process.stdout().ok_or("no standard output")?);
    let mut sent = 0;
    while sent < bytes {
        let piece = &buffer[..buffer.len().min(bytes - sent)];
        stdin.write_all(piece).await?;
        sent += piece.len();
    }
    let mut answer = String::new();
    out.read_to_string(&mut answer).await?;
    if answer.trim() != all {
        return Err(format!("{answer} of {bytes} bytes arrived").into());
    }
    row("exec, bytes into the container", &rate(start.elapsed()), "200 MB/s");

    let (before, _) = node.memory()?;
    let stalled = api.exec(pod, ["head", "-c", &all, "/dev/zero"], &AttachParams::default().stderr(false)).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (after, _) = node.memory()?;
    row("agent's growth while a reader stalls, PSS", &format!("{:.2} MiB", after - before), "2 MiB");
    stalled.abort();
    Ok(())
}
