//! The settings of evictions: thresholds, grace, and what is kept from pods.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{ConfigError, Settings, duration, wrong};
use crate::machine::usage;
use crate::pod::eviction::threshold::{Amount, Policy, Signal, Threshold};
use crate::quantity;

/// The kubelet's hard thresholds, but what suits a board: 100Mi would be a quarter of one with 512 MB, where a tenth is
/// enough; and of a card 5 % are left, as k3s has it, since images are collected long before.
fn default_hard() -> BTreeMap<Signal, Amount> {
    let memory = (usage::memory().total / 10).min(100 << 20) & !0xfffff;
    BTreeMap::from([
        (Signal::MemoryAvailable, Amount::Quantity(memory)),
        (Signal::NodefsAvailable, Amount::Percent(5.0)),
        (Signal::NodefsInodesFree, Amount::Percent(5.0)),
        (Signal::ImagefsAvailable, Amount::Percent(5.0)),
        (Signal::ImagefsInodesFree, Amount::Percent(5.0)),
    ])
}

fn signal(setting: &str, name: &str) -> Result<Signal, ConfigError> {
    let known = Signal::ALL.map(Signal::name).join(", ");
    Signal::parse(name).ok_or_else(|| ConfigError(format!("{setting}: there is no signal {name:?}; there are {known}")))
}

fn amount(setting: &str, name: &str, text: &str) -> Result<Amount, ConfigError> {
    Amount::parse(text).map_err(|error| ConfigError(format!("{setting} {name}: {error}")))
}

/// `signal<amount` or `signal=amount`, each signal once.
fn table<T>(
    setting: &str,
    sign: char,
    written: &[String],
    value: impl Fn(&str, &str) -> Result<T, ConfigError>,
) -> Result<BTreeMap<Signal, T>, ConfigError> {
    let mut table = BTreeMap::new();
    for entry in written.iter().filter(|e| !e.is_empty()) {
        let Some((name, text)) = entry.split_once(sign) else {
            return wrong(format!(
                "{setting} {entry:?}: it is written signal{sign}value, such as memory.available{sign}…"
            ));
        };
        let signal = signal(setting, name.trim())?;
        if table.insert(signal, value(name, text.trim())?).is_some() {
            return wrong(format!("{setting}: {name} is there twice"));
        }
    }
    Ok(table)
}

/// Thresholds and how pods are evicted.
pub(super) fn policy(flags: &Settings, file: &Settings) -> Result<Policy, ConfigError> {
    let written = |flag: &Option<Vec<String>>, file: &Option<Vec<String>>| flag.clone().or_else(|| file.clone());
    let amounts = |setting: &str, sign: char, written: &[String]| {
        table(setting, sign, written, |name, text| amount(setting, name, text))
    };
    let merge = flags.merge_default_eviction_settings.or(file.merge_default_eviction_settings).unwrap_or(false);
    let hard = match written(&flags.eviction_hard, &file.eviction_hard) {
        None => default_hard(),
        Some(written) => {
            let own = amounts("evictionHard", '<', &written)?;
            if merge { default_hard().into_iter().chain(own).collect() } else { own }
        }
    };
    let soft = written(&flags.eviction_soft, &file.eviction_soft).unwrap_or_default();
    let soft = amounts("evictionSoft", '<', &soft)?;
    let graces = written(&flags.eviction_soft_grace_period, &file.eviction_soft_grace_period).unwrap_or_default();
    let graces = table("evictionSoftGracePeriod", '=', &graces, |name, text| {
        duration(&format!("evictionSoftGracePeriod {name}"), text)
    })?;
    let reclaim = written(&flags.eviction_minimum_reclaim, &file.eviction_minimum_reclaim).unwrap_or_default();
    let reclaim = amounts("evictionMinimumReclaim", '=', &reclaim)?;
    let mut thresholds = Vec::new();
    let threshold = |signal, amount, grace| {
        let minimum_reclaim = reclaim.get(&signal).copied();
        Threshold { signal, amount, grace, minimum_reclaim }
    };
    thresholds.extend(hard.iter().map(|(signal, amount)| threshold(*signal, *amount, None)));
    for (signal, amount) in soft {
        let Some(grace) = graces.get(&signal).filter(|g| !g.is_zero()) else {
            return wrong(format!(
                "evictionSoft {0}: evictionSoftGracePeriod {0} is missing: how long may it last?",
                signal.name()
            ));
        };
        thresholds.push(threshold(signal, amount, Some(*grace)));
    }
    let nothing = |a: Amount| a == Amount::Quantity(0) || a == Amount::Percent(0.0);
    // the kubelet's way to switch one off
    thresholds.retain(|t| !nothing(t.amount));
    let transition =
        flags.eviction_pressure_transition_period.as_ref().or(file.eviction_pressure_transition_period.as_ref());
    let transition = match transition.filter(|t| *t != "0" && *t != "0s") {
        Some(text) => duration("evictionPressureTransitionPeriod", text)?,
        None => Duration::from_mins(5),
    };
    let grace = flags.eviction_max_pod_grace_period.or(file.eviction_max_pod_grace_period).unwrap_or(0);
    Ok(Policy { thresholds, max_pod_grace: Duration::from_secs(grace.into()), transition })
}

/// Whether `enforceNodeAllocatable` names the pods, as it does where it is not set.
pub(super) fn enforced(whom: Option<Vec<String>>) -> Result<bool, ConfigError> {
    let Some(whom) = whom else { return Ok(true) };
    if let Some(other) = whom.iter().find(|w| !matches!(w.as_str(), "pods" | "none")) {
        return wrong(format!("enforceNodeAllocatable {other:?}: only pods can be held to it; write pods or none"));
    }
    Ok(whom.iter().any(|w| w == "pods"))
}

/// The sum of `kubeReserved` and `systemReserved`: cpu in thousandths, memory and ephemeral-storage in bytes.
pub(super) fn reserved(lists: [&[String]; 2]) -> Result<BTreeMap<String, u64>, ConfigError> {
    let mut sums = BTreeMap::new();
    for written in lists.into_iter().flatten() {
        let Some((name, text)) = written.split_once('=') else {
            return wrong(format!("reserved {written:?}: it is written resource=quantity, such as memory=64Mi"));
        };
        let value = match name {
            "cpu" => quantity::milli(text),
            "memory" | "ephemeral-storage" => quantity::whole(text),
            _ => return wrong(format!("reserved {name:?}: cpu, memory and ephemeral-storage can be reserved")),
        };
        let Some(value) = value.and_then(|v| u64::try_from(v).ok()) else {
            return wrong(format!("reserved {name}: {text:?} is no quantity such as 100m or 64Mi"));
        };
        *sums.entry(name.to_owned()).or_default() += value;
    }
    Ok(sums)
}

/// The policy in the words of a `KubeletConfiguration`.
pub(super) fn written(policy: &Policy) -> serde_json::Value {
    let seconds = |d: Duration| format!("{}s", d.as_secs_f64());
    let map = |hard: bool, value: &dyn Fn(&Threshold) -> Option<String>| {
        let wanted = policy.thresholds.iter().filter(|t| t.grace.is_none() == hard);
        wanted.filter_map(|t| Some((t.signal.name(), value(t)?))).collect::<BTreeMap<_, _>>()
    };
    serde_json::json!({
        "evictionHard": map(true, &|t| Some(t.amount.to_string())),
        "evictionSoft": map(false, &|t| Some(t.amount.to_string())),
        "evictionSoftGracePeriod": map(false, &|t| t.grace.map(seconds)),
        "evictionMinimumReclaim": map(true, &|t| t.minimum_reclaim.map(|a| a.to_string())),
        "evictionMaxPodGracePeriod": policy.max_pod_grace.as_secs(),
        "evictionPressureTransitionPeriod": seconds(policy.transition),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Policy, String> {
        policy(&Settings::default(), &serde_saphyr::from_str(text).unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn thresholds_are_spelled_as_the_kubelet_does() {
        let policy = of("evictionHard: {memory.available: 64Mi, nodefs.available: 5%}\n\
                         evictionSoft: {memory.available: 128Mi}\nevictionSoftGracePeriod: {memory.available: 1m30s}\n\
                         evictionMinimumReclaim: {memory.available: 10Mi}\nevictionMaxPodGracePeriod: 20\n\
                         evictionPressureTransitionPeriod: 30s\n")
        .unwrap();
        assert_eq!(policy.thresholds.len(), 3);
        assert_eq!(policy.kept(Signal::MemoryAvailable, 1 << 30), 64 << 20);
        assert_eq!(policy.kept(Signal::NodefsAvailable, 1000), 50);
        assert_eq!(policy.thresholds[2].grace, Some(Duration::from_secs(90)));
        assert_eq!(policy.thresholds[0].minimum_reclaim, Some(Amount::Quantity(10 << 20)));
        assert_eq!((policy.max_pod_grace, policy.transition), (Duration::from_secs(20), Duration::from_secs(30)));
        let said = written(&policy);
        assert_eq!(said["evictionHard"]["memory.available"], "64Mi");
        assert_eq!(said["evictionSoftGracePeriod"]["memory.available"], "90s");
        let flags = Settings { eviction_hard: Some(vec!["pid.available<10%".to_owned()]), ..Settings::default() };
        let policy = super::policy(&flags, &Settings::default()).unwrap();
        assert_eq!(policy.thresholds.len(), 1, "a person's thresholds replace the default");
    }

    #[test]
    fn defaults_are_there_and_can_be_added_to_or_switched_off() {
        let policy = of("port: 1").unwrap();
        assert_eq!(policy.thresholds.len(), 5);
        assert!(policy.kept(Signal::MemoryAvailable, 1 << 30) <= 100 << 20);
        let more = of("mergeDefaultEvictionSettings: true\nevictionHard: {memory.available: 1Mi}\n").unwrap();
        assert_eq!((more.thresholds.len(), more.kept(Signal::MemoryAvailable, 1 << 30)), (5, 1 << 20));
        assert!(of("evictionHard: {}").unwrap().thresholds.is_empty());
        assert!(of("evictionHard: {memory.available: \"0\"}").unwrap().thresholds.is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        assert!(of("evictionHard: {memory.free: 1Mi}").unwrap_err().contains("nodefs.inodesFree"));
        assert!(of("evictionHard: {memory.available: 200%}").unwrap_err().contains("percentage"));
        assert!(of("evictionSoft: {memory.available: 1Mi}").unwrap_err().contains("evictionSoftGracePeriod"));
        let flags = Settings { eviction_hard: Some(vec!["memory.available=1".to_owned()]), ..Settings::default() };
        assert!(super::policy(&flags, &Settings::default()).unwrap_err().to_string().contains("signal<value"));
    }
}
