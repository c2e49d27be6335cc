//! `pikelet top`: what node and pods use, measured over a second, without an API server or metrics-server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::Outcome;
use crate::server::local;

/// Arguments of `pikelet top`.
#[derive(clap::Args)]
pub struct Args {
    /// State directory of the agent
    #[arg(long, default_value = "/run/pikelet")]
    state_dir: PathBuf,
}

fn summary(state_dir: &Path) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
    Ok(serde_json::from_str(&local::ask(state_dir, "GET", "/stats/summary?only_cpu_and_memory=true")?)?)
}

fn row(namespace: &str, name: &str, of: &Value) {
    let cores = of["cpu"]["usageNanoCores"].as_u64().unwrap_or_default() / 1_000_000;
    let memory = of["memory"]["workingSetBytes"].as_u64().unwrap_or_default() >> 20;
    println!("{namespace:<16} {name:<36} {:<12} {memory}Mi", format!("{cores}m"));
}

/// Prints the table.
pub fn run(args: &Args) -> Outcome {
    summary(&args.state_dir)?;
    std::thread::sleep(Duration::from_secs(1));
    let now = summary(&args.state_dir)?;
    println!("{:<16} {:<36} {:<12} MEMORY(bytes)", "NAMESPACE", "NAME", "CPU(cores)");
    row("<node>", now["node"]["nodeName"].as_str().unwrap_or_default(), &now["node"]);
    for pod in now["pods"].as_array().into_iter().flatten() {
        let text = |key: &str| pod["podRef"][key].as_str().unwrap_or_default();
        row(text("namespace"), text("name"), pod);
    }
    Ok(())
}
