//! Settings within settings, as a `KubeletConfiguration` has them.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use super::{ConfigError, wrong};

/// `memorySwap`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct MemorySwap {
    /// `NoSwap` (or nothing) or `LimitedSwap`.
    pub swap_behavior: String,
}

/// `authentication`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Authentication {
    /// Client certificates.
    pub x509: X509,
    /// Who shows no certificate and no token.
    pub anonymous: Anonymous,
    /// Tokens.
    pub webhook: Webhook,
}

/// `authentication.x509`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct X509 {
    /// CAs whose client certificates are accepted.
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: Option<PathBuf>,
}

/// `authentication.anonymous`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Anonymous {
    /// Only `false` is possible.
    pub enabled: Option<bool>,
}

/// `authentication.webhook`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Webhook {
    /// Only `true` is possible.
    pub enabled: Option<bool>,
    /// Two minutes, whatever it says.
    #[serde(rename = "cacheTTL")]
    pub cache_ttl: Option<Value>,
}

/// `authorization`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Authorization {
    /// Only `Webhook` is possible.
    pub mode: String,
    /// For how long answers are kept; five minutes and half a minute, whatever it says.
    pub webhook: Option<Value>,
}

/// `logging`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Logging {
    /// text or json.
    pub format: Option<String>,
    /// As `--v`.
    pub verbosity: Option<u8>,
    /// Every line is written at once, whatever it says.
    pub flush_frequency: Option<Value>,
    /// Without meaning.
    pub options: Option<Value>,
    /// Without meaning.
    pub vmodule: Option<Value>,
}

/// `userNamespaces`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct UserNamespaces {
    /// Only 65536 is possible.
    pub ids_per_pod: Option<u64>,
}

/// `crashLoopBackOff`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct CrashLoopBackOff {
    /// Longest wait before a container is started again, 1s to 5m.
    pub max_container_restart_period: Option<String>,
}

/// Ids of a pod that has users of its own.
const IDS: u64 = 65536;

/// Refuses what would let in whom nobody let in, or could not be done.
pub(super) fn check(file: &super::Settings) -> Result<(), ConfigError> {
    if file.authentication.anonymous.enabled == Some(true) {
        return wrong("authentication.anonymous.enabled: nobody uses the kubelet API without a name".to_owned());
    }
    if file.authentication.webhook.enabled == Some(false) {
        return wrong("authentication.webhook.enabled: tokens are always asked about at the API server".to_owned());
    }
    if !matches!(file.authorization.mode.as_str(), "" | "Webhook") {
        let mode = &file.authorization.mode;
        return wrong(format!(
            "authorization.mode {mode:?}: who may do what is for the API server to say: it is Webhook"
        ));
    }
    if file.user_namespaces.ids_per_pod.is_some_and(|ids| ids != IDS) {
        return wrong(format!("userNamespaces.idsPerPod: it is {IDS}"));
    }
    Ok(())
}
