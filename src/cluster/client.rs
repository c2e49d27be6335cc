//! The client of an API server, from a kubeconfig.

use std::path::Path;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Errors of the link; messages name what was tried.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {path}: {message}")]
    Kubeconfig {
        /// File.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// The API server refused or could not be reached.
    #[error("{what}: {}", said(source))]
    Api {
        /// What was tried, on what.
        what: String,
        /// The answer.
        source: Box<kube::Error>,
    },
}

/// What the API server said, or the whole chain of causes when it could not be asked.
pub(super) fn said(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return status.message.clone();
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = inner.source();
    }
    text
}

impl ClusterError {
    /// Wraps an error of the client.
    pub(super) fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Api { what, source: Box::new(source) }
    }

    fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            Self::Kubeconfig { .. } => None,
        }
    }

    /// The object does not exist (404).
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// The object is another one by now, or exists already (409).
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }
}

/// A client for the current context of a kubeconfig.
pub async fn connect(kubeconfig: &Path) -> Result<Client, ClusterError> {
    // already installed by another part is as good
    let _ = rustls::crypto::ring::default_provider().install_default();
    let path = kubeconfig.display().to_string();
    let wrong = |message: String| ClusterError::Kubeconfig { path: path.clone(), message };
    let file = Kubeconfig::read_from(kubeconfig).map_err(|e| wrong(e.to_string()))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    Client::try_from(config.map_err(|e| wrong(e.to_string()))?).map_err(|e| wrong(e.to_string()))
}
