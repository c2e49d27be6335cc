//! Figures of exec: how long a command takes, how fast bytes go, what a reader that stops costs.

use std::time::{Duration, Instant};

use super::exec::{Access, Exec, Said};
use super::procs::Node;
use super::{Outcome, millis, row, spread};

/// Measures on a running pod; `bytes` is how much goes through a stream.
pub async fn measure(access: &Access, pod: &str, node: &Node, single: usize, bytes: usize) -> Outcome<()> {
    let mut times = Vec::new();
    for _ in 0..single {
        let start = Instant::now();
        let mut process = access.exec(pod, &["true"], false).await?;
        output(&mut process).await?;
        times.push(millis(start.elapsed()));
    }
    let (p50, worst) = spread(times);
    row("exec of true through the API server, p50 / worst", &format!("{p50:.1} / {worst:.1} ms"), "40 ms");

    let rate = |time: Duration| format!("{:.0} MB/s", bytes as f64 / 1e6 / time.as_secs_f64());
    let all = bytes.to_string();
    let count = format!("count={}", bytes >> 16);
    let zeros = ["dd", "if=/dev/zero", "bs=64k", &count];
    let start = Instant::now();
    let (seen, _) = output(&mut access.exec(pod, &zeros, false).await?).await?;
    if seen != bytes {
        return Err(format!("{seen} of {bytes} bytes arrived").into());
    }
    row("exec, bytes out of the container", &rate(start.elapsed()), "200 MB/s");

    let start = Instant::now();
    let mut process = access.exec(pod, &["wc", "-c"], true).await?;
    process.send_zeros(bytes).await?;
    let (_, answer) = output(&mut process).await?;
    if answer.trim() != all {
        return Err(format!("{answer} of {bytes} bytes arrived").into());
    }
    row("exec, bytes into the container", &rate(start.elapsed()), "200 MB/s");

    let (before, _) = node.memory()?;
    let reader = access.exec(pod, &zeros, false).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (after, _) = node.memory()?;
    row("agent's growth while a reader stalls, PSS", &format!("{:.2} MiB", after - before), "2 MiB");
    drop(reader);

    let (before, _) = node.memory()?;
    let mut program = access.exec(pod, &["sleep", "60"], true).await?;
    // blocks as soon as everything on the way is full
    let stuck = tokio::time::timeout(Duration::from_secs(3), program.send_zeros(1 << 30)).await;
    if stuck.is_ok() {
        return Err("a program that reads nothing took 1 GiB".into());
    }
    let (after, _) = node.memory()?;
    row("agent's growth while a program stalls, PSS", &format!("{:.2} MiB", after - before), "2 MiB");
    Ok(())
}

/// Reads all output: its length, and its beginning as text.
async fn output(process: &mut Exec) -> Outcome<(usize, String)> {
    let (mut seen, mut text) = (0, String::new());
    loop {
        match process.next().await? {
            Said::Success => return Ok((seen, text)),
            Said::Output(data) => {
                if seen == 0 {
                    text = String::from_utf8_lossy(&data).into_owned();
                }
                seen += data.len();
            }
        }
    }
}
