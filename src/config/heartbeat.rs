//! When a Node gives signs of life.

use std::time::Duration;

use super::values::duration;
use super::{ConfigError, Settings, wrong};
use crate::cluster::Heartbeat;

/// From the settings of those names, by the kubelet's rules.
pub(super) fn heartbeat(flags: &Settings, file: &Settings) -> Result<Heartbeat, ConfigError> {
    let time = |name: &str, written: Option<&String>| {
        let Some(time) = written.map(|text| duration(name, text)).transpose()? else { return Ok(None) };
        if time < Duration::from_secs(1) {
            return wrong(format!("{name} {time:?}: it is at least 1s"));
        }
        Ok(Some(time))
    };
    let default = Heartbeat::default();
    let written = flags.node_status_update_frequency.as_ref().or(file.node_status_update_frequency.as_ref());
    let look = time("nodeStatusUpdateFrequency", written)?;
    let report = time("nodeStatusReportFrequency", file.node_status_report_frequency.as_ref())?;
    let lease_seconds = file.node_lease_duration_seconds.unwrap_or(default.lease_seconds);
    if lease_seconds < 4 {
        return wrong(format!("nodeLeaseDurationSeconds {lease_seconds}: it is at least 4"));
    }
    Ok(Heartbeat {
        look: look.unwrap_or(default.look),
        report: report.or(look).unwrap_or(default.report),
        lease_seconds,
    })
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn reports_follow_looks_that_are_set() {
        let of = |text: &str| heartbeat(&Settings::default(), &parse(text).unwrap()).map_err(|e| e.to_string());
        assert_eq!(of(""), Ok(Heartbeat::default()));
        let seconds = |h: Heartbeat| (h.look.as_secs(), h.report.as_secs(), h.lease_seconds);
        assert_eq!(of("nodeStatusUpdateFrequency: 4s\n").map(seconds), Ok((4, 4, 40)));
        let both = "nodeStatusUpdateFrequency: 4s\nnodeStatusReportFrequency: 1m\nnodeLeaseDurationSeconds: 20\n";
        assert_eq!(of(both).map(seconds), Ok((4, 60, 20)));
        assert!(of("nodeStatusUpdateFrequency: 10ms\n").is_err() && of("nodeLeaseDurationSeconds: 0\n").is_err());
    }
}
