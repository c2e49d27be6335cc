//! `pikelet inspect`: a pod, its sandbox and containers as the runtime has them, in JSON.

use serde_json::Value;

use super::Outcome;
use super::client::{self, PodArgs};
use super::table::print;
use crate::server::local;

/// Arguments of `pikelet inspect`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pod: PodArgs,
    /// Only this container [default: all]
    #[arg(short, long)]
    container: Option<String>,
}

/// Prints the JSON.
pub fn run(args: &Args) -> Outcome {
    let pod = args.pod.find()?;
    let path = format!("/inspect/{}", client::path(&pod));
    let mut found: Value = serde_json::from_str(&local::ask(&args.pod.state_dir, "GET", &path)?)?;
    if let Some(name) = &args.container {
        let name = client::container(&pod, Some(name))?;
        if let Some(containers) = found["containers"].as_array_mut() {
            containers.retain(|c| c["name"] == name.as_str());
        }
    }
    Ok(print(&format!("{found:#}\n"))?)
}
