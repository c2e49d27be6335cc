//! Builds the parts of the agent, starts and stops them in order.

use std::error::Error;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::cluster::{self, EventRecorder, NodeSettings, NodeState, Objects};
use crate::config::Config;
use crate::image::{ImageStore, StoreConfig};
use crate::machine;
use crate::network::{Network, NetworkConfig};
use crate::pod::manager::{Inputs, Manager};
use crate::pod::source;
use crate::pod::table::PodTable;
use crate::pod::worker::Shared;
use crate::runtime::{Runtime, RuntimeConfig};
use crate::server::local;
use crate::volume::Volumes;

/// How often pods look whether an object they use has changed.
const OBJECTS: Duration = Duration::from_secs(60);

/// The address this machine uses to reach others; loopback if it has none.
fn own_address() -> IpAddr {
    // no packet is sent: connecting a datagram socket only chooses a route
    let socket = UdpSocket::bind("0.0.0.0:0").and_then(|s| s.connect("192.0.2.1:9").and_then(|()| s.local_addr()));
    socket.map_or(IpAddr::from([127, 0, 0, 1]), |a| a.ip())
}

/// Runs the agent until SIGTERM or SIGINT (pods go on) or a drain (pods stop).
pub async fn run(config: Config) -> Result<(), Box<dyn Error + Send + Sync>> {
    for dir in [&config.root_dir, &config.state_dir, &config.logs_dir] {
        std::fs::create_dir_all(dir).map_err(|e| format!("creating {}: {e} (is the agent root?)", dir.display()))?;
    }
    let facts = machine::inspect(&config.root_dir);
    let host_ips = if config.node_ips.is_empty() { vec![own_address()] } else { config.node_ips.clone() };
    let client = match &config.kubeconfig {
        Some(file) => Some(cluster::connect(file).await?),
        None => None,
    };
    let images =
        ImageStore::open(StoreConfig { dir: config.root_dir.join("images"), registries: config.registries.clone() })
            .await?;
    let network = Network::open(NetworkConfig {
        bridge: config.bridge.clone(),
        state_dir: config.state_dir.join("network"),
        mtu: None,
        cluster_cidrs: config.cluster_cidrs.clone(),
    })
    .await?;
    let (runtime, events) = Runtime::open(RuntimeConfig {
        state_dir: config.state_dir.clone(),
        cgroup_root: config.cgroup_root.clone(),
        shim_exe: "/proc/self/exe".into(),
    })?;
    let objects = Arc::new(Objects::new(client.clone()));
    let table = PodTable::default();
    let (network_tx, network_ready) = watch::channel(false);
    let (objects_tx, objects_changed) = watch::channel(0);
    let (_, service_env) = watch::channel(Vec::new());
    let pods_dir = config.root_dir.join("pods");
    let shared = Arc::new(Shared {
        runtime: runtime.clone(),
        images: images.clone(),
        network: network.clone(),
        network_ready,
        volumes: Volumes::new(pods_dir.clone(), objects.clone()),
        objects,
        objects_changed,
        events: EventRecorder::new(client.clone(), &config.node_name),
        table: table.clone(),
        client: client.clone(),
        node_name: config.node_name.clone(),
        host_ips: host_ips.clone(),
        pods_dir,
        containers_dir: config.root_dir.join("containers"),
        logs_dir: config.logs_dir.clone(),
        machine_memory: facts.memory_bytes,
        cluster_dns: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone(),
        service_env,
    });

    let (cidrs_tx, cidrs) = watch::channel(config.pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>());
    let (state_tx, state) = watch::channel(NodeState::default());
    tokio::spawn(keep_network(network.clone(), cidrs, network_tx, state_tx));
    if client.is_some() {
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(OBJECTS);
            loop {
                tick.tick().await;
                objects_tx.send_modify(|n| *n += 1);
            }
        });
    }
    let (drain_tx, drain) = mpsc::channel(1);
    tokio::spawn(serve_local(config.state_dir.clone(), table, drain_tx));
    let mut manager = Manager::new(shared);
    let found = runtime.recover().await?;
    let live: Vec<String> = found.iter().map(|s| s.spec.id.clone()).collect();
    network.retain(&live).await?;
    manager.recover(found).await;
    if let Some(client) = client.clone() {
        let settings = NodeSettings {
            name: config.node_name.clone(),
            labels: config.node_labels.clone(),
            taints: Vec::new(),
            node_ips: host_ips,
            kubelet_port: config.port,
            max_pods: config.max_pods,
        };
        tokio::spawn(cluster::keep_node(client.clone(), settings, facts, state, cidrs_tx.clone()));
        tokio::spawn(cluster::keep_lease(client, config.node_name.clone()));
    }
    let inputs = Inputs {
        cluster: client.map(|c| cluster::watch_pods(c, &config.node_name)),
        manifests: config.manifests.clone().map(|dir| source::watch_manifests(dir, config.node_name.clone())),
        runtime: events,
        drain,
    };
    info!(node = config.node_name, version = env!("CARGO_PKG_VERSION"), "agent is up");
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        () = manager.run(inputs) => {
            info!("every pod has ended: agent ends");
            network.remove_all().await?;
        }
        _ = term.recv() => info!("SIGTERM: agent ends, pods go on"),
        _ = int.recv() => info!("SIGINT: agent ends, pods go on"),
    }
    // without a control plane this kept the configured ranges
    drop(cidrs_tx);
    // lets an answer to a drain reach its asker
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(())
}

async fn serve_local(state_dir: std::path::PathBuf, table: PodTable, drain: local::Drain) {
    if let Err(error) = local::serve(state_dir, table, drain).await {
        warn!(%error, "local socket not served: `pikelet ps` and `drain-local` will not work");
    }
}

/// Makes the pod network follow the ranges of this node.
async fn keep_network(
    network: Network,
    mut cidrs: watch::Receiver<Vec<String>>,
    ready: watch::Sender<bool>,
    state: watch::Sender<NodeState>,
) {
    loop {
        let wanted: Vec<ipnet::IpNet> = cidrs.borrow_and_update().iter().filter_map(|c| c.parse().ok()).collect();
        if !wanted.is_empty() {
            match network.set_pod_cidrs(&wanted).await {
                Ok(()) => {
                    ready.send_replace(true);
                    state.send_modify(|s| s.network_ready = true);
                }
                Err(error) => warn!(%error, "pod network not set up"),
            }
        }
        if cidrs.changed().await.is_err() {
            return;
        }
    }
}
