//! `pikelet ps`: the pods of this node, from the agent's own socket.

use std::path::PathBuf;

use super::{Outcome, client};
use crate::server::local;

/// Arguments of `pikelet ps`.
#[derive(clap::Args)]
pub struct Args {
    /// State directory of the agent
    #[arg(long, default_value = "/run/pikelet")]
    state_dir: PathBuf,
    /// Print JSON
    #[arg(short, long, value_parser = ["json", "wide"])]
    output: Option<String>,
}

/// Prints the table.
pub fn run(args: &Args) -> Outcome {
    let text = local::ask(&args.state_dir, "GET", "/pods")?;
    if args.output.as_deref() == Some("json") {
        println!("{text}");
        return Ok(());
    }
    let pods = client::pods(&text)?;
    println!("{:<16} {:<36} {:<7} {:<20} {:<9} IP", "NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS");
    for pod in pods {
        let status = pod.status.unwrap_or_default();
        let containers = status.container_statuses.unwrap_or_default();
        let ready = containers.iter().filter(|c| c.ready).count();
        let restarts: i32 = containers.iter().map(|c| c.restart_count).sum();
        let inits = status.init_container_statuses.unwrap_or_default();
        let waiting = inits
            .iter()
            .chain(&containers)
            .find_map(|c| c.state.as_ref()?.waiting.as_ref()?.reason.clone().filter(|r| r != "PodInitializing"));
        let state = if pod.metadata.deletion_timestamp.is_some() { Some("Terminating".to_owned()) } else { waiting };
        println!(
            "{:<16} {:<36} {:<7} {:<20} {restarts:<9} {}",
            pod.metadata.namespace.unwrap_or_default(),
            pod.metadata.name.unwrap_or_default(),
            format!("{ready}/{}", containers.len()),
            state.or(status.phase).unwrap_or_default(),
            status.pod_ip.unwrap_or_else(|| "<none>".to_owned()),
        );
    }
    Ok(())
}
