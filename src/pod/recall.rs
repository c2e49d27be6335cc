//! What an earlier agent has told of runs that are gone without a trace: the machine was restarted, or lost its state. How
//! they ended counts, so that what ran once does not run twice.
//!
//! Rules: those of the kubelet's status (`convertToAPIContainerStatuses`): a run that was told to be running, and is not to
//! be found, has failed with 137, `ContainerStatusUnknown`.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, PodStatus};
use nix::sys::signal::Signal;

use super::container::{ContainerState, Containers, LABEL_IMAGE, LABEL_IMAGE_ID, LABEL_REASON};
use super::container_status::ID_PREFIX;
use super::worker::now_nanos;
use crate::runtime::{ContainerInfo, ContainerSpec, ExitRecord, SandboxInfo, User};

/// The reason of an end nobody saw.
pub(super) const UNKNOWN: &str = "ContainerStatusUnknown";
const NOT_LOCATED: &str = "The container could not be located when the pod was started again";

/// Notes the runs that `status` tells of and `found`, the pod's newest sandbox, does not hold.
pub(super) fn recall(status: &PodStatus, found: Option<&SandboxInfo>, containers: &mut Containers) {
    let (inits, apps, ephemeral) =
        (&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses);
    for told in [inits, apps, ephemeral].into_iter().flatten().flatten() {
        let Some(id) = told.container_id.as_ref().map(|id| id.trim_start_matches(ID_PREFIX)) else { continue };
        let init = inits.iter().flatten().any(|c| c.name == told.name);
        let held = found.is_some_and(|f| f.containers.iter().any(|c| c.spec.id == id));
        let state = containers.entry(told.name.clone()).or_default();
        state.next_attempt = state.next_attempt.max(told.restart_count as u32 + 1);
        // in a sandbox that is there an init container runs anew, whatever it did in the one before
        if !held && state.current.is_none() && !(init && found.is_some()) {
            put(state, told, id);
        }
    }
}

fn put(state: &mut ContainerState, told: &ContainerStatus, id: &str) {
    let Some(now) = &told.state else { return };
    let nanos = |time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| {
        i64::try_from(time.0.as_nanosecond()).unwrap_or_default()
    };
    let (started, terminated) = match (&now.running, &now.terminated) {
        (Some(running), _) => (running.started_at.as_ref(), None),
        (None, Some(terminated)) => (terminated.started_at.as_ref(), Some(terminated)),
        // one that waits was to be started again
        (None, None) => return,
    };
    let unknown = ContainerStateTerminated {
        exit_code: 128 + Signal::SIGKILL as i32,
        reason: Some(UNKNOWN.to_owned()),
        message: Some(NOT_LOCATED.to_owned()),
        ..ContainerStateTerminated::default()
    };
    let end = terminated.unwrap_or(&unknown);
    let labels =
        [(LABEL_IMAGE, Some(&told.image)), (LABEL_IMAGE_ID, Some(&told.image_id)), (LABEL_REASON, end.reason.as_ref())];
    let user = told.user.as_ref().and_then(|u| u.linux.as_ref()).map(|linux| User {
        uid: u32::try_from(linux.uid).unwrap_or_default(),
        gid: u32::try_from(linux.gid).unwrap_or_default(),
        additional_gids: linux.supplemental_groups.iter().flatten().filter_map(|g| u32::try_from(*g).ok()).collect(),
    });
    let spec = ContainerSpec {
        id: id.to_owned(),
        name: told.name.clone(),
        attempt: told.restart_count as u32,
        user: user.unwrap_or_default(),
        labels: labels.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.clone()))).collect(),
        ..ContainerSpec::default()
    };
    let exit = ExitRecord {
        code: end.exit_code,
        signal: end.signal,
        oom_killed: false,
        finished_at: end.finished_at.as_ref().map_or_else(now_nanos, nanos),
    };
    let started_at = started.map(nanos);
    state.message.clone_from(&end.message);
    state.current = Some(ContainerInfo {
        spec,
        pid: 0,
        started_at,
        created_at: started_at.unwrap_or(exit.finished_at),
        exit: Some(exit),
    });
}

/// True for a run that is known from a status alone: nothing of it can be removed.
pub(super) fn is_recalled(run: &ContainerInfo) -> bool {
    run.spec.log_path.as_os_str().is_empty()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(state: serde_json::Value) -> PodStatus {
        let one = json!({"name": "c", "image": "i", "imageID": "d", "ready": true, "restartCount": 2,
            "containerID": "pikelet://abc", "state": state});
        serde_json::from_value(json!({"containerStatuses": [one]})).unwrap()
    }

    #[test]
    fn ends_are_recalled_and_what_ran_has_failed() {
        let mut containers = Containers::new();
        recall(&told(json!({"terminated": {"exitCode": 0, "reason": "Completed"}})), None, &mut containers);
        let state = &containers["c"];
        assert!(state.succeeded() && state.restart_count() == 2 && state.next_attempt == 3);
        let mut containers = Containers::new();
        recall(&told(json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}})), None, &mut containers);
        let run = containers["c"].current.as_ref().unwrap();
        assert_eq!(run.exit.as_ref().unwrap().code, 137);
        assert_eq!(run.spec.labels[LABEL_REASON], UNKNOWN);
        assert!(is_recalled(run));
        let mut containers = Containers::new();
        recall(&told(json!({"waiting": {"reason": "CrashLoopBackOff"}})), None, &mut containers);
        assert!(containers["c"].current.is_none() && containers["c"].next_attempt == 3);
    }

    #[test]
    fn what_the_runtime_still_has_counts_more() {
        let mut containers = Containers::new();
        let spec = ContainerSpec { id: "abc".into(), name: "c".into(), ..ContainerSpec::default() };
        let made = ContainerInfo { spec, pid: 7, started_at: None, created_at: 0, exit: None };
        let found = SandboxInfo {
            alive: true,
            created_at: 0,
            containers: vec![made],
            spec: crate::runtime::SandboxSpec::default(),
        };
        recall(&told(json!({"running": {}})), Some(&found), &mut containers);
        assert!(containers["c"].current.is_none(), "it was made, but never started");
    }
}
