//! `pikelet ps`: the pods of this node, from the agent's own socket.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;

use super::table::{print, table};
use super::{Outcome, client};
use crate::server::local;

/// Arguments of `pikelet ps`.
#[derive(clap::Args)]
pub struct Args {
    /// State directory of the agent
    #[arg(long, default_value = "/run/pikelet")]
    state_dir: PathBuf,
    /// Also pods that have ended
    #[arg(short, long)]
    all: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_parser = ["json", "yaml", "wide"])]
    output: Option<String>,
}

/// Prints the pods.
pub fn run(args: &Args) -> Outcome {
    let mut list: serde_json::Value = serde_json::from_str(&local::ask(&args.state_dir, "GET", "/pods")?)?;
    if let Some(items) = list["items"].as_array_mut().filter(|_| !args.all) {
        items.retain(|pod| !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")));
    }
    let text = match args.output.as_deref() {
        Some("json") => format!("{list:#}\n"),
        Some("yaml") => serde_saphyr::to_string(&list)?,
        wide => lines(client::pods(&list)?, wide.is_some()),
    };
    Ok(print(&text)?)
}

fn lines(pods: Vec<Pod>, wide: bool) -> String {
    let mut head = vec!["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP"];
    if wide {
        head.extend(["UID", "IMAGES"]);
    }
    let rows: Vec<Vec<String>> = pods.into_iter().map(|pod| row(pod, wide)).collect();
    table(&head, &rows)
}

fn row(pod: Pod, wide: bool) -> Vec<String> {
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
    let mut row = vec![
        pod.metadata.namespace.unwrap_or_default(),
        pod.metadata.name.unwrap_or_default(),
        format!("{ready}/{}", containers.len()),
        state.or(status.phase).unwrap_or_default(),
        restarts.to_string(),
        status.start_time.map_or_else(|| "<unknown>".to_owned(), |at| age(jiff::Timestamp::now().duration_since(at.0))),
        status.pod_ip.unwrap_or_else(|| "<none>".to_owned()),
    ];
    if wide {
        let images: Vec<String> = containers.into_iter().map(|c| c.image).collect();
        row.extend([pod.metadata.uid.unwrap_or_default(), images.join(",")]);
    }
    row
}

/// A time span as kubectl shows it: `42s`, `5m`, `3h`, `12d`.
fn age(span: jiff::SignedDuration) -> String {
    match span.as_secs().max(0) {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        let ages = [-5, 119, 120, 7200, 172_800].map(|s| age(jiff::SignedDuration::from_secs(s)));
        assert_eq!(ages, ["0s", "119s", "2m", "2h", "2d"]);
    }
}
