//! Builds the parts of the agent, starts and stops them in order.

mod board;
mod ranges;
mod storage;
mod told;
mod upgrade;

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::cluster::{
    self, EventRecorder, Given, Kept, NodeSeen, NodeSettings, NodeState, NodeTold, Objects, Services,
};
use crate::config::Config;
use crate::files;
use crate::image::ImageStore;
use crate::machine;
use crate::machine::apparmor::AppArmor;
use crate::machine::board::Board;
use crate::machine::clock;
use crate::machine::devices::Devices;
use crate::membership::{self, host_ips, member};
use crate::network::{self, Network, NetworkConfig};
use crate::pod::allocation::Allocations;
use crate::pod::allocation::fit::{Allocatable, NodeView};
use crate::pod::eviction::storage::Places;
use crate::pod::eviction::threshold::Signal;
use crate::pod::eviction::{Evictions, Pressures};
use crate::pod::manager::{Inputs, Manager};
use crate::pod::node_allocatable::{self, NodeAllocatable, max_pids};
use crate::pod::order::Order;
use crate::pod::pulse::Pulse;
use crate::pod::shared::Shared;
use crate::pod::shutdown::Shutdown;
use crate::pod::table::PodTable;
use crate::pod::{Gate, IdRanges, Memory, probe, source, weights};
use crate::runtime::{Runtime, RuntimeConfig, SandboxInfo};
use crate::server::access::Access;
use crate::server::api::{self, Kubelet};
use crate::server::identity::Identity;
use crate::server::{local, tls};
use crate::service;
use crate::volume::Volumes;

/// By it a person reaches the machine.
const SSH: u16 = 22;
/// How often volumes look whether a token nears its end.
const TOKENS: Duration = Duration::from_mins(1);

/// A serving certificate that the cluster gave, and when there is another one.
type ServingFiles = ((PathBuf, PathBuf), watch::Receiver<()>);

/// Runs the agent until SIGTERM or SIGINT (pods go on) or a drain (pods stop).
pub async fn run(config: Config) -> Result<(), Box<dyn Error + Send + Sync>> {
    for (dir, mode) in [(&config.root_dir, 0o700), (&config.state_dir, 0o700), (&config.logs_dir, 0o750)] {
        files::dir(dir, mode).map_err(|e| format!("creating {}: {e} (is the agent root?)", dir.display()))?;
    }
    // `pikelet leave` removes nothing elsewhere
    for dir in [&config.root_dir, &config.state_dir] {
        if let Err(error) = files::mark(dir) {
            warn!(%error, dir = %dir.display(), "not marked as pikelet's: `pikelet leave` will remove nothing there");
        }
    }
    storage::hold(&[&config.root_dir, &config.state_dir]).await?;
    let facts = machine::inspect(&config.root_dir);
    let warnings = machine::check::lasting();
    for warning in &warnings {
        warn!("{warning}");
    }
    let (host_ips_tx, host_ips) = watch::channel(host_ips(&config));
    let (resolv_conf_tx, resolv_conf) = watch::channel(network::host_resolv_conf(config.resolv_conf.as_deref()));
    let mut config = config;
    let mut given = Given::default();
    let table = PodTable::default();
    let (mut client, mut cluster_ca, mut joined) = (None, None, None);
    let mut server_port = None;
    if let Some(join) = &config.join {
        server_port = cluster::server_port(join).await;
        service::status("joining the cluster");
        let member = cluster::join(join, &member(&config, &table)).await?;
        config.complete(&member.given);
        (client, cluster_ca, given, joined) = (Some(member.client), member.ca_file, member.given, Some(member.joined));
    }
    let images = ImageStore::open(config.images.clone()).await?;
    storage::prepare(&config, &images).await?;
    let network = Network::open(NetworkConfig {
        bridge: config.bridge.clone(),
        state_dir: config.state_dir.join("network"),
        mtu: config.pod_mtu,
        kept_ports: [SSH, config.api.port, config.api.healthz_port].into_iter().chain(server_port).collect(),
        cluster_cidrs: config.cluster_cidrs.clone(),
    })
    .await?;
    let (runtime, events) = Runtime::open(RuntimeConfig {
        state_dir: config.state_dir.clone(),
        cgroup_root: config.cgroup_root.clone(),
        shim_exe: "/proc/self/exe".into(),
    })?;
    let (objects_tx, objects_changed) = watch::channel(0);
    let kept = kept(&config);
    let (seen_tx, seen) = watch::channel(None);
    let name = &config.node.name;
    let objects = Arc::new(Objects::new(client.clone(), name, seen.clone(), objects_tx.clone(), kept.clone()));
    let (network_tx, network_ready) = watch::channel(false);
    let (pressures_tx, pressures) = watch::channel(Pressures::new());
    let (orders_tx, orders) = mpsc::channel(1);
    let (shutdown_tx, shutting_down) = watch::channel(false);
    let allocatable = allocatable(&config, &facts);
    let mut node_labels = Board::read(Path::new("/")).labels();
    node_labels.extend(given.labels.into_iter().chain(config.node.labels.clone()));
    let devices = Arc::new(Devices::new(&config.node.devices));
    let own = NodeView {
        name: config.node.name.clone(),
        labels: cluster::own_labels(&config.node.name, &facts.architecture, &node_labels),
        taints: config.node.taints.clone(),
    };
    let upgrade_seen = seen.clone();
    let node_seen = node_view(config.node.name.clone(), seen);
    let pods_dir = config.root_dir.join("pods");
    let shared = Arc::new(Shared {
        begun: Instant::now(),
        runtime: runtime.clone(),
        images: images.clone(),
        network: network.clone(),
        network_ready,
        probe_clients: probe::Clients::default(),
        probe_counts: probe::Counts::default(),
        seccomp_default: config.seccomp_default,
        unsafe_sysctls: config.unsafe_sysctls.clone(),
        seccomp_dir: config.root_dir.join("seccomp"),
        volumes: Volumes::new(pods_dir.clone(), objects.clone(), allocatable.clone()),
        objects,
        objects_changed,
        allocations: Allocations::new(allocatable.clone(), node_seen, own, devices.clone()),
        orders: orders_tx.clone(),
        max_restart_period: config.max_restart_period,
        shutting_down,
        pressures: pressures.clone(),
        events: EventRecorder::new(client.clone(), &config.node.name, config.event_rate),
        table: table.clone(),
        client: client.clone(),
        statuses: Gate::default(),
        node_name: config.node.name.clone(),
        host_ips: host_ips.clone(),
        resolv_conf,
        pods_dir,
        containers_dir: config.root_dir.join("containers"),
        logs_dir: config.logs_dir.clone(),
        log_rotation: config.log_rotation,
        apparmor: apparmor(),
        limits: config.limits,
        id_ranges: IdRanges::open(config.root_dir.join("pods"), config.node.max_pods),
        machine: Memory { memory: facts.memory_bytes, swap: facts.swap_bytes },
        cluster_dns: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain().to_owned(),
        services: client.clone().map_or_else(Services::none, |client| Services::watch(client, kept.clone())),
    });

    let (cidrs_tx, cidrs) = watch::channel(config.pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>());
    let (state_tx, state) = watch::channel(NodeState {
        devices: devices.counts(),
        node_ips: host_ips.borrow().clone(),
        ..NodeState::default()
    });
    tokio::spawn(network::watch_resolv_conf(config.resolv_conf.clone(), resolv_conf_tx));
    let limits = told::resolv_conf(config.resolv_conf.clone(), shared.resolv_conf.clone(), shared.events.clone());
    tokio::spawn(limits);
    tokio::spawn(told::addresses(host_ips.clone(), state_tx.clone()));
    if config.node.ips.is_empty() {
        tokio::spawn(membership::follow(network.links_changed(), host_ips_tx));
    }
    let told = ranges::Told { ready: network_tx, state: state_tx.clone(), events: shared.events.clone() };
    tokio::spawn(ranges::keep(network.clone(), cidrs, told, kept.clone()));
    tokio::spawn(ranges::recall(kept, cidrs_tx.clone()));
    tokio::spawn(told::images(images.clone(), state_tx.clone()));
    tokio::spawn(board::count(devices, state_tx.clone()));
    tokio::spawn(board::tell(shared.events.clone(), state_tx.clone()));
    tokio::spawn(upgrade::follow(shared.events.clone(), upgrade_seen));
    tokio::spawn(told::pressures(pressures, state_tx.clone()));
    tokio::spawn(told::shutdown(shutdown_tx.subscribe(), state_tx, shared.events.clone()));
    let (events_of_kernel, seen_of_kernel) = (shared.events.clone(), machine::oom::place(&config.state_dir));
    tokio::spawn(async move { told::system_oom(events_of_kernel, &seen_of_kernel).await });
    if !config.shutdown.is_empty() {
        let (groups, orders) = (config.shutdown.clone(), orders_tx.clone());
        tokio::spawn(Shutdown { groups, table: table.clone(), orders, state: shutdown_tx }.keep());
    }
    let images_of_commands = images.clone();
    let (images_of_folder, events_of_node) = (images.clone(), shared.events.clone());
    tokio::spawn(async move {
        images_of_folder.keep_folder(|reason, message| events_of_node.node_event("Warning", reason, message)).await;
    });
    let events_of_node = shared.events.clone();
    let evictions = Evictions {
        policy: config.eviction.clone(),
        table: table.clone(),
        runtime: runtime.clone(),
        images: images.clone(),
        image_gc: config.image_gc,
        root: config.root_dir.clone(),
        places: Places {
            pods: shared.pods_dir.clone(),
            containers: shared.containers_dir.clone(),
            logs: config.logs_dir.clone(),
        },
        orders: orders_tx.clone(),
        pressures: pressures_tx,
        events: shared.events.clone(),
    };
    tokio::spawn(evictions.keep());
    tokio::spawn(images.keep_room(config.image_gc, move |reason, message| {
        events_of_node.node_event("Warning", reason, message);
    }));
    if client.is_some() {
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(TOKENS);
            loop {
                tick.tick().await;
                objects_tx.send_modify(|n| *n += 1);
            }
        });
    }
    let (events_of_pods, events_of_status) = (shared.events.clone(), shared.events.clone());
    tokio::spawn(weights::keep(runtime.clone(), table.clone()));
    if config.node.enforce_allocatable {
        let left = |name: &str, all: u64| all.saturating_sub(config.node.reserved.get(name).copied().unwrap_or(0));
        let allocatable = NodeAllocatable {
            cpu: left("cpu", facts.cpus * 1000),
            memory: left("memory", facts.memory_bytes),
            pids: max_pids(),
        };
        tokio::spawn(node_allocatable::enforce(runtime.clone(), events_of_pods, allocatable));
    }
    let (pulse, pings) = Pulse::new();
    let kubelet = kubelet(&config, &shared, &facts, pulse.clone());
    tokio::spawn(serve_local(config.state_dir.clone(), kubelet.clone(), images_of_commands, orders_tx));
    serve_api(&config, client.clone(), (cluster_ca, given.serving), kubelet, host_ips)?;
    let mut manager = Manager::new(shared);
    let found = with_addresses(&runtime, &network, runtime.recover().await?).await;
    let live: Vec<String> = found.iter().map(|s| s.spec.id.clone()).collect();
    network.retain(&live).await;
    manager.recover(found).await;
    let (ours_tx, ours) = watch::channel(false);
    if let Some(client) = client.clone() {
        let settings = NodeSettings {
            name: config.node.name.clone(),
            labels: node_labels,
            annotations: given.annotations,
            taints: config.node.taints.clone(),
            kubelet_port: config.api.port,
            allocatable,
            warnings,
            more: config.node.more.clone(),
            heartbeat: config.node.heartbeat.clone(),
        };
        let told = NodeTold { pod_cidrs: cidrs_tx.clone(), seen: seen_tx, ours: ours_tx, events: events_of_status };
        tokio::spawn(cluster::keep_node(client.clone(), settings, facts, state, told));
        tokio::spawn(cluster::keep_lease(
            client,
            config.node.name.clone(),
            config.node.heartbeat.clone(),
            ours.clone(),
        ));
    }
    pulse.up();
    let inputs = Inputs {
        cluster: client.map(|c| cluster::watch_pods(c, &config.node.name, ours)),
        manifests: source::watch(config.manifests.clone(), &config.node.name),
        runtime: events,
        orders,
        pings,
    };
    info!(node = config.node.name, version = env!("CARGO_PKG_VERSION"), "agent is up");
    tokio::spawn(async move {
        // pods of before run meanwhile
        match joined {
            Some(joined) => joined.await,
            None => service::status(service::UP),
        }
        service::ready(pulse);
    });
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        () = manager.run(inputs) => {
            info!("every pod has ended: agent ends");
            network.remove_all().await?;
        }
        _ = term.recv() => info!("SIGTERM: agent ends, pods go on"),
        _ = int.recv() => info!("SIGINT: agent ends, pods go on"),
    }
    service::stopping();
    if let Err(error) = clock::remember(&config.root_dir) {
        warn!(%error, "the time is not kept for the next boot");
    }
    // without a control plane this kept the configured ranges
    drop(cidrs_tx);
    // lets an answer to a drain reach its asker
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(())
}

/// What pods may have: capacity less what is reserved, and less what evictions keep free (Kubernetes "Reserve Compute
/// Resources").
fn allocatable(config: &Config, facts: &machine::MachineInfo) -> Allocatable {
    let left = |name: &'static str, capacity: u64, kept: u64| {
        let reserved = config.node.reserved.get(name).copied().unwrap_or(0);
        (name, capacity.saturating_sub(reserved + kept))
    };
    let (memory, disk) = (facts.memory_bytes, facts.disk_bytes);
    // what is kept for huge pages is no other memory
    let huge: u64 = facts.huge_pages.iter().map(|(_, bytes)| bytes).sum();
    let mut allocatable = Allocatable::from([
        left("cpu", facts.cpus * 1000, 0),
        left("memory", memory, config.eviction.kept(Signal::MemoryAvailable, memory) + huge),
        left("ephemeral-storage", disk, config.eviction.kept(Signal::NodefsAvailable, disk)),
        ("pods", config.node.max_pods.into()),
    ]);
    allocatable.extend(facts.huge_pages.iter().copied());
    allocatable
}

/// The Node as admission looks at it.
fn node_view(name: String, mut seen: watch::Receiver<Option<NodeSeen>>) -> watch::Receiver<Option<NodeView>> {
    let (tx, rx) = watch::channel(None);
    tokio::spawn(async move {
        while seen.changed().await.is_ok() {
            let view = seen.borrow_and_update().clone().map(|seen| NodeView::of(name.clone(), seen));
            tx.send_replace(view);
        }
    });
    rx
}

fn apparmor() -> AppArmor {
    let found = machine::apparmor::prepare();
    if let AppArmor::NoDefault(why) = &found {
        warn!("no default AppArmor profile: {why}; containers that name none are not confined by AppArmor");
    }
    found
}

/// What the kubelet API answers from.
fn kubelet(config: &Config, shared: &Shared, facts: &machine::MachineInfo, pulse: Pulse) -> Kubelet {
    Kubelet {
        pods: shared.table.clone(),
        logs_dir: config.logs_dir.clone(),
        runtime: shared.runtime.clone(),
        root_dir: config.root_dir.clone(),
        system_logs_dir: "/var/log".into(),
        node: config.node.name.clone(),
        configuration: Arc::new(config.configuration()),
        last: Arc::default(),
        machine: Arc::new(facts.clone()),
        volumes: shared.volumes.clone(),
        probe_counts: shared.probe_counts.clone(),
        pulse,
    }
}

async fn serve_local(state_dir: PathBuf, kubelet: Kubelet, images: ImageStore, orders: mpsc::Sender<Order>) {
    if let Err(error) = local::serve(state_dir, kubelet, images, orders).await {
        warn!(%error, "local socket not served: `pikelet ps` and the like will not work");
    }
}

/// Starts the kubelet API. A standalone agent has nobody to serve unless client CAs are configured.
fn serve_api(
    config: &Config,
    client: Option<kube::Client>,
    (cluster_ca, serving): (Option<PathBuf>, Option<ServingFiles>),
    kubelet: Kubelet,
    host_ips: watch::Receiver<Vec<IpAddr>>,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    if config.api.healthz_port != 0 {
        tokio::spawn(api::serve_healthz(config.api.healthz_port, kubelet.pulse.clone()));
    }
    if client.is_none() && config.api.client_ca_file.is_none() {
        info!("kubelet API not served: without kubeconfig and client CA nobody could log in");
        return Ok(());
    }
    let settings = tls::TlsSettings {
        certificate: config.api.certificate.clone(),
        pki_dir: config.root_dir.join("pki"),
        client_ca_file: config.api.client_ca_file.clone(),
        cluster_ca,
        names: vec![config.node.name.clone()],
        ips: host_ips.borrow().clone(),
    };
    let (identity, tls) = Identity::new(settings, host_ips, client.clone())?;
    let changes = serving.map(|(_, changes)| changes);
    tokio::spawn(identity.keep(config.api.server_tls_bootstrap && config.api.certificate.is_none(), changes));
    let access = Access::new(client, config.node.name.clone());
    let address = SocketAddr::new(config.api.address, config.api.port);
    let idle_timeout = config.api.idle_timeout;
    tokio::spawn(api::serve(address, tls, access, kubelet, idle_timeout));
    Ok(())
}

/// Sandboxes whose addresses are known; the others, whose addresses might be given to another pod, are made anew.
async fn with_addresses(runtime: &Runtime, network: &Network, found: Vec<SandboxInfo>) -> Vec<SandboxInfo> {
    let (known, lost): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|s| s.spec.host_network || network.holds(&s.spec.id));
    for sandbox in known.iter().filter(|s| !s.spec.host_network) {
        if let Some(netns) = runtime.netns_path(&sandbox.spec.id) {
            network.recall(&sandbox.spec.id, netns);
        }
    }
    for sandbox in lost {
        let (id, pod) = (&sandbox.spec.id, &sandbox.spec.pod_name);
        warn!(sandbox = id, pod, "addresses of this sandbox are not known any more: it is made anew");
        // what holds its bandwidth would stay until the machine starts again
        if let Err(error) = network.detach(id).await {
            warn!(sandbox = id, %error, "links of a sandbox without known addresses are not removed");
        }
        if let Err(error) = runtime.remove_sandbox(id).await {
            warn!(sandbox = id, %error, "sandbox not removed");
        }
    }
    known
}

/// What pods use of the API on disk, if that is wanted and can be.
fn kept(config: &Config) -> Kept {
    let dir = config.root_dir.join("objects");
    if !config.keep_objects || config.join.is_none() {
        return Kept::none(&dir);
    }
    Kept::open(&dir).unwrap_or_else(|error| {
        warn!(dir = %dir.display(), %error, "objects not kept: pods that use them will not come back without an API server");
        Kept::default()
    })
}
