//! From a container of the Pod API to what the runtime makes it from: command, user, mounts, limits.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, PodSpec};
use tracing::warn;

use super::allocation::LABEL_RESOURCES;
use super::container::{LABEL_IMAGE, LABEL_IMAGE_ID};
use super::create::Refused;
use super::env::{self, EnvContext};
use super::termination::{LABEL_LOG_IS_MESSAGE, LABEL_STOP_SIGNAL, stop_signal};
use super::worker::Worker;
use super::{PodExt, ephemeral, qos};
use crate::files;
use crate::image::Image;
use crate::machine::apparmor::{AppArmor, DEFAULT_PROFILE};
use crate::runtime::{self, ContainerSpec, Seccomp, User};

/// What the run begins with, for an agent that finds it.
fn resources_label(container: &Container) -> String {
    serde_json::to_string(&container.resources.clone().unwrap_or_default()).unwrap_or_default()
}

impl Worker {
    pub(super) async fn container_spec(
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
            host_ips: self.host_ips.clone(),
            pod_ips: ips.to_vec(),
            node_name: self.shared.node_name.clone(),
            hostname: self.identity().map_err(config_error)?.hostname,
            volumes: self.volumes.clone().unwrap_or_default(),
            allocatable: self.shared.allocations.allocatable.clone(),
            extra: self.shared.services.variables(pod.ns(), pod_spec.enable_service_links.unwrap_or(true)).await,
        };
        let (env, variables) = env::build_env(pod, container, &image.config.env, &context, &*self.shared.objects)
            .await
            .map_err(config_error)?;
        let expand = |list: &[String]| env::expand_all(list, &variables).map_err(config_error);
        let command = container.command.as_deref().filter(|c| !c.is_empty());
        let args = container.args.as_deref().filter(|a| !a.is_empty());
        let mut argv = command.map_or_else(|| Ok(image.config.entrypoint.clone()), expand)?;
        argv.extend(match (args, command) {
            (Some(args), _) => expand(args)?,
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
        let log_is_message = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
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
            mounts: self.mounts(container, id, image, &termination_log, &variables).await.map_err(config_error)?,
            read_only_rootfs: security.and_then(|s| s.read_only_root_filesystem).unwrap_or(false),
            privileged,
            no_new_privileges: security.and_then(|s| s.allow_privilege_escalation) == Some(false),
            capabilities_add: capabilities.and_then(|c| c.add.clone()).unwrap_or_default(),
            capabilities_drop: capabilities.and_then(|c| c.drop.clone()).unwrap_or_default(),
            seccomp: self.seccomp(container).map_err(|e| ("CreateContainerError", e))?,
            apparmor: self.apparmor(container),
            unmasked_proc: security.and_then(|s| s.proc_mount.as_deref()) == Some("Unmasked"),
            devices: self.shared.allocations.devices.grants(&self.uid, &container.name).map_err(config_error)?,
            volume_devices: self.volume_devices(container).await.map_err(config_error)?,
            resources: qos::container_resources(pod, container, &self.shared.limits, self.shared.machine),
            oom_score_adj: qos::oom_score_adj(pod, container, self.shared.machine.memory),
            log_path: self.shared.logs_dir.join(log_dir).join(&container.name).join(format!("{attempt}.log")),
            log_rotation: self.shared.log_rotation,
            tty: container.tty.unwrap_or(false),
            target: self.target(container).map_err(config_error)?,
            stdin: container.stdin.unwrap_or(false),
            stdin_once: container.stdin_once.unwrap_or(false),
            termination_log: Some(termination_log),
            labels: [
                (LABEL_RESOURCES.to_owned(), resources_label(container)),
                (LABEL_IMAGE.to_owned(), container.image.clone().unwrap_or_default()),
                (LABEL_IMAGE_ID.to_owned(), image.repo_digests.first().unwrap_or(&image.id).clone()),
                (LABEL_STOP_SIGNAL.to_owned(), stop_signal(container, image).to_string()),
            ]
            .into_iter()
            .chain(log_is_message.then(|| (LABEL_LOG_IS_MESSAGE.to_owned(), String::new())))
            .collect(),
        })
    }

    fn termination_log_path(&self, container: &Container, id: &str) -> PathBuf {
        self.pod_dir().join("containers").join(&container.name).join(&id[..8])
    }

    /// Of a run that has come to nothing.
    pub(super) fn remove_termination_log(&self, container: &Container, id: &str) {
        let file = self.termination_log_path(container, id);
        if let Err(error) = std::fs::remove_file(&file)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            warn!(file = %file.display(), %error, "termination log not removed");
        }
    }

    fn termination_log(&self, container: &Container, id: &str) -> Result<PathBuf, String> {
        let file = self.termination_log_path(container, id);
        files::dir_kept(&self.pod_dir().join("containers").join(&container.name), 0o750)
            .and_then(|()| files::create(&file, 0o666).map(drop))
            .map_err(|e| format!("creating termination log {}: {e}", file.display()))?;
        Ok(file)
    }

    /// The container's profile, else the pod's, else what `seccompDefault` says.
    fn seccomp(&self, container: &Container) -> Result<Seccomp, String> {
        let own = container.security_context.as_ref().and_then(|s| s.seccomp_profile.as_ref());
        let pod = || self.pod.pod_spec()?.security_context.as_ref()?.seccomp_profile.as_ref();
        let Some(profile) = own.or_else(pod) else {
            let default = if self.shared.seccomp_default { Seccomp::RuntimeDefault } else { Seccomp::Unconfined };
            return Ok(default);
        };
        match (profile.type_.as_str(), &profile.localhost_profile) {
            ("Unconfined", _) => Ok(Seccomp::Unconfined),
            ("RuntimeDefault", _) => Ok(Seccomp::RuntimeDefault),
            ("Localhost", Some(name)) if crate::volume::stays_inside(name) => {
                Ok(Seccomp::Localhost(self.shared.seccomp_dir.join(name)))
            }
            (kind, name) => Err(format!("seccompProfile: {kind} with localhostProfile {name:?} names no profile")),
        }
    }

    /// The profile a container is confined by; the default one where it names none. Admission has refused what the
    /// machine cannot enforce.
    fn apparmor(&self, container: &Container) -> Option<String> {
        let own = container.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
        let pod = || self.pod.pod_spec()?.security_context.as_ref()?.app_armor_profile.as_ref();
        let profile = own.or_else(pod);
        match profile.map_or("RuntimeDefault", |p| p.type_.as_str()) {
            "Localhost" => profile?.localhost_profile.clone(),
            "RuntimeDefault" => (self.shared.apparmor == AppArmor::Ready).then(|| DEFAULT_PROFILE.to_owned()),
            _ => None,
        }
    }

    /// The id of the container an ephemeral one looks into.
    fn target(&self, container: &Container) -> Result<Option<String>, String> {
        let Some(name) = ephemeral::target(&self.pod, &container.name) else { return Ok(None) };
        let state = self.containers.get(name).filter(|s| s.running());
        let current = state.and_then(|s| s.current.as_ref());
        current
            .map(|c| Some(c.spec.id.clone()))
            .ok_or_else(|| format!("targetContainerName: container {name:?} does not run"))
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
        if pod.and_then(|s| s.supplemental_groups_policy.as_deref()) == Some("Strict") {
            user.additional_gids.clear();
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
        let ids = self.sandbox.as_ref().and_then(|s| s.ids).map_or(u32::MAX, |ids| ids.count);
        let mut wanted = [user.uid, user.gid].into_iter().chain(user.additional_gids.iter().copied());
        if let Some(id) = wanted.find(|id| *id >= ids) {
            return Err(format!(
                "user or group {id}: the pod's user namespace (hostUsers: false) has 0 to {}",
                ids - 1
            ));
        }
        Ok(user)
    }
}
