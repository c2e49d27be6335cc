//! Runtime classes: which runtime a pod is to run with.

use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Client;

use super::answer::{Answer, Api};
use super::client::ClusterError;

/// Names of this node's runtime, as runtime classes name it (`handler`).
pub const HANDLERS: [&str; 2] = ["", "pikelet"];

/// The handler a runtime class names.
pub async fn runtime_handler(client: &Client, name: &str) -> Result<String, ClusterError> {
    let api: Api<RuntimeClass> = Api::all(client.clone());
    let found = api
        .get(name)
        .await
        .and_then(Answer::read)
        .map_err(ClusterError::api(format!("reading RuntimeClass {name:?}")))?;
    Ok(found.handler)
}
