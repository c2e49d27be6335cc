//! The node's lease: renewed every 10 s by default, whatever else is going on (Kubernetes "Node heartbeats").

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::Client;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::watch;
use tracing::debug;

use super::answer::{Answer, Api};
use super::client::said;
use super::heartbeat::Heartbeat;

const NAMESPACE: &str = "kube-node-lease";
/// Longer than another machine of this name takes to renew it, with the times every node has by default.
const WATCHED: Duration = Duration::from_secs(15);

/// Keeps the lease for ever, from when this machine is the Node.
pub async fn keep_lease(client: Client, node: String, heartbeat: Heartbeat, mut ours: watch::Receiver<bool>) {
    if ours.wait_for(|ours| *ours).await.is_err() {
        return;
    }
    let mut tick = tokio::time::interval(heartbeat.renewal());
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = renew(&client, &node, heartbeat.lease_seconds).await {
            debug!(error = said(&error), "lease not renewed");
            tick.reset_after(Duration::from_millis(500 + u64::from(rand::random::<u8>()) * 8));
        }
    }
}

/// Whether somebody renews the lease of a Node. Looks for longer than a renewal takes: clocks may differ.
pub(super) async fn is_renewed(client: &Client, node: &str) -> Result<bool, kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let renewed = async || {
        let lease = api.get_opt(node).await?.map(Answer::read).transpose()?;
        Ok::<_, kube::Error>(lease.and_then(|l| l.spec).and_then(|s| s.renew_time))
    };
    let before = renewed().await?;
    tokio::time::sleep(WATCHED).await;
    Ok(renewed().await? != before)
}

async fn renew(client: &Client, node: &str, seconds: i32) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let now = MicroTime(jiff::Timestamp::now());
    let patch = json!({"spec": {"renewTime": now, "holderIdentity": node, "leaseDurationSeconds": seconds}});
    match api.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        other => return other.map(drop),
    }
    let owner = Api::<Node>::all(client.clone()).get(node).await?.read()?;
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: node.to_owned(),
                uid: owner.metadata.uid.unwrap_or_default(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: Some(seconds),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    api.create(&PostParams::default(), &lease.into()).await.map(drop)
}
