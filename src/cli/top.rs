//! `pikelet top`: what node and pods use, measured over a second, without an API server or metrics-server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::Outcome;
use super::client::Failure;
use super::table::{print, table};
use crate::server::local;

/// Arguments of `pikelet top`.
#[derive(clap::Args)]
pub struct Args {
    /// State directory of the agent
    #[arg(long, default_value = "/run/pikelet")]
    state_dir: PathBuf,
}

/// A `stats/v1alpha1.Summary` whose rates are those of the last second; `whole`: with disks and networks.
pub fn measured(state_dir: &Path, whole: bool) -> Result<Value, Failure> {
    let brief = "/stats/summary?only_cpu_and_memory=true";
    local::ask(state_dir, "GET", brief)?;
    std::thread::sleep(Duration::from_secs(1));
    Ok(serde_json::from_str(&local::ask(state_dir, "GET", if whole { "/stats/summary" } else { brief })?)?)
}

fn row(namespace: &str, name: &str, of: &Value) -> Vec<String> {
    let cores = of["cpu"]["usageNanoCores"].as_u64().unwrap_or_default() / 1_000_000;
    let memory = of["memory"]["workingSetBytes"].as_u64().unwrap_or_default() >> 20;
    vec![namespace.to_owned(), name.to_owned(), format!("{cores}m"), format!("{memory}Mi")]
}

/// Prints the table.
pub fn run(args: &Args) -> Outcome {
    let now = measured(&args.state_dir, false)?;
    let mut rows = vec![row("<node>", now["node"]["nodeName"].as_str().unwrap_or_default(), &now["node"])];
    for pod in now["pods"].as_array().into_iter().flatten() {
        let text = |key: &str| pod["podRef"][key].as_str().unwrap_or_default();
        rows.push(row(text("namespace"), text("name"), pod));
    }
    Ok(print(&table(&["NAMESPACE", "NAME", "CPU(cores)", "MEMORY(bytes)"], &rows))?)
}
