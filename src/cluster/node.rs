//! The Node object: created, kept complete, created again when somebody deletes it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::Client;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{info, warn};

use super::addresses::MoreAddresses;
use super::answer::{Answer, Api, Reader};
use super::client::{ClusterError, explained};
use super::complaint::Complaint;
use super::events::EventRecorder;
use super::heartbeat::Heartbeat;
use super::lease::is_renewed;
use super::node_events;
use super::node_status::{essence, overruled, patch, status};
use super::retry::patient;
use crate::machine::MachineInfo;
use crate::machine::devices::Counts;
use crate::machine::health::Condition;

/// What a person chose for this node.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// Node name.
    pub name: String,
    /// More labels.
    pub labels: BTreeMap<String, String>,
    /// More annotations.
    pub annotations: BTreeMap<String, String>,
    /// Taints at registration.
    pub taints: Vec<Taint>,
    /// Port of the kubelet API.
    pub kubelet_port: u16,
    /// What pods may have: cpu in thousandths, memory and ephemeral-storage in bytes, pods.
    pub allocatable: BTreeMap<&'static str, u64>,
    /// What is wrong with the machine for as long as it is up.
    pub warnings: Vec<String>,
    /// More addresses and names.
    pub more: MoreAddresses,
    /// When its status is looked at, and written.
    pub heartbeat: Heartbeat,
}

/// What others say of the Node.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NodeSeen {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// The image of the system it is to have.
    pub upgrade: Option<String>,
}

impl NodeSeen {
    fn of(node: &Node) -> Self {
        let taints = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
        let upgrade = node.metadata.annotations.as_ref().and_then(|a| a.get(UPGRADE)).cloned();
        Self { labels: node.metadata.labels.clone().unwrap_or_default(), taints, upgrade }
    }
}

/// The Node of that name as it is now.
pub async fn see_node(client: &Client, name: &str) -> Result<NodeSeen, ClusterError> {
    let got = Api::<Node>::all(client.clone()).get(name).await.and_then(Answer::read);
    got.map(|node| NodeSeen::of(&node)).map_err(ClusterError::api(format!("reading Node {name}")))
}

/// The labels a Node registers with: a person's, and what it is.
pub fn own_labels(name: &str, architecture: &str, more: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut labels = more.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

/// What changes while the agent runs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NodeState {
    /// Pods can be attached to the network.
    pub network_ready: bool,
    /// Addresses of this machine by which others reach it.
    pub node_ips: Vec<IpAddr>,
    /// What pods cannot be given, or miss.
    pub network_problems: Vec<String>,
    /// Types of the conditions that are true for want of something.
    pub pressures: BTreeSet<&'static str>,
    /// The machine is going to be switched off.
    pub shutting_down: bool,
    /// Names (tags and digests) and size of each image.
    pub images: Vec<(Vec<String>, u64)>,
    /// How the board does.
    pub board: Vec<Condition>,
    /// Devices that pods may ask for.
    pub devices: Counts,
}

const ATTACH: &str = "volumes.kubernetes.io/controller-managed-attach-detach";

/// What a person sets to upgrade the appliance: `URL#sha256:HEX` of an image.
const UPGRADE: &str = "pikelet.io/upgrade";

/// Names of the devices the Node was told of, with commas: an agent with other settings takes them off again.
const DEVICES: &str = "pikelet.io/devices";

fn annotations(settings: &NodeSettings, devices: &Counts) -> BTreeMap<String, String> {
    let mut annotations = settings.annotations.clone();
    annotations.insert(ATTACH.to_owned(), "true".to_owned());
    if !devices.is_empty() {
        let names: Vec<&str> = devices.keys().map(String::as_str).collect();
        annotations.insert(DEVICES.to_owned(), names.join(","));
    }
    annotations
}

/// The devices a Node has that are none of this agent's.
fn gone(node: &Node, devices: &Counts) -> Vec<String> {
    let told = node.metadata.annotations.as_ref().and_then(|a| a.get(DEVICES)).cloned().unwrap_or_default();
    told.split(',').filter(|name| !name.is_empty() && !devices.contains_key(*name)).map(str::to_owned).collect()
}

/// Why a node is not registered.
enum Unregistered {
    /// Another machine is this Node, and up.
    Taken(String),
    /// Anything else.
    Failed(kube::Error),
}

impl From<kube::Error> for Unregistered {
    fn from(error: kube::Error) -> Self {
        Self::Failed(error)
    }
}

/// What another machine that is this Node says of itself; `None`: it is this one, or no machine yet.
fn another(node: &Node, machine: &MachineInfo) -> Option<String> {
    let status = node.status.as_ref()?;
    let info = status.node_info.as_ref().filter(|i| !i.machine_id.is_empty())?;
    if info.machine_id == machine.machine_id && info.system_uuid == machine.system_uuid {
        return None;
    }
    let addresses = status.addresses.iter().flatten().map(|a| a.address.as_str()).collect::<Vec<_>>().join(", ");
    Some(format!("machine id {}, {addresses}", info.machine_id))
}

/// Makes the Node what this agent says of it, or takes it over from whoever had it before and is no more; returns it, and the
/// devices to be taken off it.
async fn register(
    client: &Client,
    api: &Api<Node>,
    settings: &NodeSettings,
    machine: &MachineInfo,
    devices: &Counts,
) -> Result<(Node, Vec<String>), Unregistered> {
    let labels = own_labels(&settings.name, &machine.architecture, &settings.labels);
    let annotations = annotations(settings, devices);
    let metadata = json!({"name": settings.name, "labels": labels, "annotations": annotations});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": settings.taints}});
    let node: Node = crate::json::convert(&node).map_err(kube::Error::SerdeError)?;
    match api.create(&PostParams::default(), &node.into()).await.and_then(Answer::read) {
        Ok(made) => {
            info!(node = settings.name, "registered");
            Ok((made, Vec::new()))
        }
        Err(kube::Error::Api(answer)) if answer.code == 409 => {
            let present = api.get(&settings.name).await?.read()?;
            if let Some(other) = another(&present, machine) {
                if is_renewed(client, &settings.name).await? {
                    return Err(Unregistered::Taken(other));
                }
                info!(node = settings.name, other, "takes the place of another machine, which is not up");
            }
            let gone = gone(&present, devices);
            let mut patch = json!({"metadata": {"labels": labels, "annotations": annotations}});
            if devices.is_empty() && !gone.is_empty() {
                patch["metadata"]["annotations"][DEVICES] = Value::Null;
            }
            Ok((api.patch(&settings.name, &PatchParams::default(), &Patch::Merge(patch)).await?.read()?, gone))
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether the Node is ready, and if not why.
fn in_words(status: &Value) -> String {
    let ready = status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
    match ready {
        Some(condition) if condition["status"] == "True" => "Ready".to_owned(),
        Some(condition) => format!("not Ready: {}", condition["message"].as_str().unwrap_or_default()),
        None => String::new(),
    }
}

/// The Kubernetes minor whose behaviour this node has, and its own version.
pub const KUBELET_VERSION: &str = concat!("v1.36.3+pikelet.", env!("CARGO_PKG_VERSION"));

/// Whom the Node is told of.
pub struct NodeTold {
    /// Its pod CIDRs.
    pub pod_cidrs: watch::Sender<Vec<String>>,
    /// Its labels and taints.
    pub seen: watch::Sender<Option<NodeSeen>>,
    /// That nothing speaks against this machine being the Node.
    pub ours: watch::Sender<bool>,
    /// What changes of its status.
    pub events: EventRecorder,
}

/// Registers and keeps the Node for ever.
pub async fn keep_node(
    client: Client,
    settings: NodeSettings,
    machine: MachineInfo,
    mut state: watch::Receiver<NodeState>,
    told: NodeTold,
) {
    let NodeTold { pod_cidrs, seen, ours, events: recorder } = told;
    recorder.node_event("Normal", "Starting", format!("Starting {}.", env!("CARGO_PKG_NAME")));
    let api: Api<Node> = Api::all(client.clone());
    let mut complaint = Complaint::default();
    let fields = format!("metadata.name={}", settings.name);
    let mut events =
        patient(Some("the Node"), watcher(api.clone(), watcher::Config::default().fields(&fields))).boxed();
    let mut present = Node::default();
    let mut written = Value::Null;
    let mut written_at = Instant::now();
    let mut registered = false;
    let (mut gone, mut reader, mut cordoned) = (Vec::new(), Reader::default(), false);
    let mut tick = tokio::time::interval(settings.heartbeat.look);
    loop {
        if !registered {
            let devices = state.borrow().devices.clone();
            match register(&client, &api, &settings, &machine, &devices).await {
                Ok((node, found)) => {
                    present = node;
                    gone.extend(found);
                    registered = true;
                    written = Value::Null;
                    ours.send_replace(true);
                }
                Err(error) => {
                    let why = match &error {
                        Unregistered::Taken(other) => format!(
                            "another machine is this Node, and up ({other}): two boards of one name drive each other out. Give \
                            this one another name (--node-name, or hostnamectl set-hostname); if it is to take the other's \
                            place, stop that one"
                        ),
                        Unregistered::Failed(error) => explained(error),
                    };
                    // pods of a node that may not write its Node are run all the same
                    if matches!(error, Unregistered::Failed(kube::Error::Api(_))) {
                        ours.send_replace(true);
                    }
                    if complaint.is_due(&why) {
                        warn!(error = why, node = settings.name, "node not registered: trying again");
                    }
                    tokio::time::sleep(Duration::from_millis(1000 + u64::from(rand::random::<u8>()) * 8)).await;
                    continue;
                }
            }
        }
        let wanted = status(&settings, &machine, &state.borrow_and_update(), &gone, &present);
        if essence(&wanted) != essence(&written) || written_at.elapsed() >= settings.heartbeat.report {
            let changes = Patch::Strategic(patch(&wanted, &present));
            match api.patch_status(&settings.name, &PatchParams::default(), &changes).await.and_then(Answer::read) {
                Ok(node) => {
                    for (kind, reason, message) in node_events::of(&settings.name, &present, &wanted) {
                        recorder.node_event(kind, reason, message);
                    }
                    present = node;
                    crate::service::status(&in_words(&wanted));
                    written = wanted;
                    written_at = Instant::now();
                }
                Err(kube::Error::Api(answer)) if answer.code == 404 => registered = false,
                Err(error) => {
                    let why = explained(&error);
                    crate::service::status(&format!("the Node's status is not written: {why}"));
                    if complaint.is_due(&why) {
                        warn!(error = why, "node status not written: trying again");
                    }
                }
            }
        }
        tokio::select! {
            _ = tick.tick() => {}
            changed = state.changed() => if changed.is_err() { return },
            Some(event) = events.next() => match event {
                Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node)) => {
                    let Ok(node) = reader.read(node) else { continue };
                    if overruled(&node, &written) {
                        written = Value::Null;
                    }
                    if let Some((kind, reason, message)) = node_events::of_schedule(&settings.name, &mut cordoned, &node) {
                        recorder.node_event(kind, reason, message);
                    }
                    let now = NodeSeen::of(&node);
                    seen.send_if_modified(|old| old.as_ref() != Some(&now) && { *old = Some(now); true });
                    let cidrs = node.spec.as_ref().and_then(|s| s.pod_cidrs.clone()).unwrap_or_default();
                    pod_cidrs.send_if_modified(|old| !cidrs.is_empty() && *old != cidrs && { *old = cidrs; true });
                    present = node;
                }
                Ok(watcher::Event::Delete(_)) => {
                    info!(node = settings.name, "somebody deleted the Node: registering again");
                    registered = false;
                }
                Ok(_) | Err(_) => {}
            },
        }
    }
}
