//! The status of one container: its state, the run before, user and mounts.
//!
//! Rules: Kubernetes "Pod Lifecycle" (container states).

use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, LinuxContainerUser, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::container::{ContainerState, LABEL_IMAGE, LABEL_IMAGE_ID, reason_of};
use super::is_sidecar;
use crate::runtime::{ContainerInfo, User};

/// What stands before the id of a container in a status.
pub(super) const ID_PREFIX: &str = "pikelet://";

/// A Kubernetes time from nanoseconds since the epoch.
fn time(nanoseconds: i64) -> Time {
    Time(jiff::Timestamp::from_second(nanoseconds.div_euclid(1_000_000_000)).unwrap_or_default())
}

/// The state a run is in.
fn run_state(info: &ContainerInfo, message: Option<&String>) -> ApiState {
    let started = info.started_at.map(time);
    match &info.exit {
        Some(exit) => ApiState {
            terminated: Some(ContainerStateTerminated {
                container_id: Some(container_id(info)),
                exit_code: exit.code,
                signal: exit.signal,
                reason: Some(reason_of(info, exit).to_owned()),
                message: message.cloned(),
                started_at: started,
                finished_at: Some(time(exit.finished_at)),
            }),
            ..ApiState::default()
        },
        None => ApiState { running: Some(ContainerStateRunning { started_at: started }), ..ApiState::default() },
    }
}

fn container_id(info: &ContainerInfo) -> String {
    format!("{ID_PREFIX}{}", info.spec.id)
}

fn waiting(reason: &str, message: Option<String>) -> ApiState {
    let state = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ApiState { waiting: Some(state), ..ApiState::default() }
}

/// The status of one container. `fallback`: what it waits for when nothing else is known.
pub(super) fn container_status(
    container: &Container,
    state: Option<&ContainerState>,
    init: bool,
    fallback: (&str, Option<&str>),
) -> ContainerStatus {
    let image = container.image.clone().unwrap_or_default();
    let Some(state) = state else {
        return ContainerStatus {
            name: container.name.clone(),
            image,
            state: Some(waiting(fallback.0, fallback.1.map(str::to_owned))),
            last_state: Some(ApiState::default()),
            started: Some(false),
            ..ContainerStatus::default()
        };
    };
    let newest = state.current.as_ref();
    let current = newest.filter(|c| c.started_at.is_some() || c.exit.is_some());
    let (now, last) = match (&state.waiting, current) {
        (Some(w), current) => {
            // a run that ended is the last state while the next one waits
            let last = match current.filter(|c| c.exit.is_some()) {
                Some(c) => Some(run_state(c, state.message.as_ref())),
                None => state.last.as_ref().map(|c| run_state(c, state.last_message.as_ref())),
            };
            (waiting(w.reason, Some(w.message.clone()).filter(|m| !m.is_empty())), last)
        }
        (None, Some(c)) => (
            run_state(c, state.message.as_ref()),
            state.last.as_ref().map(|c| run_state(c, state.last_message.as_ref())),
        ),
        (None, None) => {
            let last = state.last.as_ref().map(|c| run_state(c, state.last_message.as_ref()));
            (waiting(fallback.0, fallback.1.map(str::to_owned)), last)
        }
    };
    let ready = if init && !is_sidecar(container) { state.succeeded() } else { state.ready() };
    ContainerStatus {
        name: container.name.clone(),
        image: newest.and_then(|c| c.spec.labels.get(LABEL_IMAGE).cloned()).unwrap_or(image),
        image_id: newest.and_then(|c| c.spec.labels.get(LABEL_IMAGE_ID).cloned()).unwrap_or_default(),
        container_id: newest.map(container_id),
        restart_count: state.restart_count() as i32,
        ready,
        started: Some(state.started()),
        state: Some(now),
        allocated_resources: container.resources.as_ref().and_then(|r| r.requests.clone()).filter(|r| !r.is_empty()),
        // of a run without any as well: by that the API server knows a node that can resize
        resources: newest.map(|_| state.applied.as_ref().or(container.resources.as_ref()).cloned().unwrap_or_default()),
        // as the API server gives it back, so that the two compare equal
        last_state: Some(last.unwrap_or_default()),
        user: newest.map(|c| user(&c.spec.user)),
        volume_mounts: newest.and_then(|_| volume_mounts(container)),
        ..ContainerStatus::default()
    }
}

/// Who the first process of a run was started as.
fn user(user: &User) -> ContainerUser {
    let others = user.additional_gids.iter().filter(|g| **g != user.gid);
    let groups = std::iter::once(&user.gid).chain(others).map(|g| i64::from(*g)).collect();
    let linux = LinuxContainerUser { uid: user.uid.into(), gid: user.gid.into(), supplemental_groups: Some(groups) };
    ContainerUser { linux: Some(linux) }
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.iter().flatten().map(|mount| {
        let read_only = mount.read_only == Some(true);
        let wanted = mount.recursive_read_only.as_deref().unwrap_or("Disabled");
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: read_only.then_some(true),
            recursive_read_only: read_only
                .then(|| if wanted == "Disabled" { "Disabled" } else { "Enabled" }.to_owned()),
            ..VolumeMountStatus::default()
        }
    });
    Some(mounts.collect()).filter(|m: &Vec<_>| !m.is_empty())
}
