//! What a Node's status says of this machine, and how it is written beside what others say there.

use k8s_openapi::api::core::v1::{Node, NodeCondition};
use serde_json::{Value, json};

use super::node::{KUBELET_VERSION, NodeSettings, NodeState};
use super::runtime_class::HANDLERS;
use crate::machine::MachineInfo;
use crate::machine::health::{self, Condition};

fn conditions(node: &Node) -> &[NodeCondition] {
    node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default()
}

/// Huge pages beside the other resources.
fn with_huge_pages(mut list: Value, machine: &MachineInfo) -> Value {
    for (name, bytes) in &machine.huge_pages {
        // as the API server writes quantities
        list[*name] = if *bytes == 0 { json!("0") } else { json!(format!("{}Ki", bytes / 1024)) };
    }
    list
}

fn capacity(machine: &MachineInfo, settings: &NodeSettings) -> Value {
    json!({
        "cpu": machine.cpus.to_string(),
        "memory": format!("{}Ki", machine.memory_bytes / 1024),
        "ephemeral-storage": format!("{}Ki", machine.disk_bytes / 1024),
        "pods": settings.allocatable.get("pods").copied().unwrap_or(0).to_string(),
    })
}

fn allocatable(settings: &NodeSettings) -> Value {
    let of = |name: &str| settings.allocatable.get(name).copied().unwrap_or(0);
    let cpu = of("cpu");
    json!({
        "cpu": if cpu % 1000 == 0 { (cpu / 1000).to_string() } else { format!("{cpu}m") },
        "memory": format!("{}Ki", of("memory") / 1024),
        "ephemeral-storage": of("ephemeral-storage").to_string(),
        "pods": of("pods").to_string(),
    })
}

/// The kernels that can have mounts below a read-only one read-only too (`mount_setattr(2)`), and show the files of a tmpfs to
/// the users of a pod (ID-mapped mounts).
const READ_ONLY_BELOW: (u32, u32) = (5, 12);
const MAPPED_TMPFS: (u32, u32) = (6, 3);

/// What pods may ask of this runtime, by its handlers' names.
fn runtime_handlers(machine: &MachineInfo) -> Value {
    let mut numbers = machine.kernel_version.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    let kernel = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let features =
        json!({"recursiveReadOnlyMounts": kernel >= READ_ONLY_BELOW, "userNamespaces": kernel >= MAPPED_TMPFS});
    HANDLERS.iter().map(|name| json!({"name": name, "features": features})).collect()
}

/// The devices beside the other resources; those in `gone` are taken off the Node.
fn with_devices(mut list: Value, state: &NodeState, gone: &[String], count: impl Fn(&(u64, u64)) -> u64) -> Value {
    for name in gone {
        list[name] = Value::Null;
    }
    for (name, counts) in &state.devices {
        list[name] = json!(count(counts).to_string());
    }
    list
}

/// What this node says of itself: `NodeStatus`, but for what others say. Of `old` is taken since when a condition is what it is.
pub fn status(settings: &NodeSettings, machine: &MachineInfo, state: &NodeState, gone: &[String], old: &Node) -> Value {
    let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or_default().to_string();
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        let before = conditions(old).iter().find(|c| c.type_ == kind && c.status == status);
        let since = before.map_or(json!(now), |c| json!(c.last_transition_time));
        json!({"type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": since})
    };
    let pressure = |kind: &str, short: (&str, &str), enough: (&str, &str)| {
        let (status, (reason, what)) = if state.pressures.contains(kind) { ("True", short) } else { ("False", enough) };
        condition(kind, status, &format!("KubeletHas{reason}"), &format!("kubelet has {what}"))
    };
    let network = state.network_problems.iter().map(|p| format!("network: {p}")).collect::<Vec<_>>();
    let also = if state.network_ready { network.as_slice() } else { &[] };
    let warnings =
        settings.warnings.iter().chain(also).fold(String::new(), |all, warning| all + ". WARNING: " + warning);
    let ready = if state.shutting_down {
        condition("Ready", "False", "KubeletNotReady", "node is shutting down")
    } else if state.node_ips.is_empty() {
        // one without an address is not reached: better none than one that is everybody's own (127.0.0.1)
        let message = format!("network: this machine has no address yet by which others reach it{warnings}");
        condition("Ready", "False", "KubeletNotReady", &message)
    } else if state.network_ready {
        condition("Ready", "True", "KubeletReady", &format!("kubelet is posting ready status{warnings}"))
    } else {
        let why = if network.is_empty() { "this node has no pod CIDR yet".to_owned() } else { network.join("; ") };
        let message = format!("container runtime network not ready: {why}{warnings}");
        condition("Ready", "False", "KubeletNotReady", &message)
    };
    let mut addresses: Vec<Value> =
        state.node_ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip.to_string()})).collect();
    addresses.push(json!({"type": "Hostname", "address": settings.name}));
    addresses.extend(settings.more.written());
    let images: Vec<Value> = state.images.iter().take(50).map(|(n, s)| json!({"names": n, "sizeBytes": s})).collect();
    let mut own = vec![
        pressure(
            "MemoryPressure",
            ("InsufficientMemory", "insufficient memory available"),
            ("SufficientMemory", "sufficient memory available"),
        ),
        pressure("DiskPressure", ("DiskPressure", "disk pressure"), ("NoDiskPressure", "no disk pressure")),
        pressure(
            "PIDPressure",
            ("InsufficientPID", "insufficient PID available"),
            ("SufficientPID", "sufficient PID available"),
        ),
        ready,
    ];
    let of_board = |c: &Condition| condition(c.kind, if c.status { "True" } else { "False" }, c.reason, c.message);
    own.extend(state.board.iter().map(of_board));
    let swap = (machine.swap_bytes > 0).then(|| json!({"capacity": machine.swap_bytes}));
    json!({
        "features": {"supplementalGroupsPolicy": true},
        "runtimeHandlers": runtime_handlers(machine),
        "capacity": with_devices(with_huge_pages(capacity(machine, settings), machine), state, gone, |c| c.0),
        "allocatable": with_devices(with_huge_pages(allocatable(settings), machine), state, gone, |c| c.1),
        "conditions": own,
        "addresses": addresses,
        // exec, attach and port-forward by websocket need no translation for this node (KEP-4006)
        "declaredFeatures": [
            "ExtendWebSocketsToKubelet",
            "InPlacePodLevelResourcesVerticalScaling",
            "InPlacePodVerticalScalingInitContainers",
            "RestartAllContainersOnContainerExits",
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": settings.kubelet_port}},
        "nodeInfo": {
            "machineID": machine.machine_id,
            "systemUUID": machine.system_uuid,
            "bootID": machine.boot_id,
            "kernelVersion": machine.kernel_version,
            "osImage": machine.os_image,
            "containerRuntimeVersion": concat!("pikelet://", env!("CARGO_PKG_VERSION")),
            "kubeletVersion": KUBELET_VERSION,
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": machine.architecture,
            "swap": swap,
        },
        "images": images,
    })
}

/// Times left out: they alone are no change.
pub fn essence(status: &Value) -> Value {
    let mut status = status.clone();
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        condition["lastHeartbeatTime"] = Value::Null;
        condition["lastTransitionTime"] = Value::Null;
    }
    status
}

/// True when somebody else has changed a condition we wrote: the control plane sets all to Unknown once a node was
/// silent for too long, and waits for the node to say otherwise.
pub fn overruled(node: &Node, written: &Value) -> bool {
    let present = conditions(node);
    let mut ours = written["conditions"].as_array().into_iter().flatten();
    ours.any(|c| present.iter().any(|p| c["type"] == p.type_ && c["status"] != p.status))
}

/// The strategic merge patch that makes `present` say `wanted`. Conditions and addresses of other types stay: a detector of
/// problems, a network or a cloud's controller wrote them.
pub fn patch(wanted: &Value, present: &Node) -> Value {
    let mut status = wanted.clone();
    if let Some(own) = status["conditions"].as_array_mut() {
        // such as those of sensors the board had before
        let lost = health::CONDITIONS.iter().filter(|kind| conditions(present).iter().any(|c| c.type_ == **kind));
        let lost: Vec<&str> = lost.copied().filter(|kind| !own.iter().any(|c| c["type"] == *kind)).collect();
        own.extend(lost.into_iter().map(|kind| json!({"type": kind, "$patch": "delete"})));
    }
    if let Some(own) = status["addresses"].as_array_mut() {
        let present = present.status.iter().flat_map(|s| s.addresses.iter().flatten()).map(|a| json!(a));
        let is_own = |address: &Value| own.iter().any(|o| o["type"] == address["type"]);
        let (before, others): (Vec<Value>, Vec<Value>) = present.partition(is_own);
        if before == *own {
            status["addresses"].take();
        } else {
            // merged by type there would be one of each: a node of two families has two
            own.extend(others);
            own.push(json!({"$patch": "replace"}));
        }
    }
    if status["addresses"].is_null() {
        // a null would take them all away
        status.as_object_mut().map(|s| s.remove("addresses"));
    }
    json!({"status": status})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(status: Value) -> Node {
        serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap()
    }

    #[test]
    fn what_the_runtime_can_do_is_the_kernels() {
        let of = |kernel: &str| {
            let machine = MachineInfo { kernel_version: kernel.to_owned(), ..MachineInfo::default() };
            let all = runtime_handlers(&machine);
            let features = &all[0]["features"];
            (features["recursiveReadOnlyMounts"] == true, features["userNamespaces"] == true)
        };
        assert_eq!(of("5.10.0-31-arm64"), (false, false));
        assert_eq!(of("6.1.21-v8+"), (true, false));
        assert_eq!((of("6.12.4"), of("")), ((true, true), (false, false)));
    }

    #[test]
    fn what_others_say_is_left_alone() {
        let wanted = json!({
            "conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [
                {"type": "InternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "2001:db8::1"},
                {"type": "Hostname", "address": "pi"}]});
        let external = json!({"type": "ExternalIP", "address": "198.51.100.1"});
        let written = patch(
            &wanted,
            &node(json!({
            "conditions": [
                {"type": "Ready", "status": "False"},
                {"type": "NetworkUnavailable", "status": "False"},
                {"type": "UnderVoltage", "status": "True"}],
            "addresses": [external, {"type": "InternalIP", "address": "192.0.2.9"}]})),
        );
        let own = &wanted["addresses"];
        assert_eq!(
            written,
            json!({"status": {
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "UnderVoltage", "$patch": "delete"}],
            "addresses": [own[0], own[1], own[2], external, {"$patch": "replace"}]}})
        );
        let again = patch(&wanted, &node(json!({"addresses": [own[0], external, own[1], own[2]]})));
        assert!(again["status"].get("addresses").is_none(), "what is there is not written: {again}");
    }
}
