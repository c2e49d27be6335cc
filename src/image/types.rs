//! The values that cross the border of the image room.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::access::Verification;
use super::digest::hex;
use super::endpoints::Registries;
use super::reference::Invalid;

/// Where images are kept and how registries are reached.
#[derive(Debug, Clone, Default)]
pub struct StoreConfig {
    /// `/var/lib/pikelet/images`.
    pub dir: PathBuf,
    /// Per registry host (`host[:port]`) settings.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// Mirrors, logins and certificates in k3s's format.
    pub private: Registries,
    /// A registry that has mirrors is not asked itself.
    pub only_mirrors: bool,
    /// Docker configuration files of the node; the first there is counts.
    pub node_logins: Vec<PathBuf>,
    /// Programs that know logins.
    pub providers: Vec<Provider>,
    /// Images pulled at once; `None`: 3.
    pub max_parallel_pulls: Option<usize>,
    /// Folder of archives that are imported at start.
    pub import_dir: Option<PathBuf>,
    /// Compressed layers are kept beside the unpacked ones.
    pub keep_blobs: bool,
    /// Which images that are here only those may use who could pull them.
    pub verification: Verification,
    /// Times its size to which a layer or archive may unpack; `None`: 100.
    pub max_unpack_ratio: Option<u64>,
}

/// How one registry is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RegistryConfig {
    /// Plain HTTP is allowed.
    pub insecure: bool,
    /// PEM file with the certificate authorities trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Accept any certificate.
    pub insecure_skip_verify: bool,
}

/// A credential provider program of the kubelet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// Its name: that of the program.
    pub name: String,
    /// Where it is.
    pub program: PathBuf,
    /// Arguments.
    pub args: Vec<String>,
    /// What its environment has beside the agent's.
    pub env: Vec<(String, String)>,
    /// Images it is asked for: `host[:port][/path]` with `*` in parts of the host.
    pub match_images: Vec<String>,
    /// How long an answer counts that does not say it.
    pub default_cache_duration: Duration,
    /// Version of the protocol: `credentialprovider.kubelet.k8s.io/...`.
    pub api_version: String,
    /// How long it may take.
    pub timeout: Duration,
}

/// How far a layer of a pull is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LayerProgress {
    /// Digest of its blob.
    pub digest: String,
    /// Bytes of its blob.
    pub total: u64,
    /// Bytes received by now.
    pub received: u64,
    /// It is in the store.
    pub done: bool,
}

/// An image that is whole in the store.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// `sha256:<hex>` of the image configuration.
    pub id: String,
    /// Digest of its manifest for this machine's platform.
    pub manifest: String,
    /// Garbage collection leaves it alone.
    pub pinned: bool,
    /// Names with tag.
    pub repo_tags: Vec<String>,
    /// Names with digest (`repo@sha256:...` of the index or manifest pulled).
    pub repo_digests: Vec<String>,
    /// Unpacked size of its layers in bytes.
    pub size: u64,
    /// diff ids, lowest first.
    pub layers: Vec<String>,
    /// The process defaults of the image configuration.
    pub config: ImageProcess,
}

impl Image {
    /// True if one of `mounts` (layers by hex, lowest first) is this image's stack.
    pub(super) fn is_under(&self, mounts: &[Vec<String>]) -> bool {
        let stack = self.stack();
        mounts.iter().any(|m| m.iter().eq(stack.iter().map(|l| hex(l))))
    }

    /// The layers to mount, lowest first: one that the image has twice shows where it is highest, which hides all that it
    /// has below (overlayfs refuses the same folder twice).
    pub(super) fn stack(&self) -> Vec<&String> {
        let above = |index: usize| &self.layers[index + 1..];
        self.layers.iter().enumerate().filter(|(index, layer)| !above(*index).contains(layer)).map(|(_, l)| l).collect()
    }
}

/// What an image says about the process to run (OCI image configuration, `config`).
#[derive(Debug, Clone, Default)]
pub struct ImageProcess {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, as `NAME=value`.
    pub env: Vec<String>,
    /// `WorkingDir`.
    pub working_dir: String,
    /// `User`.
    pub user: String,
    /// `StopSignal`.
    pub stop_signal: Option<String>,
    /// The paths of `Volumes`.
    pub volumes: Vec<String>,
}

/// Why an image cannot be had; the message is fit for a pod's status.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The reference does not parse (`InvalidImageName`).
    #[error("invalid image name {reference:?}: {message}")]
    InvalidName {
        /// As written.
        reference: String,
        /// Why.
        message: String,
    },
    /// Not in the store.
    #[error("image {0} is not in the store")]
    NotFound(String),
    /// Containers stand on it.
    #[error("image {0} is in use by a container")]
    InUse(String),
    /// The registry refused, failed or sent something wrong.
    #[error("failed to pull image {reference:?}: {message}")]
    Pull {
        /// As written.
        reference: String,
        /// What was tried and what came back.
        message: String,
    },
    /// An archive cannot be imported.
    #[error("failed to import: {message}")]
    Archive {
        /// Why.
        message: String,
    },
    /// A local file operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl From<Invalid> for ImageError {
    fn from(invalid: Invalid) -> Self {
        Self::InvalidName { reference: invalid.reference, message: invalid.message.to_owned() }
    }
}
