//! Whether a container that has ended is started again: its own rules, its own policy, the pod's; and its start for a changed spec.
//!
//! Rules: Kubernetes "Pod Lifecycle", individual container restart policy and rules.

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, Pod};

use super::worker::Worker;
use super::{PodExt, ephemeral, is_sidecar};

/// The action that restarts the pod's other containers too (`restart_all.rs`).
pub(super) const RESTART_ALL: &str = "RestartAllContainers";

/// The rule that says what comes after an end with `code`: the first that names it.
pub(super) fn rule_for(container: &Container, code: i32) -> Option<&ContainerRestartRule> {
    container.restart_policy_rules.iter().flatten().find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.iter().flatten().any(|v| *v == code);
            if codes.operator == "NotIn" { !listed } else { listed }
        })
    })
}

/// `Always`, `OnFailure` or `Never`, where no rule says otherwise.
pub(super) fn policy<'a>(pod: &'a Pod, container: &'a Container, init: bool) -> &'a str {
    let own = container.restart_policy.as_deref();
    match own.unwrap_or_else(|| pod.restart_policy()) {
        // an init container that ended well is done, whatever the pod's policy
        "Always" if init && !is_sidecar(container) => "OnFailure",
        policy => policy,
    }
}

/// True when the container is to be started again after it has ended with `code`.
pub fn restarts(pod: &Pod, name: &str, code: i32) -> bool {
    if ephemeral::is_ephemeral(pod, name) {
        return false;
    }
    let init = pod.init_containers().iter().find(|c| c.name == name);
    let Some(container) = init.or_else(|| pod.app_containers().iter().find(|c| c.name == name)) else { return false };
    let ruled = match rule_for(container, code).map(|rule| rule.action.as_str()) {
        Some(RESTART_ALL) => return true,
        action => action == Some("Restart"),
    };
    let restart = match policy(pod, container, init.is_some()) {
        "Always" => true,
        "OnFailure" => code != 0,
        _ => false,
    };
    // an init container that ended well has done its part
    ruled && !(init.is_some() && !is_sidecar(container) && code == 0) || restart
}

impl Worker {
    /// Ends the run of a container whose spec has changed, so that another one starts, whatever its policy says.
    pub(super) fn start_anew(&mut self, container: &Container, why: String) {
        if std::mem::replace(&mut self.state(&container.name).changed, true) {
            return;
        }
        self.event(Some(container), "Normal", "Killing", why);
        if let Some(run) = self.run_of(container) {
            tokio::spawn(run.end(self.grace()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(policy: &str, container: serde_json::Value) -> Pod {
        let mut container = container;
        container["name"] = serde_json::json!("c");
        serde_json::from_value(serde_json::json!({"metadata": {}, "spec": {"restartPolicy": policy,
            "containers": [container]}}))
        .unwrap()
    }

    #[test]
    fn policies_of_pod_and_container() {
        for (policy, code, want) in [
            ("Always", 0, true),
            ("Always", 1, true),
            ("OnFailure", 0, false),
            ("OnFailure", 137, true),
            ("Never", 0, false),
            ("Never", 1, false),
        ] {
            assert_eq!(restarts(&pod(policy, serde_json::json!({})), "c", code), want, "{policy} {code}");
            let other = if policy == "Never" { "Always" } else { "Never" };
            let own = pod(other, serde_json::json!({"restartPolicy": policy}));
            assert_eq!(restarts(&own, "c", code), want, "its own {policy} {code}");
        }
    }

    #[test]
    fn rules_win_over_policies() {
        let rules = serde_json::json!({"restartPolicy": "Never", "restartPolicyRules": [
            {"action": "Restart", "exitCodes": {"operator": "In", "values": [42, 43]}}]});
        let of = |code| restarts(&pod("Always", rules.clone()), "c", code);
        assert!(of(42) && of(43) && !of(0) && !of(1));
        let rules = serde_json::json!({"restartPolicy": "Never", "restartPolicyRules": [
            {"action": "Restart", "exitCodes": {"operator": "NotIn", "values": [0]}}]});
        assert!(restarts(&pod("Always", rules.clone()), "c", 1) && !restarts(&pod("Always", rules), "c", 0));
    }

    #[test]
    fn the_first_rule_that_names_the_code_decides() {
        let rules = serde_json::json!({"restartPolicy": "Never", "restartPolicyRules": [
            {"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}},
            {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [1, 2]}}]});
        let pod = pod("Never", rules);
        let action = |code| rule_for(&pod.app_containers()[0], code).map(|rule| rule.action.as_str());
        assert_eq!((action(1), action(2), action(3)), (Some("Restart"), Some(RESTART_ALL), None));
        assert!(restarts(&pod, "c", 2) && !restarts(&pod, "c", 3));
    }

    #[test]
    fn init_containers_run_until_they_have_done_their_part() {
        let pod = |policy: &str| -> Pod {
            serde_json::from_value(serde_json::json!({"metadata": {}, "spec": {"restartPolicy": policy,
                "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}], "containers": []}}))
            .unwrap()
        };
        assert!(restarts(&pod("Always"), "i", 1) && !restarts(&pod("Always"), "i", 0));
        assert!(!restarts(&pod("Never"), "i", 1));
        assert!(restarts(&pod("Never"), "s", 0));
    }
}
