//! Bringing a pod up: volumes, sandbox, network, images, containers in their order.

use std::path::{Path, PathBuf};
use std::time::Instant;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use tracing::{debug, warn};

use super::container::{LABEL_IMAGE, LABEL_IMAGE_ID};
use super::env::{self, EnvContext};
use super::worker::{Message, Sandbox, Worker, now_nanos};
use super::{PodExt, is_sidecar, qos};
use crate::image::{Image, ImageError};
use crate::network;
use crate::runtime::{self, ContainerInfo, ContainerSpec, Mount, Propagation, SandboxSpec, User};

/// Why a container could not be made: reason and message of its waiting state.
type Refused = (&'static str, String);

/// 64 random hex digits.
fn new_id() -> String {
    use std::fmt::Write;
    rand::random::<[u8; 32]>().iter().fold(String::with_capacity(64), |mut id, byte| {
        let _ = write!(id, "{byte:02x}");
        id
    })
}

impl Worker {
    /// Does what can be done now; returns when something is due by itself.
    pub(super) async fn create(&mut self) -> Option<Instant> {
        if let Some(at) = self.setup_retry.pending(Instant::now()) {
            return Some(at);
        }
        if self.sandbox.as_ref().is_some_and(|s| !s.ready) {
            self.drop_sandbox().await;
        }
        if let Err((reason, message)) = self.prepare().await {
            self.event(None, "Warning", reason, message);
            self.setup_retry.fail(Instant::now());
            return self.setup_retry.pending(Instant::now());
        }
        self.setup_retry.reset();
        let pod = self.pod.clone();
        for container in pod.init_containers() {
            let sidecar = is_sidecar(container);
            let policy = match (sidecar, pod.restart_policy()) {
                (true, _) => "Always",
                // an init container that ended well is done, whatever the pod's policy
                (false, "Never") => "Never",
                (false, _) => "OnFailure",
            };
            if !self.state(&container.name).succeeded() || sidecar {
                self.ensure(container, policy).await;
                let state = self.state(&container.name);
                let passed = if sidecar { state.running() } else { state.succeeded() };
                if !passed {
                    return self.wake();
                }
            }
        }
        for container in pod.app_containers() {
            self.ensure(container, pod.restart_policy()).await;
        }
        self.wake()
    }

    fn wake(&self) -> Option<Instant> {
        let now = Instant::now();
        self.containers.values().filter_map(|s| s.wake(now)).min()
    }

    /// Volumes, and the sandbox with its network, side by side.
    async fn prepare(&mut self) -> Result<(), Refused> {
        if self.volumes.is_some() && self.sandbox.is_some() {
            return Ok(());
        }
        let volumes = async {
            match &self.volumes {
                Some(_) => Ok(None),
                None => self.shared.volumes.prepare(&self.pod).await.map(Some),
            }
        };
        let sandbox = async {
            match &self.sandbox {
                Some(_) => Ok(None),
                None => self.create_sandbox().await.map(Some),
            }
        };
        let (volumes, sandbox) = tokio::join!(volumes, sandbox);
        if let Ok(Some(sandbox)) = &sandbox {
            debug!(pod = %self.uid, sandbox = %sandbox.id, "sandbox ready");
        }
        let refused = match sandbox {
            Ok(Some(sandbox)) => {
                self.next_sandbox = sandbox.attempt + 1;
                self.sandbox = Some(sandbox);
                None
            }
            Ok(None) => None,
            Err(message) => Some(("FailedCreatePodSandBox", message)),
        };
        match volumes {
            Ok(Some(volumes)) => self.volumes = Some(volumes),
            Ok(None) => {}
            Err(error) => return Err(("FailedMount", error.to_string())),
        }
        refused.map_or(Ok(()), Err)
    }

    async fn create_sandbox(&self) -> Result<Sandbox, String> {
        let pod = &self.pod;
        let host_network = pod.host_network();
        if !host_network && !*self.shared.network_ready.borrow() {
            return Err(format!("Failed to create pod sandbox: {}", network::NetworkError::NotReady));
        }
        let default = PodSpec::default();
        let spec = pod.pod_spec().unwrap_or(&default);
        let attempt = self.next_sandbox;
        let sandbox = SandboxSpec {
            id: new_id(),
            pod_uid: self.uid.clone(),
            pod_name: pod.name().to_owned(),
            pod_namespace: pod.ns().to_owned(),
            attempt,
            hostname: (!host_network).then(|| hostname(spec, pod.name())),
            host_network,
            host_ipc: spec.host_ipc.unwrap_or(false),
            host_pid: spec.host_pid.unwrap_or(false),
            share_process_namespace: spec.share_process_namespace.unwrap_or(false),
            cgroup: qos::pod_cgroup(pod),
            resources: qos::pod_resources(pod),
        };
        let id = sandbox.id.clone();
        let made = self.shared.runtime.create_sandbox(sandbox).await.map_err(|e| e.to_string());
        let attached = match made {
            Err(error) => Err(error),
            Ok(()) if host_network => Ok(self.shared.host_ips.clone()),
            Ok(()) => match self.shared.runtime.netns_path(&id) {
                Some(netns) => self.shared.network.attach(&id, &netns).await.map(|a| a.ips).map_err(|e| e.to_string()),
                None => Err("its network namespace is gone already".to_owned()),
            },
        };
        match attached.and_then(|ips| self.write_files(spec, &ips).map(|()| ips)) {
            Ok(ips) => Ok(Sandbox { id, attempt, ips, ready: true }),
            Err(error) => {
                for cleaned in [
                    self.shared.network.detach(&id).await.map_err(|e| e.to_string()),
                    self.shared.runtime.remove_sandbox(&id).await.map_err(|e| e.to_string()),
                ] {
                    if let Err(error) = cleaned {
                        warn!(pod = %self.uid, %error, "sandbox that failed not wholly removed");
                    }
                }
                Err(format!("Failed to create pod sandbox: {error}"))
            }
        }
    }

    fn pod_dir(&self) -> PathBuf {
        self.shared.pods_dir.join(&self.uid)
    }

    /// The managed `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`.
    fn write_files(&self, spec: &PodSpec, ips: &[std::net::IpAddr]) -> Result<(), String> {
        let dir = self.pod_dir();
        let pod = &self.pod;
        let host = hostname(spec, pod.name());
        let fqdn =
            spec.subdomain.as_ref().map(|sub| format!("{host}.{sub}.{}.svc.{}", pod.ns(), self.shared.cluster_domain));
        let aliases: Vec<(String, Vec<String>)> = spec
            .host_aliases
            .iter()
            .flatten()
            .map(|a| (a.ip.clone(), a.hostnames.clone().unwrap_or_default()))
            .collect();
        let dns = spec.dns_config.as_ref().map(|d| network::DnsOptions {
            nameservers: d.nameservers.clone().unwrap_or_default(),
            searches: d.searches.clone().unwrap_or_default(),
            options: d
                .options
                .iter()
                .flatten()
                .filter_map(|o| {
                    let name = o.name.clone()?;
                    Some(o.value.as_ref().map_or(name.clone(), |v| format!("{name}:{v}")))
                })
                .collect(),
        });
        let resolv = network::resolv_conf(
            spec.dns_policy.as_deref().unwrap_or("ClusterFirst"),
            pod.host_network(),
            &network::host_resolv_conf(),
            &self.shared.cluster_dns,
            &self.shared.cluster_domain,
            pod.ns(),
            dns.as_ref(),
        );
        let write = |name: &str, text: &str| {
            std::fs::write(dir.join(name), text).map_err(|e| format!("writing {}: {e}", dir.join(name).display()))
        };
        std::fs::create_dir_all(&dir).map_err(|e| format!("creating {}: {e}", dir.display()))?;
        write("resolv.conf", &resolv)?;
        if pod.host_network() {
            return Ok(());
        }
        write("etc-hosts", &network::hosts_file(ips, &host, fqdn.as_deref(), &aliases))?;
        write("hostname", &format!("{host}\n"))
    }

    /// Starts the container if it is not running and its policy and backoff allow it.
    async fn ensure(&mut self, container: &Container, policy: &str) {
        let now = Instant::now();
        let state = self.state(&container.name);
        if state.running() || state.pulling {
            return;
        }
        if state.exit().is_some() && !state.wants_restart(policy) {
            state.waiting = None;
            return;
        }
        if state.crash.pending(now).is_some() {
            let seconds = state.crash.last_delay().as_secs();
            let message = format!("back-off {seconds}s restarting failed container={}", container.name);
            if state.wait("CrashLoopBackOff", &message) {
                self.event(
                    Some(container),
                    "Warning",
                    "BackOff",
                    format!("Back-off restarting failed container {}", container.name),
                );
            }
            return;
        }
        if state.retry.pending(now).is_some() || state.pull.pending(now).is_some() {
            self.image_backoff(container);
            return;
        }
        let image = match self.image(container).await {
            Ok(Some(image)) => image,
            Ok(None) => return,
            Err((reason, message)) => {
                let state = self.state(&container.name);
                let new = state.wait(reason, &message);
                state.retry.fail(Instant::now());
                if new {
                    self.event(Some(container), "Warning", reason, message);
                }
                return;
            }
        };
        if let Err((reason, message)) = self.start(container, &image).await {
            let state = self.state(&container.name);
            let new = state.wait(reason, &message);
            state.retry.fail(Instant::now());
            if new {
                self.event(Some(container), "Warning", "Failed", format!("Error: {message}"));
            }
        }
    }

    fn image_backoff(&mut self, container: &Container) {
        let image = container.image.clone().unwrap_or_default();
        let state = self.state(&container.name);
        let Some(error) = state.pull_error.clone() else { return };
        if state.pull.pending(Instant::now()).is_none() {
            return;
        }
        let message = format!("Back-off pulling image {image:?}: ErrImagePull: {error}");
        if state.wait("ImagePullBackOff", message) {
            self.event(Some(container), "Normal", "BackOff", format!("Back-off pulling image {image:?}"));
        }
    }

    /// The container's image by its pull policy; `None` while a pull is under way.
    async fn image(&mut self, container: &Container) -> Result<Option<Image>, Refused> {
        let name = container.image.clone().unwrap_or_default();
        let policy = container.image_pull_policy.clone().unwrap_or_else(|| "IfNotPresent".to_owned());
        let present = match self.shared.images.get(&name).await {
            Ok(present) => present,
            Err(ImageError::InvalidName { message, .. }) => {
                return Err(("InvalidImageName", format!("Failed to apply default image tag {name:?}: {message}")));
            }
            Err(error) => return Err(("ImageInspectError", error.to_string())),
        };
        let fresh = self
            .pulled_fresh
            .iter()
            .position(|n| *n == container.name)
            .map(|i| self.pulled_fresh.swap_remove(i))
            .is_some();
        match (present, policy.as_str()) {
            (Some(image), "Never" | "IfNotPresent") => Ok(Some(image)),
            (Some(image), _) if fresh => Ok(Some(image)),
            (None, "Never") => {
                Err(("ErrImageNeverPull", format!("Container image {name:?} is not present with pull policy of Never")))
            }
            _ => {
                self.pull(container, name).await;
                Ok(None)
            }
        }
    }

    async fn pull(&mut self, container: &Container, image: String) {
        self.event(Some(container), "Normal", "Pulling", format!("Pulling image {image:?}"));
        self.state(&container.name).pulling = true;
        let credentials = super::pull_secret::credentials(&self.pod, &*self.shared.objects).await;
        let (images, tx, name) = (self.shared.images.clone(), self.tx.clone(), container.name.clone());
        tokio::spawn(async move {
            let result = images.pull(&image, &credentials).await;
            // a worker that is gone no longer cares
            let _ = tx.send(Message::Pulled { container: name, result }).await;
        });
    }

    /// Takes the end of a pull.
    pub(super) fn pulled(&mut self, name: &str, result: Result<Image, ImageError>) {
        let pod = self.pod.clone();
        let Some(container) = pod.init_containers().iter().chain(pod.app_containers()).find(|c| c.name == name) else {
            return;
        };
        let image = container.image.clone().unwrap_or_default();
        let state = self.state(name);
        state.pulling = false;
        match result {
            Ok(_) => {
                state.pull.reset();
                state.pull_error = None;
                self.pulled_fresh.push(name.to_owned());
                self.event(Some(container), "Normal", "Pulled", format!("Successfully pulled image {image:?}"));
            }
            Err(error) => {
                let message = error.to_string();
                state.pull.fail(Instant::now());
                state.pull_error = Some(message.clone());
                state.wait("ErrImagePull", message.clone());
                self.event(Some(container), "Warning", "Failed", message);
                self.event(Some(container), "Warning", "Failed", "Error: ErrImagePull".to_owned());
                self.publish();
            }
        }
    }

    async fn start(&mut self, container: &Container, image: &Image) -> Result<(), Refused> {
        let sandbox = self.sandbox.as_ref().map(|s| (s.id.clone(), s.ips.clone()));
        let Some((sandbox, ips)) = sandbox else { return Ok(()) };
        self.forget_oldest(&container.name, &sandbox).await;
        let id = new_id();
        let dir = self.shared.containers_dir.join(&id);
        let rootfs =
            self.shared.images.mount(image, &dir).await.map_err(|e| ("CreateContainerError", e.to_string()))?;
        let made = async {
            let spec = self.container_spec(container, image, &id, &rootfs, &ips).await?;
            let created_at = now_nanos();
            let pid = self
                .shared
                .runtime
                .create_container(&sandbox, spec.clone())
                .await
                .map_err(|e| ("RunContainerError", e.to_string()))?;
            self.event(Some(container), "Normal", "Created", format!("Container created: {}", container.name));
            match self.shared.runtime.start_container(&sandbox, &id).await {
                Ok(started) => Ok(ContainerInfo { spec, pid, started_at: Some(started), created_at, exit: None }),
                Err(error) => {
                    if let Err(error) = self.shared.runtime.remove_container(&sandbox, &id).await {
                        warn!(container = %id, %error, "container that failed to start not removed");
                    }
                    Err(("RunContainerError", error.to_string()))
                }
            }
        }
        .await;
        match made {
            Ok(info) => {
                let state = self.state(&container.name);
                state.last = state.current.replace(info);
                state.last_message = state.message.take();
                state.next_attempt += 1;
                state.waiting = None;
                state.retry.reset();
                self.event(Some(container), "Normal", "Started", format!("Container started: {}", container.name));
                self.publish();
                Ok(())
            }
            Err(refused) => {
                if let Err(error) = self.shared.images.unmount(&dir).await {
                    warn!(container = %id, %error, "write layer of a container that failed not removed");
                }
                Err(refused)
            }
        }
    }

    /// One ended run is kept beside the newest; the one before goes.
    async fn forget_oldest(&mut self, name: &str, sandbox: &str) {
        let Some(old) = self.state(name).last.take() else { return };
        self.discard(sandbox, &old).await;
    }

    async fn container_spec(
        &self,
        container: &Container,
        image: &Image,
        id: &str,
        rootfs: &Path,
        ips: &[std::net::IpAddr],
    ) -> Result<ContainerSpec, Refused> {
        let pod = &self.pod;
        let config_error = |message: String| ("CreateContainerConfigError", message);
        let default = PodSpec::default();
        let pod_spec = pod.pod_spec().unwrap_or(&default);
        let context = EnvContext {
            host_ips: self.shared.host_ips.clone(),
            pod_ips: ips.to_vec(),
            node_name: self.shared.node_name.clone(),
            hostname: hostname(pod_spec, pod.name()),
            extra: self.shared.services.variables(pod.ns(), pod_spec.enable_service_links.unwrap_or(true)).await,
        };
        let env = env::build_env(pod, container, &image.config.env, &context, &*self.shared.objects)
            .await
            .map_err(config_error)?;
        let variables = env.iter().cloned().collect();
        let expand = |list: &[String]| list.iter().map(|s| env::expand(s, &variables)).collect::<Vec<_>>();
        let command = container.command.as_deref().filter(|c| !c.is_empty());
        let args = container.args.as_deref().filter(|a| !a.is_empty());
        let mut argv = command.map_or_else(|| image.config.entrypoint.clone(), expand);
        argv.extend(match (args, command) {
            (Some(args), _) => expand(args),
            (None, None) => image.config.cmd.clone(),
            (None, Some(_)) => Vec::new(),
        });
        if argv.is_empty() {
            return Err((
                "RunContainerError",
                "no command specified: neither the pod nor its image names one".to_owned(),
            ));
        }
        let attempt = self.containers.get(&container.name).map_or(0, |s| s.next_attempt);
        let log_dir = format!("{}_{}_{}", pod.ns(), pod.name(), self.uid);
        let security = container.security_context.as_ref();
        let capabilities = security.and_then(|s| s.capabilities.as_ref());
        let privileged = security.and_then(|s| s.privileged).unwrap_or(false);
        let termination_log = self.termination_log(container, id).map_err(config_error)?;
        let cwd = container.working_dir.clone().filter(|d| !d.is_empty()).unwrap_or(image.config.working_dir.clone());
        Ok(ContainerSpec {
            id: id.to_owned(),
            name: container.name.clone(),
            attempt,
            rootfs: rootfs.to_owned(),
            args: argv,
            env,
            cwd: if cwd.is_empty() { "/".to_owned() } else { cwd },
            user: self.user(container, image, rootfs).map_err(config_error)?,
            mounts: self.mounts(container, &termination_log).map_err(config_error)?,
            read_only_rootfs: security.and_then(|s| s.read_only_root_filesystem).unwrap_or(false),
            privileged,
            no_new_privileges: security.and_then(|s| s.allow_privilege_escalation) == Some(false),
            capabilities_add: capabilities.and_then(|c| c.add.clone()).unwrap_or_default(),
            capabilities_drop: capabilities.and_then(|c| c.drop.clone()).unwrap_or_default(),
            resources: qos::container_resources(container),
            oom_score_adj: qos::oom_score_adj(pod, container, self.shared.machine_memory),
            log_path: self.shared.logs_dir.join(log_dir).join(&container.name).join(format!("{attempt}.log")),
            tty: container.tty.unwrap_or(false),
            stdin: container.stdin.unwrap_or(false),
            stdin_once: container.stdin_once.unwrap_or(false),
            termination_log: Some(termination_log),
            labels: [
                (LABEL_IMAGE.to_owned(), container.image.clone().unwrap_or_default()),
                (LABEL_IMAGE_ID.to_owned(), image.repo_digests.first().unwrap_or(&image.id).clone()),
            ]
            .into(),
        })
    }

    fn termination_log(&self, container: &Container, id: &str) -> Result<PathBuf, String> {
        use std::os::unix::fs::PermissionsExt;
        let dir = self.pod_dir().join("containers").join(&container.name);
        let file = dir.join(&id[..8]);
        std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::write(&file, ""))
            .and_then(|()| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)))
            .map_err(|e| format!("creating termination log {}: {e}", file.display()))?;
        Ok(file)
    }

    fn user(&self, container: &Container, image: &Image, rootfs: &Path) -> Result<User, String> {
        let pod = self.pod.pod_spec().and_then(|s| s.security_context.as_ref());
        let own = container.security_context.as_ref();
        let uid = own.and_then(|s| s.run_as_user).or_else(|| pod.and_then(|s| s.run_as_user));
        let gid = own.and_then(|s| s.run_as_group).or_else(|| pod.and_then(|s| s.run_as_group));
        let wanted = uid.map_or_else(|| image.config.user.clone(), |u| u.to_string());
        let mut user = runtime::resolve_user(rootfs, &wanted).map_err(|e| e.to_string())?;
        if let Some(gid) = gid {
            user.gid = u32::try_from(gid).map_err(|_| format!("runAsGroup {gid} is out of range"))?;
        }
        let non_root = own.and_then(|s| s.run_as_non_root).or_else(|| pod.and_then(|s| s.run_as_non_root));
        if non_root == Some(true) && user.uid == 0 {
            return Err("container has runAsNonRoot and image will run as root".to_owned());
        }
        let groups = pod.and_then(|s| s.supplemental_groups.as_ref()).into_iter().flatten();
        for gid in groups.chain(pod.and_then(|s| s.fs_group.as_ref())) {
            let gid = u32::try_from(*gid).map_err(|_| format!("group {gid} is out of range"))?;
            if !user.additional_gids.contains(&gid) {
                user.additional_gids.push(gid);
            }
        }
        Ok(user)
    }

    fn mounts(&self, container: &Container, termination_log: &Path) -> Result<Vec<Mount>, String> {
        let bind = |source: PathBuf, destination: &str| Mount {
            source,
            destination: destination.to_owned(),
            read_only: false,
            propagation: Propagation::None,
        };
        let dir = self.pod_dir();
        let wanted = container.volume_mounts.as_deref().unwrap_or_default();
        let mut mounts = vec![bind(dir.join("resolv.conf"), "/etc/resolv.conf")];
        if self.pod.host_network() {
            mounts.push(bind("/etc/hosts".into(), "/etc/hosts"));
        } else {
            mounts.push(bind(dir.join("etc-hosts"), "/etc/hosts"));
            mounts.push(bind(dir.join("hostname"), "/etc/hostname"));
        }
        let message_path = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
        mounts.push(bind(termination_log.to_owned(), message_path));
        mounts.retain(|m| {
            !wanted.iter().any(|w| w.mount_path.trim_end_matches('/') == m.destination) && m.source.exists()
        });
        for mount in wanted {
            let volume = self.volumes.as_ref().and_then(|v| v.get(&mount.name)).ok_or_else(|| {
                format!("cannot find volume {:?} to mount into container {:?}", mount.name, container.name)
            })?;
            let source = match mount.sub_path.as_deref().filter(|s| !s.is_empty()) {
                Some(sub) => crate::volume::sub_path(volume, sub)?,
                None => volume.clone(),
            };
            mounts.push(Mount {
                source,
                destination: mount.mount_path.clone(),
                read_only: mount.read_only.unwrap_or(false),
                propagation: match mount.mount_propagation.as_deref() {
                    Some("HostToContainer") => Propagation::HostToContainer,
                    Some("Bidirectional") => Propagation::Bidirectional,
                    _ => Propagation::None,
                },
            });
        }
        Ok(mounts)
    }
}

fn hostname(spec: &PodSpec, pod_name: &str) -> String {
    let name = spec.hostname.clone().unwrap_or_else(|| pod_name.to_owned());
    // the kernel's limit for a host name in Kubernetes' naming
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}
