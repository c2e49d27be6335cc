//! Bringing a pod up: volumes and sandbox, then containers in their order.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod};
use tracing::{debug, warn};

use super::container::{Containers, LABEL_REASON};
use super::ephemeral::ephemeral;
use super::recall::UNKNOWN;
use super::restart::policy;
use super::sandbox::new_id;
use super::times::in_words;
use super::worker::{Worker, now_nanos};
use super::{PodExt, is_sidecar, log_links};
use crate::image::Image;
use crate::metrics;
use crate::runtime::{ContainerInfo, ContainerSpec, ExitRecord, RuntimeError};

/// Why a container was not made that could have been.
pub(super) const ENDS: &str = "the pod is to end";
/// Exit code and reason of a program that could not be run, as containerd gives them.
const NOT_STARTED: i32 = 128;
const START_ERROR: &str = "StartError";
/// How long the start of a container may take when its pod is to end.
const START_OF_ENDING: Duration = Duration::from_secs(3);

/// Why a container could not be made: reason and message of its waiting state.
pub(super) type Refused = (&'static str, String);

/// A pod as the kubelet calls it in Events.
pub(super) fn in_full(pod: &Pod) -> String {
    format!("{}_{}({})", pod.name(), pod.ns(), pod.uid())
}

/// True when the pod is to have no other sandbox: something of it has run, and it runs once.
pub(super) fn spent(pod: &Pod, containers: &Containers) -> bool {
    pod.restart_policy() == "Never" && containers.values().any(|s| s.exit().is_some())
}

fn no_claims() -> Refused {
    let why = "Failed to prepare dynamic resources: spec.resourceClaims: this node has none; its devices are extended resources";
    ("FailedPrepareDynamicResources", why.to_owned())
}

impl Worker {
    /// Does what can be done now; returns when something is due by itself.
    pub(super) async fn create(&mut self) -> Option<Instant> {
        if self.failed.is_some() {
            return None;
        }
        if let Err(again) = self.admit().await {
            return again;
        }
        if let Some(at) = self.setup_retry.pending(Instant::now()) {
            return Some(at);
        }
        if self.sandbox.as_ref().is_some_and(|s| !s.ready) {
            self.drop_sandbox().await;
        }
        if self.sandbox.is_none() && spent(&self.pod, &self.containers) {
            let message = "its sandbox is gone, and what has run is not to run again (restartPolicy: Never)";
            self.failed = Some((UNKNOWN.to_owned(), message.to_owned()));
            return None;
        }
        let claims = self.pod.pod_spec().is_some_and(|s| s.resource_claims.as_ref().is_some_and(|c| !c.is_empty()));
        let prepared = if claims { Err(no_claims()) } else { Box::pin(self.prepare()).await };
        if let Err((reason, message)) = prepared {
            if message == ENDS {
                return None;
            }
            self.event(None, "Warning", reason, message.clone());
            self.setup_error = Some(message);
            self.setup_retry.fail(Instant::now());
            return self.setup_retry.pending(Instant::now());
        }
        self.setup_error = None;
        self.setup_retry.reset();
        let pod = self.pod.clone();
        // first, as people look by them at what does not come up
        for container in ephemeral(&pod) {
            self.ensure(&container, false).await;
        }
        // a pod that has come up is not held back by a sidecar that is down
        let up = pod.app_containers().iter().any(|c| self.containers.get(&c.name).is_some_and(|s| s.running()));
        for container in pod.init_containers() {
            let sidecar = is_sidecar(container);
            if !self.state(&container.name).succeeded() || sidecar {
                self.ensure(container, false).await;
                let state = self.state(&container.name);
                let passed = if sidecar { up || state.started() } else { state.succeeded() };
                if !passed {
                    return self.wake();
                }
            }
        }
        // in their order: what comes after a proxy, or an agent that fetches secrets, counts on what that one's hook awaits
        let mut held = false;
        for container in pod.app_containers() {
            self.ensure(container, held).await;
            held |= self.state(&container.name).holds_back();
        }
        self.wake()
    }

    fn wake(&self) -> Option<Instant> {
        let now = Instant::now();
        self.containers.values().filter_map(|s| s.wake(now)).min()
    }

    /// A fresh sandbox is set up from the start: what init containers did to the one before, such as to its network, is
    /// gone with it.
    fn initialize_anew(&mut self) {
        let pod = self.pod.clone();
        for container in pod.init_containers().iter().filter(|c| !is_sidecar(c)) {
            let state = self.state(&container.name);
            if state.current.is_some() {
                state.last = state.current.take();
                state.last_message = state.message.take();
            }
        }
    }

    /// Notes on disk that a container which runs once is about to: should the machine lose power before more is told of
    /// it, it has run.
    fn note_start(&mut self, container: &Container, made: &ContainerInfo) {
        let pod = self.pod.clone();
        let init = pod.init_containers().iter().any(|c| c.name == container.name);
        if policy(&pod, container, init) != "Never" {
            return;
        }
        let state = self.state(&container.name);
        let before = (state.current.replace(made.clone()), state.waiting.take());
        let status = self.compute();
        let state = self.state(&container.name);
        (state.current, state.waiting) = before;
        self.save_with(status);
    }

    /// Volumes, and the sandbox with its network, side by side.
    async fn prepare(&mut self) -> Result<(), Refused> {
        if self.volumes.is_some() && self.sandbox.is_some() {
            return Ok(());
        }
        let volumes = async {
            match &self.volumes {
                Some(_) => Ok(None),
                None => Box::pin(self.shared.volumes.prepare(&self.pod)).await.map(Some),
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
                self.initialize_anew();
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

    /// Starts the container if it is not running and its policy and backoff allow it. `held`: one before it is not done, so
    /// that no more than its image is fetched.
    async fn ensure(&mut self, container: &Container, held: bool) {
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
            let (delay, of) = (in_words(state.crash.last_delay()), in_full(&pod));
            let message = format!("back-off {delay} restarting failed container={} pod={of}", container.name);
            if state.wait("CrashLoopBackOff", &message) {
                self.event(
                    Some(container),
                    "Warning",
                    "BackOff",
                    format!("Back-off restarting failed container {} in pod {of}", container.name),
                );
            }
            return;
        }
        if state.retry.pending(now).is_some() || state.pull.pending(now).is_some() {
            self.image_backoff(container);
            return;
        }
        if held && self.has_image(container).await {
            return;
        }
        let image = match self.image(container).await {
            Ok(Some(image)) if !held => image,
            Ok(_) => return,
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
            if message == ENDS {
                return;
            }
            metrics::CONTAINERS_NOT_STARTED.add([reason.into(), self.kind(container).into()]);
            let pod = self.pod.clone();
            let state = self.state(&container.name);
            if state.exit().is_some() && !state.wants_restart(&pod, &container.name) {
                state.waiting = None;
                self.event(Some(container), "Warning", "Failed", format!("Error: {message}"));
                return;
            }
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
            let created = tokio::select! {
                created = self.shared.runtime.create_container(&sandbox, spec.clone()) => created,
                () = self.mailbox.ending() => Err(RuntimeError::Shim(ENDS.to_owned())),
            };
            let pid = match created {
                Ok(pid) => pid,
                Err(error) => return Err(self.not_run(container, spec, &error)),
            };
            self.event(Some(container), "Normal", "Created", "Container created".to_owned());
            let at = now_nanos();
            let about = ContainerInfo { spec: spec.clone(), pid, started_at: Some(at), created_at: at, exit: None };
            self.note_start(container, &about);
            let stuck = async {
                self.mailbox.ending().await;
                tokio::time::sleep(START_OF_ENDING).await;
            };
            let started = tokio::select! {
                started = self.shared.runtime.start_container(&sandbox, &id) => started,
                () = stuck => Err(RuntimeError::Shim(ENDS.to_owned())),
            };
            match started {
                Ok(started) => Ok(ContainerInfo { spec, pid, started_at: Some(started), created_at, exit: None }),
                Err(error) if error.to_string() == ENDS => Err(("RunContainerError", ENDS.to_owned())),
                Err(error) => {
                    if let Err(error) = self.shared.runtime.remove_container(&sandbox, &id).await {
                        warn!(container = %id, %error, "container that failed to start not removed");
                    }
                    Err(self.not_run(container, spec, &error))
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
                metrics::CONTAINERS_STARTED.add([self.kind(container).into()]);
                self.event(Some(container), "Normal", "Started", "Container started".to_owned());
                // before the status is told: nothing is ready that has a probe which has not said so
                self.post_start(container);
                self.start_probes();
                self.publish();
                Ok(())
            }
            Err(refused) => {
                if refused.1 == ENDS {
                    // the shim may be at it still: what it has made goes with the sandbox
                    self.half_made.push(id);
                    return Err(refused);
                }
                if let Err(error) = self.unmount(&id).await {
                    warn!(container = %id, %error, "write layer of a container that failed not removed");
                }
                let counted = self.state(&container.name).current.as_ref().is_some_and(|run| run.spec.id == id);
                if !counted {
                    self.remove_termination_log(container, &id);
                }
                Err(refused)
            }
        }
    }

    /// What kind of container it is, as metrics name it.
    fn kind(&self, container: &Container) -> &'static str {
        let has = |list: &[Container]| list.iter().any(|c| c.name == container.name);
        if has(self.pod.app_containers()) {
            "container"
        } else if has(self.pod.init_containers()) {
            "init_container"
        } else {
            "ephemeral_container"
        }
    }

    /// The shim could not run the program: that counts as a run which has failed, so that restart policy, back-off and
    /// phase take it as one. One that did not answer has tried nothing.
    fn not_run(&mut self, container: &Container, spec: ContainerSpec, error: &RuntimeError) -> Refused {
        let message = error.to_string();
        if matches!(error, RuntimeError::Shim(_)) && message != ENDS {
            let now = now_nanos();
            let exit = ExitRecord { code: NOT_STARTED, signal: None, oom_killed: false, finished_at: now };
            let mut run = ContainerInfo { spec, pid: 0, started_at: None, created_at: now, exit: Some(exit) };
            run.spec.labels.insert(LABEL_REASON.to_owned(), START_ERROR.to_owned());
            let pod = self.pod.clone();
            let state = self.state(&container.name);
            if let Some(old) = state.current.replace(run) {
                state.last = Some(old);
                state.last_message = state.message.take();
            }
            state.message = Some(message.clone());
            state.next_attempt += 1;
            state.changed = false;
            if state.wants_restart(&pod, &container.name) && state.restart_count() > 0 {
                state.crash.fail(Instant::now());
            }
        }
        ("RunContainerError", message)
    }

    /// One ended run is kept beside the newest; the one before goes.
    pub(super) async fn forget_oldest(&mut self, name: &str, sandbox: &str) {
        let state = self.state(name);
        let Some(old) = state.last.take_if(|_| state.current.is_some()) else { return };
        self.discard(sandbox, &old).await;
    }
}
