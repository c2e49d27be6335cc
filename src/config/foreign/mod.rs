//! Settings of a kubelet or of `k3s agent` that are none of pikelet's: their files are taken as they are.
//!
//! Each known name is either without meaning here, and then named once, or says something that cannot be otherwise here:
//! then only that is taken. Fields: `KubeletConfiguration` v1beta1 (k8s.io/kubelet 0.36), flags of the kubelet 1.36, flags of
//! `k3s agent`. Names nobody knows stay mistakes.

mod k3s;
mod kubelet;

use std::collections::BTreeSet;

use clap::error::ContextKind;
use serde_json::Value;

use super::values::duration;
use super::{Settings, edit, lines};

/// What becomes of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It changes nothing, whatever it says, for this reason.
    Moot(&'static str),
    /// Of its values only these are what happens here; the reason why no other is.
    Only(&'static [&'static str], &'static str),
}

/// A setting pikelet does not have.
#[derive(Debug, Clone, Copy)]
struct Foreign {
    /// Its field in a file, or empty.
    field: &'static str,
    /// Its flag, or empty.
    flag: &'static str,
    fate: Fate,
}

/// A heading, and of each setting field, flag and what becomes of it.
#[cfg(test)]
pub(super) type Table = (&'static str, Vec<(&'static str, &'static str, String)>);

/// What others have, for the reference of settings.
#[cfg(test)]
pub(super) fn tables() -> [Table; 2] {
    let told = |foreign: &Foreign| match foreign.fate {
        Fate::Moot(why) => format!("taken, no meaning here: {why}"),
        Fate::Only([], why) => format!("refused: {why}"),
        Fate::Only(values, why) => format!("only {}: {why}", values.join(" or ")),
    };
    let rows = |table: &[Foreign]| table.iter().map(|f| (f.field, f.flag, told(f))).collect();
    [("Of a KubeletConfiguration, or `kubelet-arg`", rows(kubelet::FIELDS)), ("Of `k3s agent`", rows(k3s::FLAGS))]
}

fn by_field(name: &str) -> Option<&'static Foreign> {
    if name.is_empty() {
        return None;
    }
    kubelet::FIELDS.iter().find(|f| f.field == name).or_else(|| k3s::FLAGS.iter().find(|f| f.flag == name))
}

/// Whether a value says no more than that there is none.
fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty() || is_zero(text),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_unset),
        _ => false,
    }
}

fn is_zero(text: &str) -> bool {
    duration("", text).is_ok_and(|time| time.is_zero())
}

/// A value as flags write it.
fn written(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(written).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// What is told of a foreign setting that is taken; an error when it cannot be so here.
fn judge(name: &str, value: &Value, fate: Fate) -> Result<Option<String>, String> {
    if is_unset(value) {
        return Ok(None);
    }
    match fate {
        Fate::Moot(why) => Ok(Some(format!("{name} has no meaning here: {why}"))),
        Fate::Only(values, why) => {
            let said = written(value);
            let same = |accepted: &str| {
                let (a, b) = (duration("", accepted), duration("", &said));
                said.eq_ignore_ascii_case(accepted) || matches!((a, b), (Ok(a), Ok(b)) if a == b)
            };
            if values.iter().any(|accepted| same(accepted)) {
                return Ok(None);
            }
            let only = if values.is_empty() { "leave it out".into() } else { format!("it is {}", values.join(" or ")) };
            Err(format!("{name} cannot be so here: {why}; {only}"))
        }
    }
}

/// A file's text without what is foreign or unset in it, and what is to be told of that.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sifted {
    /// With the same lines, where they can be kept.
    pub text: String,
    /// For the log.
    pub notices: Vec<String>,
}

/// Names of pikelet's own settings, the first of each.
fn own_fields() -> Result<BTreeSet<String>, String> {
    const NOT_WRITTEN: [&str; 8] = [
        "authentication",
        "authorization",
        "crashLoopBackOff",
        "logging",
        "memorySwap",
        "registries",
        "shutdownGracePeriodByPodPriority",
        "userNamespaces",
    ];
    let fields = edit::fields(&Settings::default())?;
    Ok(fields.into_iter().map(|(name, _)| name).chain(NOT_WRITTEN.map(str::to_owned)).collect())
}

/// Takes out of a settings file what is foreign. Errors name line and key.
pub(super) fn sift(text: &str) -> Result<Sifted, String> {
    let kept = |notices| Ok(Sifted { text: text.to_owned(), notices });
    // what cannot be read is explained by whoever reads it whole
    let Ok(Value::Object(mut all)) = serde_saphyr::from_str::<Value>(text) else { return kept(vec![]) };
    let of_kubelet = all.get("kind").is_some_and(|kind| kind == "KubeletConfiguration");
    let (mut gone, mut notices) = (Vec::new(), Vec::new());
    let own = own_fields()?;
    for (name, value) in &all {
        match by_field(name) {
            Some(foreign) => {
                let line = lines::of(text, name).map(|n| format!("line {n}: ")).unwrap_or_default();
                notices.extend(judge(name, value, foreign.fate).map_err(|e| line + &e)?);
            }
            None if !own.contains(name) => continue,
            None if value.is_null() => {}
            // zero is what a kubelet's own encoder writes of what is not set
            None if of_kubelet && kubelet::zero_is_unset(name) && (is_unset(value) || *value == 0) => {}
            None => continue,
        }
        gone.push(name.clone());
    }
    if gone.is_empty() {
        return kept(notices);
    }
    all.retain(|name, _| !gone.contains(name));
    let left = lines::without(text, &gone);
    let same = match serde_saphyr::from_str::<Value>(&left) {
        Ok(Value::Object(left)) => left == all,
        Ok(Value::Null) | Err(_) => all.is_empty(),
        Ok(_) => false,
    };
    // one that is not written one key a line loses its lines
    let text = if same { left } else { Value::Object(all).to_string() };
    Ok(Sifted { text, notices })
}

/// The flags among `args` (`name=value`, as `kubelet-arg` has them) that are pikelet's own, as a command line writes them;
/// what is to be told of the others is added to `notices`.
pub(super) fn kubelet_args(args: &[String], notices: &mut Vec<String>) -> Result<Vec<String>, String> {
    let mut own = Vec::new();
    for arg in args {
        let arg = arg.trim().trim_start_matches('-');
        let (name, value) = arg.split_once('=').unwrap_or((arg, "true"));
        match kubelet::FIELDS.iter().find(|f| f.flag == name && !name.is_empty()) {
            Some(foreign) => {
                let told = judge(name, &Value::String(value.to_owned()), foreign.fate);
                notices.extend(told.map_err(|e| format!("kubelet-arg: {e}"))?);
            }
            None => own.push(format!("--{name}={value}")),
        }
    }
    Ok(own)
}

/// What is told of arguments for a program that does not run here.
pub(super) fn kube_proxy_args(args: &[String]) -> Option<String> {
    let names: Vec<&str> = args.iter().map(|a| a.split('=').next().unwrap_or_default()).collect();
    (!names.is_empty())
        .then(|| format!("kube-proxy-arg has no meaning here: no kube-proxy runs in this agent ({})", names.join(", ")))
}

/// The message about a kubelet-arg that is not taken, without its value.
pub(super) fn explain_flag(error: &clap::Error) -> String {
    let what = error.kind().as_str().unwrap_or("it cannot be read");
    match error.get(ContextKind::InvalidArg) {
        Some(flag) => format!("kubelet-arg {flag}: {what}"),
        None => format!("kubelet-arg: {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_foreign_goes_and_lines_stay() {
        let text = "kind: KubeletConfiguration\nfeatureGates:\n  A: true\n  B: false\nsyncFrequency: 0s\nmaxPods: 50\n\
                    clusterDNS: null\nfileCheckFrequency: 0s\nhealthzPort: 0\n";
        let sifted = sift(text).unwrap();
        assert_eq!(sifted.text, "kind: KubeletConfiguration\n\n\n\n\nmaxPods: 50\n\n\nhealthzPort: 0\n");
        assert_eq!(sifted.notices.len(), 1, "{:?}", sifted.notices);
        assert!(sifted.notices[0].starts_with("featureGates has no meaning here"), "{:?}", sifted.notices);
        let own = "fileCheckFrequency: 0s\n";
        assert_eq!(sift(own).unwrap().text, own, "in a file of pikelet's own zero is a value");
        assert_eq!(sift("{kind: KubeletConfiguration, syncFrequency: 1m, port: 1}").unwrap().text, {
            r#"{"kind":"KubeletConfiguration","port":1}"#
        });
        assert_eq!(sift("syncFrequency: 1m\n").unwrap().text.trim(), "");
    }

    #[test]
    fn what_cannot_be_so_is_refused_with_line_and_reason() {
        let error = sift("maxPods: 5\ncpuManagerPolicy: static\n").unwrap_err();
        assert!(
            error.starts_with("line 2: cpuManagerPolicy cannot be so here") && error.ends_with("it is none"),
            "{error}"
        );
        for taken in ["cpuManagerPolicy: none", "readOnlyPort: 0", "nodeLeaseDurationSeconds: 40", "selinux: false"] {
            assert_eq!(sift(taken).unwrap().notices, Vec::<String>::new(), "{taken}");
        }
        assert!(sift("selinux: true").is_err() && sift("rootless: true").is_err());
    }

    #[test]
    fn flags_of_a_kubelet_are_judged_as_fields() {
        let mut notices = Vec::new();
        let args = ["max-pods=50", "--cgroup-driver=systemd", "cpu-manager-policy=none", "serialize-image-pulls"];
        let own = kubelet_args(&args.map(str::to_owned), &mut notices).unwrap();
        assert_eq!(own, ["--max-pods=50", "--serialize-image-pulls=true"]);
        assert!(notices.len() == 1 && notices[0].starts_with("cgroup-driver has no meaning"), "{notices:?}");
        assert!(kubelet_args(&["topology-manager-policy=best-effort".to_owned()], &mut notices).is_err());
    }

    #[test]
    fn each_name_is_there_once() {
        for table in [kubelet::FIELDS, k3s::FLAGS] {
            for names in [table.iter().map(|f| f.field).collect::<Vec<_>>(), table.iter().map(|f| f.flag).collect()] {
                let mut seen = std::collections::BTreeSet::new();
                assert!(names.into_iter().filter(|n| !n.is_empty()).all(|n| seen.insert(n)), "{seen:?}");
            }
        }
    }
}
