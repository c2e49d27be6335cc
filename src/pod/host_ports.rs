//! Ports of the host that containers of a pod have (`hostPort`, `hostIP`).

use k8s_openapi::api::core::v1::{ContainerPort, Pod};

use super::{PodExt, is_sidecar};
use crate::network::{HostPort, Protocol};

/// The port of the host that a port has. In the host's network it is the same one: an API server writes that into the pod,
/// a manifest need not say it.
fn wanted(port: &ContainerPort, host_network: bool) -> Option<i32> {
    let own = host_network.then_some(port.container_port);
    port.host_port.filter(|port| *port != 0).or(own)
}

fn host_port(port: &ContainerPort, wanted: i32) -> Result<HostPort, String> {
    let is_port = |value: i32| u16::try_from(value).ok().filter(|port| *port > 0);
    let number = is_port(wanted).ok_or_else(|| format!("hostPort {wanted} is no port"))?;
    let wrong = |what: String| format!("hostPort {wanted}: {what}");
    let container_port = is_port(port.container_port)
        .ok_or_else(|| wrong(format!("containerPort {} is no port", port.container_port)))?;
    let protocol = match port.protocol.as_deref() {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some(other) => return Err(wrong(format!("protocol {other:?} is not TCP, UDP or SCTP"))),
    };
    let ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty());
    let ip = ip.map(|ip| ip.parse().map_err(|_| wrong(format!("hostIP {ip:?} is no address")))).transpose()?;
    Ok(HostPort { ip, protocol, port: number, container_port })
}

/// Those of app containers and sidecars; init containers that end have none, as with the kubelet.
pub(super) fn host_ports(pod: &Pod) -> Result<Vec<HostPort>, String> {
    let lasting = pod.init_containers().iter().filter(|c| is_sidecar(c)).chain(pod.app_containers());
    let ports = lasting.flat_map(|c| c.ports.iter().flatten());
    ports.filter_map(|p| Some(host_port(p, wanted(p, pod.host_network())?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ports: serde_json::Value) -> Result<Vec<HostPort>, String> {
        host_ports(
            &serde_json::from_value(serde_json::json!({"metadata": {}, "spec": {
                "initContainers": [
                    {"name": "once", "ports": [{"containerPort": 1, "hostPort": 1}]},
                    {"name": "sidecar", "restartPolicy": "Always", "ports": [{"containerPort": 2, "hostPort": 2}]}],
                "containers": [{"name": "c", "ports": ports}]}}))
            .unwrap(),
        )
    }

    #[test]
    fn ports_of_lasting_containers_count() {
        let sidecar = HostPort { ip: None, protocol: Protocol::Tcp, port: 2, container_port: 2 };
        assert_eq!(of(serde_json::json!([{"containerPort": 80}])).unwrap(), [sidecar]);
        let found = of(serde_json::json!([
            {"containerPort": 53, "hostPort": 5353, "protocol": "UDP", "hostIP": "::1"},
            {"containerPort": 9, "hostPort": 36412, "protocol": "SCTP", "hostIP": ""}]));
        let udp =
            HostPort { ip: Some("::1".parse().unwrap()), protocol: Protocol::Udp, port: 5353, container_port: 53 };
        let sctp = HostPort { ip: None, protocol: Protocol::Sctp, port: 36412, container_port: 9 };
        assert_eq!(found.unwrap(), [sidecar, udp, sctp]);
    }

    #[test]
    fn a_pod_of_the_host_network_has_its_own_ports() {
        let pod = serde_json::json!({"metadata": {}, "spec": {"hostNetwork": true, "containers": [
            {"name": "c", "ports": [{"containerPort": 80}]}]}});
        let own = HostPort { ip: None, protocol: Protocol::Tcp, port: 80, container_port: 80 };
        assert_eq!(host_ports(&serde_json::from_value(pod).unwrap()).unwrap(), [own]);
    }

    #[test]
    fn what_cannot_be_is_said() {
        let says = |port: serde_json::Value| of(serde_json::json!([port])).unwrap_err();
        assert_eq!(
            says(serde_json::json!({"containerPort": 80, "hostPort": 80, "protocol": "ICMP"})),
            "hostPort 80: protocol \"ICMP\" is not TCP, UDP or SCTP"
        );
        assert_eq!(
            says(serde_json::json!({"containerPort": 80, "hostPort": 80, "hostIP": "eth0"})),
            "hostPort 80: hostIP \"eth0\" is no address"
        );
        assert_eq!(says(serde_json::json!({"containerPort": 80, "hostPort": 70000})), "hostPort 70000 is no port");
        assert_eq!(
            says(serde_json::json!({"containerPort": 0, "hostPort": 80})),
            "hostPort 80: containerPort 0 is no port"
        );
    }
}
