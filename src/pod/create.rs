//! Bringing a pod up: volumes and sandbox, then containers in their order.

use std::time::Instant;

use k8s_openapi::api::core::v1::Container;
use tracing::{debug, warn};

use super::ephemeral::ephemeral;
use super::sandbox::new_id;
use super::worker::{Worker, now_nanos};
use super::{PodExt, is_sidecar, log_links};
use crate::image::Image;
use crate::runtime::ContainerInfo;

/// Why a container could not be made: reason and message of its waiting state.
pub(super) type Refused = (&'static str, String);

impl Worker {
    /// Does what can be done now; returns when something is due by itself.
    pub(super) async fn create(&mut self) -> Option<Instant> {
        if self.failed.is_some() {
            return None;
        }
        if let Err(again) = self.admit() {
            return again;
        }
        if let Some(at) = self.setup_retry.pending(Instant::now()) {
            return Some(at);
        }
        if self.sandbox.as_ref().is_some_and(|s| !s.ready) {
            self.drop_sandbox().await;
        }
        if let Err((reason, message)) = self.prepare().await {
            self.event(None, "Warning", reason, message.clone());
            self.setup_error = Some(message);
            self.setup_retry.fail(Instant::now());
            return self.setup_retry.pending(Instant::now());
        }
        self.setup_error = None;
        self.setup_retry.reset();
        let pod = self.pod.clone();
        for container in pod.init_containers() {
            let sidecar = is_sidecar(container);
            if !self.state(&container.name).succeeded() || sidecar {
                self.ensure(container).await;
                let state = self.state(&container.name);
                let passed = if sidecar { state.started() } else { state.succeeded() };
                if !passed {
                    return self.wake();
                }
            }
        }
        let ephemeral = ephemeral(&pod);
        for container in pod.app_containers().iter().chain(&ephemeral) {
            self.ensure(container).await;
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

    /// Starts the container if it is not running and its policy and backoff allow it.
    async fn ensure(&mut self, container: &Container) {
        let now = Instant::now();
        let pod = self.pod.clone();
        let state = self.state(&container.name);
        if state.running() || state.pulling {
            return;
        }
        if state.exit().is_some() && !state.wants_restart(&pod, &container.name) {
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

    async fn start(&mut self, container: &Container, image: &Image) -> Result<(), Refused> {
        let sandbox = self.sandbox.as_ref().map(|s| (s.id.clone(), s.ips.clone()));
        let Some((sandbox, ips)) = sandbox else { return Ok(()) };
        self.pulled_fresh.retain(|(name, _)| *name != container.name);
        self.forget_oldest(&container.name, &sandbox).await;
        let id = new_id();
        let dir = self.shared.containers_dir.join(&id);
        let mounted = self.shared.images.mount_for(image, &dir, self.users().as_ref()).await;
        let rootfs = mounted.map_err(|e| ("CreateContainerError", e.to_string()))?;
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
                let (logs, log) = (&self.shared.logs_dir, &info.spec.log_path);
                log_links::make(logs, self.pod.name(), self.pod.ns(), &container.name, &id, log);
                let state = self.state(&container.name);
                if let Some(old) = state.current.replace(info) {
                    state.last = Some(old);
                    state.last_message = state.message.take();
                }
                state.next_attempt += 1;
                state.waiting = None;
                state.retry.reset();
                state.applied = Some(container.resources.clone().unwrap_or_default());
                state.changed = false;
                crate::allocator::trim_soon();
                self.event(Some(container), "Normal", "Started", format!("Container started: {}", container.name));
                // before the status is told: nothing is ready that has a probe which has not said so
                self.post_start(container);
                self.start_probes();
                self.publish();
                Ok(())
            }
            Err(refused) => {
                if let Err(error) = self.unmount(&id).await {
                    warn!(container = %id, %error, "write layer of a container that failed not removed");
                }
                Err(refused)
            }
        }
    }

    /// One ended run is kept beside the newest; the one before goes.
    pub(super) async fn forget_oldest(&mut self, name: &str, sandbox: &str) {
        let state = self.state(name);
        let Some(old) = state.last.take_if(|_| state.current.is_some()) else { return };
        self.discard(sandbox, &old).await;
    }
}
