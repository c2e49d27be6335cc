//! The runtime class of a pod: this node has one runtime, and runs no pod that asks for another.

use super::PodExt;
use super::worker::Worker;
use crate::cluster;

impl Worker {
    /// Makes sure that this runtime is the one the pod's runtime class names; an error's text says what is wrong.
    pub(super) async fn check_runtime_class(&self) -> Result<(), String> {
        let name = self.pod.pod_spec().and_then(|s| s.runtime_class_name.as_deref()).unwrap_or_default();
        if name.is_empty() {
            return Ok(());
        }
        let failed = |why: String| format!("Failed to create pod sandbox: {why}");
        let Some(client) = &self.shared.client else {
            return Err(failed(format!(
                "runtimeClassName {name:?}: without an API server there are no RuntimeClasses"
            )));
        };
        let handler = cluster::runtime_handler(client, name).await.map_err(|e| failed(e.to_string()))?;
        if cluster::HANDLERS.contains(&handler.as_str()) {
            return Ok(());
        }
        Err(failed(format!("no runtime for {handler:?} is configured: the handler of this node is \"pikelet\"")))
    }
}
