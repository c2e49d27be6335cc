//! The pod's sandbox: its namespaces, its network, and the files its containers share.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::PodSpec;
use tracing::warn;

use super::admission::sysctl_name;
use super::bandwidth::{bandwidth, in_vain};
use super::create::{ENDS, in_full};
use super::host_ports::host_ports;
use super::identity::Identity;
use super::worker::{Sandbox, Worker};
use super::{PodExt, qos};
use crate::files;
use crate::hex::hex;
use crate::runtime::SandboxSpec;
use crate::{machine, metrics, network, volume};

/// 64 random hex digits.
pub(super) fn new_id() -> String {
    hex(&rand::random::<[u8; 32]>())
}

impl Worker {
    pub(super) async fn create_sandbox(&self) -> Result<Sandbox, String> {
        let pod = &self.pod;
        let host_network = pod.host_network();
        if !host_network && !*self.shared.network_ready.borrow() {
            return Err(format!("Failed to create pod sandbox: {}", network::NetworkError::NotReady));
        }
        let default = PodSpec::default();
        let spec = pod.pod_spec().unwrap_or(&default);
        let ids = self.take_ids().map_err(|e| format!("Failed to create pod sandbox: hostUsers: false: {e}"))?;
        let identity = self.identity().map_err(|e| format!("Failed to create pod sandbox: {e}"))?;
        // a pod of the host's network has its ports without further ado
        let ports = if host_network { Ok(Vec::new()) } else { host_ports(pod) };
        let ports = ports.map_err(|e| format!("Failed to create pod sandbox: {e}"))?;
        let bandwidth = if host_network { Ok(network::Bandwidth::default()) } else { bandwidth(pod) };
        let bandwidth = bandwidth.map_err(|e| format!("Failed to create pod sandbox: {e}"))?;
        if let Some(vain) = in_vain(pod) {
            self.event(None, "Warning", "HostNetworkNotSupported", vain);
        }
        self.check_runtime_class().await?;
        let attempt = self.next_sandbox;
        let sandbox = SandboxSpec {
            id: new_id(),
            pod_uid: self.uid.clone(),
            pod_name: pod.name().to_owned(),
            pod_namespace: pod.ns().to_owned(),
            attempt,
            hostname: (!host_network).then(|| identity.hostname.clone()),
            host_network,
            host_ipc: spec.host_ipc.unwrap_or(false),
            host_pid: spec.host_pid.unwrap_or(false),
            share_process_namespace: spec.share_process_namespace.unwrap_or(false),
            cgroup: qos::pod_cgroup(pod),
            resources: qos::pod_resources(pod, &self.shared.limits),
            sysctls: sysctls(spec),
            user_namespace: ids,
        };
        let id = sandbox.id.clone();
        let made = tokio::select! {
            made = self.shared.runtime.create_sandbox(sandbox) => made.map_err(|e| e.to_string()),
            () = self.mailbox.ending() => Err(ENDS.to_owned()),
        };
        let attached = match made {
            Err(error) => Err(error),
            Ok(()) if host_network => Ok(self.host_ips.clone()),
            Ok(()) => match self.shared.runtime.netns_path(&id) {
                Some(netns) => {
                    let attached = self.shared.network.attach(&id, &netns, &ports, bandwidth).await;
                    attached.map_err(|e| e.to_string()).map(|attached| {
                        for told in attached.told {
                            self.event(None, "Warning", "HostPortConflict", told);
                        }
                        attached.ips
                    })
                }
                None => Err("its network namespace is gone already".to_owned()),
            },
        };
        let filled = attached.and_then(|ips| self.write_files(spec, &identity, &ips).map(|()| ips));
        let shared = match filled {
            Ok(ips) if !spec.host_ipc.unwrap_or(false) => {
                let place = self.shared_memory();
                let made = tokio::task::spawn_blocking(move || volume::shared_memory(&place)).await;
                made.unwrap_or_else(|e| Err(e.to_string())).map(|()| ips)
            }
            filled => filled,
        };
        match shared {
            Ok(ips) => {
                metrics::PODS_STARTED.add([]);
                Ok(Sandbox { id, attempt, ips, ids, ready: true })
            }
            Err(error) => {
                if error != ENDS {
                    metrics::PODS_NOT_STARTED.add([]);
                }
                for cleaned in [
                    self.shared.network.detach(&id).await.map_err(|e| e.to_string()),
                    self.shared.runtime.remove_sandbox(&id).await.map_err(|e| e.to_string()),
                ] {
                    if let Err(error) = cleaned {
                        warn!(pod = %self.uid, %error, "sandbox that failed not wholly removed");
                    }
                }
                Err(if error == ENDS { error } else { format!("Failed to create pod sandbox: {error}") })
            }
        }
    }

    pub(super) fn pod_dir(&self) -> PathBuf {
        self.shared.pods_dir.join(&self.uid)
    }

    /// Where the containers' `/dev/shm` is, once the sandbox has its own.
    pub(super) fn shared_memory(&self) -> PathBuf {
        self.pod_dir().join("shm")
    }

    /// What the pod is called.
    pub(super) fn identity(&self) -> Result<Identity, String> {
        Identity::of(&self.pod, &self.shared.cluster_domain, &machine::hostname())
    }

    /// Whom the pod asks for names.
    fn with_resolver<T>(&self, spec: &PodSpec, then: impl FnOnce(&network::Resolver<'_>) -> T) -> T {
        let dns = spec.dns_config.as_ref().map(|d| network::DnsOptions {
            nameservers: d.nameservers.clone().unwrap_or_default(),
            searches: d.searches.clone().unwrap_or_default(),
            options: d
                .options
                .iter()
                .flatten()
                .filter_map(|o| {
                    let name = o.name.clone()?;
                    let value = o.value.as_ref().filter(|v| !v.is_empty());
                    Some(value.map_or(name.clone(), |v| format!("{name}:{v}")))
                })
                .collect(),
        });
        then(&network::Resolver {
            policy: spec.dns_policy.as_deref().unwrap_or("ClusterFirst"),
            host_network: self.pod.host_network(),
            cluster_dns: &self.shared.cluster_dns,
            domain: &self.shared.cluster_domain,
            namespace: self.pod.ns(),
            dns: dns.as_ref(),
        })
    }

    /// Makes the pod's resolv.conf what the host's says now, if it is of that.
    pub(super) fn rewrite_resolv_conf(&self) {
        let default = PodSpec::default();
        let spec = self.pod.pod_spec().unwrap_or(&default);
        let text = self.with_resolver(spec, |resolver| {
            resolver.follows_host().then(|| resolver.conf(&self.shared.resolv_conf.borrow()).text)
        });
        let file = self.pod_dir().join("resolv.conf");
        // without a sandbox there is no file yet
        let Some(text) = text.filter(|text| says_other(&file, text)) else {
            return;
        };
        if let Err(error) = write_in_place(&file, &text) {
            warn!(pod = %self.uid, error, "the pod goes on with name servers of before");
        }
    }

    /// The machine has other addresses now.
    pub(super) fn take_host_ips(&mut self) {
        self.host_ips.clone_from(&self.shared.host_ips.borrow());
        if self.pod.host_network()
            && let Some(sandbox) = &mut self.sandbox
        {
            sandbox.ips.clone_from(&self.host_ips);
        }
    }

    /// The managed `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`.
    fn write_files(&self, spec: &PodSpec, identity: &Identity, ips: &[std::net::IpAddr]) -> Result<(), String> {
        let dir = self.pod_dir();
        let pod = &self.pod;
        let resolv = self.with_resolver(spec, |resolver| resolver.conf(&self.shared.resolv_conf.borrow()));
        if let Some(missed) = self.with_resolver(spec, |resolver| resolver.misses_cluster().map(str::to_owned)) {
            self.event(None, "Warning", "MissingClusterDNS", format!("pod: {:?}. {missed}", in_full(pod)));
            self.shared.events.node_event("Warning", "MissingClusterDNS", missed);
        }
        for left_out in resolv.left_out {
            self.event(None, "Warning", "DNSConfigForming", left_out);
        }
        let write = |name: &str, text: &str| write_in_place(&dir.join(name), text);
        files::dir_kept(&dir, 0o750).map_err(|e| format!("creating {}: {e}", dir.display()))?;
        write("resolv.conf", &resolv.text)?;
        // a machine without the file has no names to give
        let machine = pod.host_network().then(|| std::fs::read_to_string("/etc/hosts").unwrap_or_default());
        write("etc-hosts", &identity.hosts_file(spec, ips, machine.as_deref()))?;
        write("hostname", &format!("{}\n", identity.hostname))
    }
}

/// Whether the file is there and is not `text`. Containers write to it: it may be of any size.
fn says_other(file: &Path, text: &str) -> bool {
    let Ok(open) = files::open_regular(file) else { return false };
    let mut there = Vec::new();
    open.take(text.len() as u64 + 1).read_to_end(&mut there).is_ok() && there != text.as_bytes()
}

/// In its place, as containers that run have this very file mounted.
fn write_in_place(file: &Path, text: &str) -> Result<(), String> {
    let written = files::create(file, 0o644).and_then(|mut open| open.write_all(text.as_bytes()));
    written.map_err(|e| format!("writing {}: {e}", file.display()))
}

/// The pod's kernel settings.
fn sysctls(spec: &PodSpec) -> Vec<(String, String)> {
    let wanted = spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten());
    wanted.map(|s| (sysctl_name(&s.name), s.value.clone())).collect()
}
