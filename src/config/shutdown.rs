//! The settings of a graceful node shutdown, with the kubelet's rules for them.

use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, Settings, duration, wrong};
use crate::pod::shutdown::{CRITICAL, Group};

/// An entry of `shutdownGracePeriodByPodPriority`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ByPriority {
    /// Least priority of its pods.
    pub priority: i32,
    /// Their time, in seconds.
    pub shutdown_grace_period_seconds: u32,
}

/// The groups of pods that end one after the other, the least priority first; none: a shutdown waits for no pod.
pub(super) fn groups(flags: &Settings, file: &Settings) -> Result<Vec<Group>, ConfigError> {
    let period = |name: &str, text: Option<&String>| text.map_or(Ok(Duration::ZERO), |text| duration(name, text));
    let whole = flags.shutdown_grace_period.as_ref().or(file.shutdown_grace_period.as_ref());
    let whole = period("shutdownGracePeriod", whole)?;
    let critical = flags.shutdown_grace_period_critical_pods.as_ref();
    let critical = critical.or(file.shutdown_grace_period_critical_pods.as_ref());
    let critical = period("shutdownGracePeriodCriticalPods", critical)?;
    let listed = &file.shutdown_grace_period_by_pod_priority;
    if !listed.is_empty() && (!whole.is_zero() || !critical.is_zero()) {
        return wrong(
            "shutdownGracePeriodByPodPriority: not together with shutdownGracePeriod or shutdownGracePeriodCriticalPods"
                .to_owned(),
        );
    }
    if critical > whole {
        return wrong(format!(
            "shutdownGracePeriodCriticalPods {}s: it is a part of shutdownGracePeriod, {}s",
            critical.as_secs(),
            whole.as_secs()
        ));
    }
    if [whole, critical].iter().any(|d| !d.is_zero() && *d < Duration::from_secs(1)) {
        return wrong("shutdownGracePeriod, shutdownGracePeriodCriticalPods: 0, or a second at least".to_owned());
    }
    let mut groups: Vec<Group> = if listed.is_empty() {
        vec![Group { priority: 0, time: whole.saturating_sub(critical) }, Group { priority: CRITICAL, time: critical }]
    } else {
        let time = |e: &ByPriority| Duration::from_secs(e.shutdown_grace_period_seconds.into());
        listed.iter().map(|e| Group { priority: e.priority, time: time(e) }).collect()
    };
    groups.sort_by_key(|g| g.priority);
    if groups.iter().all(|g| g.time.is_zero()) {
        groups.clear();
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn of(text: &str) -> Result<Vec<(i32, u64)>, String> {
        let groups = groups(&Settings::default(), &parse(text).unwrap()).map_err(|e| e.to_string())?;
        Ok(groups.iter().map(|g| (g.priority, g.time.as_secs())).collect())
    }

    #[test]
    fn critical_pods_have_the_last_part_of_the_time() {
        assert_eq!(of(""), Ok(vec![]));
        let both = "shutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 10s\n";
        assert_eq!(of(both), Ok(vec![(0, 20), (CRITICAL, 10)]));
        let listed = "shutdownGracePeriodByPodPriority:\n- {priority: 100, shutdownGracePeriodSeconds: 5}\n\
                      - {priority: 0, shutdownGracePeriodSeconds: 7}\n";
        assert_eq!(of(listed), Ok(vec![(0, 7), (100, 5)]));
        assert!(of(&format!("{both}{listed}")).unwrap_err().contains("not together"));
        assert!(of("shutdownGracePeriodCriticalPods: 10s\n").unwrap_err().contains("part of shutdownGracePeriod, 0s"));
        assert!(of("shutdownGracePeriod: 100ms\n").unwrap_err().contains("a second at least"));
    }
}
