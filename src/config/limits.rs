//! The settings about limits of pods, with the kubelet's rules for them.

use super::{ConfigError, Settings, duration, wrong};
use crate::pod::LimitPolicy;

/// Microseconds the CFS period may have, as the kernel has it.
const PERIODS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;

pub(super) fn limits(flags: &Settings, file: &Settings) -> Result<LimitPolicy, ConfigError> {
    let default = LimitPolicy::default();
    let pids = match flags.pod_pids_limit.or(file.pod_pids_limit).unwrap_or(-1) {
        -1 => None,
        0 => return wrong("podPidsLimit 0: no process could start; use -1 for no limit".into()),
        n if n < 0 => return wrong(format!("podPidsLimit {n}: it is a number of processes, or -1 for no limit")),
        n => Some(n),
    };
    let cpu_period = match flags.cpu_cfs_quota_period.as_ref().or(file.cpu_cfs_quota_period.as_ref()) {
        None => default.cpu_period,
        Some(text) => {
            let period = duration("cpuCFSQuotaPeriod", text)?.as_micros() as u64;
            if !PERIODS.contains(&period) {
                return wrong(format!("cpuCFSQuotaPeriod {text:?}: it is 1ms to 1s"));
            }
            period
        }
    };
    let limited_swap = match file.memory_swap.swap_behavior.as_str() {
        "" | "NoSwap" => false,
        "LimitedSwap" => true,
        other => return wrong(format!("memorySwap.swapBehavior {other:?}: it is NoSwap or LimitedSwap")),
    };
    Ok(LimitPolicy {
        pids,
        cpu_quota: flags.cpu_cfs_quota.or(file.cpu_cfs_quota).unwrap_or(default.cpu_quota),
        cpu_period,
        limited_swap,
        single_process_oom_kill: file.single_process_oom_kill.unwrap_or(default.single_process_oom_kill),
    })
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn of(text: &str) -> Result<LimitPolicy, String> {
        limits(&Settings::default(), &parse(text).unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_kubelets_settings_are_taken() {
        assert_eq!(of(""), Ok(LimitPolicy::default()));
        let text = "podPidsLimit: 100\ncpuCFSQuota: false\ncpuCFSQuotaPeriod: 50ms\nmemorySwap: {swapBehavior: LimitedSwap}\n\
                    singleProcessOOMKill: true\n";
        let all = LimitPolicy {
            pids: Some(100),
            cpu_quota: false,
            cpu_period: 50_000,
            limited_swap: true,
            single_process_oom_kill: true,
        };
        assert_eq!(of(text), Ok(all));
        assert_eq!(of("podPidsLimit: -1").unwrap().pids, None);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("podPidsLimit: 0", "use -1"),
            ("podPidsLimit: -2", "-2"),
            ("cpuCFSQuotaPeriod: 2s", "1ms to 1s"),
            ("cpuCFSQuotaPeriod: often", "duration"),
            ("memorySwap: {swapBehavior: UnlimitedSwap}", "NoSwap or LimitedSwap"),
        ] {
            assert!(of(text).unwrap_err().contains(part), "{text}");
        }
    }
}
