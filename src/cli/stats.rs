//! `pikelet stats`: what each container uses, measured over a second.

use std::path::PathBuf;

use serde_json::Value;

use super::Outcome;
use super::client::{self, PodArgs};
use super::table::{print, table};
use super::top::measured;

/// Arguments of `pikelet stats`.
#[derive(clap::Args)]
pub struct Args {
    /// State directory of the agent
    #[arg(long, default_value = "/run/pikelet")]
    state_dir: PathBuf,
    /// Namespace of the pod [default: that of the only pod of that name]
    #[arg(short, long, requires = "pod")]
    namespace: Option<String>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_parser = ["json"])]
    output: Option<String>,
    /// Only this pod
    pod: Option<String>,
}

/// Prints the table: CPU in per cent of one core, memory as an eviction counts it, disk of the write layer.
pub fn run(args: &Args) -> Outcome {
    let only = match &args.pod {
        Some(pod) => {
            let (state_dir, namespace) = (args.state_dir.clone(), args.namespace.clone());
            Some(client::path(&PodArgs { state_dir, namespace, pod: pod.clone() }.find()?))
        }
        None => None,
    };
    let mut now = measured(&args.state_dir, true)?;
    let name = |pod: &Value| {
        let text = |key: &str| pod["podRef"][key].as_str().unwrap_or_default().to_owned();
        (text("namespace"), text("name"))
    };
    let Some(pods) = now["pods"].as_array_mut() else { return Err("the agent gave no statistics of pods".into()) };
    pods.retain(|pod| {
        let (namespace, name) = name(pod);
        only.as_ref().is_none_or(|path| *path == format!("{namespace}/{name}"))
    });
    if args.output.is_some() {
        return Ok(print(&format!("{:#}\n", now["pods"]))?);
    }
    let mut rows = Vec::new();
    for pod in now["pods"].as_array().into_iter().flatten() {
        let (namespace, name) = name(pod);
        let containers = pod["containers"].as_array().into_iter().flatten();
        rows.extend(containers.map(|c| row(&namespace, &name, c)));
    }
    Ok(print(&table(&["NAMESPACE", "POD", "CONTAINER", "CPU %", "MEM", "DISK", "INODES"], &rows))?)
}

fn row(namespace: &str, pod: &str, container: &Value) -> Vec<String> {
    let number = |of: &Value| of.as_u64().unwrap_or_default();
    let bytes = |of: &Value| size(number(of));
    vec![
        namespace.to_owned(),
        pod.to_owned(),
        container["name"].as_str().unwrap_or_default().to_owned(),
        format!("{:.2}", number(&container["cpu"]["usageNanoCores"]) as f64 / 1e7),
        bytes(&container["memory"]["workingSetBytes"]),
        bytes(&container["rootfs"]["usedBytes"]),
        number(&container["rootfs"]["inodesUsed"]).to_string(),
    ]
}

/// Bytes for a person.
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes}B"),
        1024..0x10_0000 => format!("{:.1}Ki", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1}Mi", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.2}Gi", bytes as f64 / f64::from(1 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_containers() {
        let container = serde_json::json!({"name": "c", "cpu": {"usageNanoCores": 1_234_000_000_u64},
            "memory": {"workingSetBytes": 1_572_864}, "rootfs": {"usedBytes": 512, "inodesUsed": 7}});
        assert_eq!(row("ns", "p", &container), ["ns", "p", "c", "123.40", "1.5Mi", "512B", "7"]);
        assert_eq!((size(2048), size(3 << 29)), ("2.0Ki".into(), "1.50Gi".into()));
    }
}
