//! Events about pods and the node, with kubelet's reasons; sent in the background, never blocking, repeats counted on one object.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Client;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::{debug, info};

use super::answer::Api;
use super::client::said;
use super::event_filter::{Bucket, Correlator, Verdict};

/// Events that may wait; more are dropped, as they are for people only.
const QUEUE: usize = 512;

/// How many events are written (`eventRecordQPS`, `eventBurst`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventRate {
    /// In a second; 0: as many as there are.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

/// Records events; cheap to clone.
#[derive(Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<Event>,
    node: String,
}

impl EventRecorder {
    /// A recorder; without a client events go to the log only.
    pub fn new(client: Option<Client>, node: &str, rate: EventRate) -> Self {
        let (queue, events) = mpsc::channel(QUEUE);
        tokio::spawn(send_all(client, rate, events));
        Self { queue, node: node.to_owned() }
    }

    /// An event about a pod, or one container of it.
    pub fn pod_event(&self, pod: &Pod, container: Option<&str>, type_: &'static str, reason: &str, message: String) {
        let metadata = &pod.metadata;
        let name = metadata.name.as_deref().unwrap_or_default();
        info!(pod = name, container, reason, message, "event");
        let init = pod
            .spec
            .iter()
            .flat_map(|s| s.init_containers.iter().flatten())
            .any(|c| Some(c.name.as_str()) == container);
        let list = if init { "initContainers" } else { "containers" };
        let involved = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            uid: metadata.uid.clone(),
            resource_version: metadata.resource_version.clone(),
            field_path: container.map(|c| format!("spec.{list}{{{c}}}")),
        };
        self.send(involved, metadata.namespace.clone(), type_, reason, message);
    }

    /// An event about this node, in the namespace `default` as the kubelet's are.
    pub fn node_event(&self, type_: &'static str, reason: &str, message: String) {
        info!(node = self.node, reason, message, "event");
        let involved = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(self.node.clone()),
            uid: Some(self.node.clone()),
            ..ObjectReference::default()
        };
        self.send(involved, Some("default".to_owned()), type_, reason, message);
    }

    fn send(
        &self,
        involved_object: ObjectReference,
        namespace: Option<String>,
        type_: &'static str,
        reason: &str,
        message: String,
    ) {
        let now = Time(jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or_default());
        let name = involved_object.name.as_deref().unwrap_or_default();
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:x}", jiff::Timestamp::now().as_nanosecond())),
                namespace,
                ..ObjectMeta::default()
            },
            involved_object,
            type_: Some(type_.to_owned()),
            reason: Some(reason.to_owned()),
            message: Some(message),
            source: Some(EventSource { component: Some("kubelet".to_owned()), host: Some(self.node.clone()) }),
            reporting_component: Some("kubelet".to_owned()),
            reporting_instance: Some(self.node.clone()),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..Event::default()
        };
        if self.queue.try_send(event).is_err() {
            debug!("event dropped: too many are waiting");
        }
    }
}

async fn send_all(client: Option<Client>, rate: EventRate, mut events: mpsc::Receiver<Event>) {
    let mut correlator = Correlator::default();
    let pause = (rate.per_second > 0).then(|| Duration::from_secs(1) / rate.per_second);
    let mut bucket = pause.map(|pause| Bucket::new(f64::from(rate.burst.max(1)), pause, Instant::now()));
    while let Some(mut event) = events.recv().await {
        let Some(client) = &client else { continue };
        let verdict = correlator.judge(&mut event, Instant::now());
        if verdict == Verdict::Drop {
            debug!(object = event.involved_object.name, "event dropped: there were too many about this object");
            continue;
        }
        while let Some(Err(pause)) = bucket.as_mut().map(|b| b.take(Instant::now())) {
            tokio::time::sleep(pause).await;
        }
        if let Err(error) = write(client, &event, &verdict, &mut correlator).await {
            debug!(error = said(&error), "event not written");
        }
    }
}

async fn write(
    client: &Client,
    event: &Event,
    verdict: &Verdict,
    correlator: &mut Correlator,
) -> Result<(), kube::Error> {
    let namespace = event.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    let own = event.metadata.name.clone().unwrap_or_default();
    if let Verdict::Count(name, count) = verdict {
        let patch = json!({"count": count, "lastTimestamp": event.last_timestamp, "message": event.message});
        match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            // events are kept for an hour: one that is gone begins anew
            Err(kube::Error::Api(answer)) if answer.code == 404 => correlator.forget(name),
            written => return written.map(drop),
        }
    }
    let created = api.create(&PostParams::default(), &event.clone().into()).await;
    created.map(drop).inspect_err(|_| correlator.forget(&own))
}
