//! ConfigMaps, Secrets and service account tokens that pods of this node refer to.
//!
//! Each object is watched by its name for as long as a pod of this node refers to it, as the node authorizer wants it;
//! an immutable one is read once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, ConfigMap, NodeSelector, PersistentVolume, PersistentVolumeClaim, Pod,
    PodCertificateProjection, Secret, ServiceAccount,
};
use kube::Client;
use kube::api::PostParams;
use kube::runtime::watcher;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::warn;

use super::answer::{Answer, Api, Reader, Unreadable};
use super::client::said;
use super::kept::{Kept, Slot};
use super::node::{NodeSeen, see_node};
use super::pod_certificates::PodCertificates;
use super::retry::{patient, reason};
use super::trust_bundles::TrustBundles;
use crate::node_selector;
use crate::volume::{ObjectKey, ObjectKind, ObjectSource, PodCertificate};

const STANDALONE: &str = "no API server is configured: standalone pods cannot use ConfigMaps, Secrets or tokens";
/// How long a first read waits for the API server.
const FIRST_READ: Duration = Duration::from_secs(10);
/// The same when what was kept of an earlier read can be used.
const FIRST_READ_KEPT: Duration = Duration::from_secs(1);
/// How long a kept token is used before the API server is asked again, in seconds.
const KEPT_TOKEN: i64 = 300;

/// An object as last seen.
#[derive(Debug, Clone)]
enum Seen<K> {
    /// Not read yet; the last error, if there was one.
    Unknown(Option<String>),
    /// Read: there, or not.
    Known(Option<Arc<K>>),
}

struct Watched {
    object: Object,
    task: AbortHandle,
}

#[derive(Clone)]
enum Object {
    ConfigMap(watch::Receiver<Seen<ConfigMap>>),
    Secret(watch::Receiver<Seen<Secret>>),
}

#[derive(Default)]
struct State {
    watched: BTreeMap<ObjectKey, Watched>,
    held: BTreeMap<String, BTreeSet<ObjectKey>>,
}

/// Reads objects from the API server; without one every read says so.
pub struct Objects {
    client: Option<Client>,
    node: String,
    /// What was last heard of the Node.
    seen: watch::Receiver<Option<NodeSeen>>,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    kept: Kept,
    certificates: PodCertificates,
    bundles: TrustBundles,
}

impl Objects {
    /// A reader for the pods of `node`, of which that was `seen`. It counts every change of a watched object in `changed`, and
    /// falls back to what was `kept`.
    pub fn new(
        client: Option<Client>,
        node: &str,
        seen: watch::Receiver<Option<NodeSeen>>,
        changed: watch::Sender<u64>,
        kept: Kept,
    ) -> Self {
        let certificates = PodCertificates::new(node.to_owned(), kept.clone(), changed.clone());
        let (node, bundles) = (node.to_owned(), TrustBundles::default());
        Self { client, node, seen, state: Mutex::default(), changed, kept, certificates, bundles }
    }

    fn told(&self) -> (watch::Sender<u64>, Kept) {
        (self.changed.clone(), self.kept.clone())
    }

    fn client(&self) -> Result<Client, String> {
        self.client.clone().ok_or_else(|| STANDALONE.to_owned())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The watch of an object, started where there is none.
    fn watched(&self, kind: ObjectKind, namespace: &str, name: &str) -> Result<Object, String> {
        let client = self.client()?;
        let key = ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        let mut state = self.state();
        if let Some(watched) = state.watched.get(&key) {
            return Ok(watched.object.clone());
        }
        let (object, task) = match kind {
            ObjectKind::ConfigMap => {
                let (seen, task) = start::<ConfigMap>(client, &key, self.told(), |c| c.immutable);
                (Object::ConfigMap(seen), task)
            }
            ObjectKind::Secret => {
                let (seen, task) = start::<Secret>(client, &key, self.told(), |s| s.immutable);
                (Object::Secret(seen), task)
            }
        };
        state.watched.insert(key, Watched { object: object.clone(), task });
        Ok(object)
    }
}

type Immutable<K> = fn(&K) -> Option<bool>;

fn start<K>(
    client: Client,
    key: &ObjectKey,
    (changed, kept): (watch::Sender<u64>, Kept),
    immutable: Immutable<K>,
) -> (watch::Receiver<Seen<K>>, AbortHandle)
where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
        + Send
        + Sync
        + 'static,
{
    let key = key.clone();
    let api: Api<K> = Api::namespaced(client, &key.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.name));
    let (tx, rx) = watch::channel(Seen::Unknown(None));
    let task = tokio::spawn(async move {
        let mut events = patient(None, watcher(api, config)).boxed();
        let (mut listed, mut reader) = (None, Reader::default());
        while let Some(event) = events.next().await {
            let object = match event {
                Ok(watcher::Event::Init) => {
                    listed = None;
                    continue;
                }
                Ok(watcher::Event::InitApply(object)) => {
                    listed = Some(reader.read(object));
                    continue;
                }
                Ok(watcher::Event::InitDone) => listed.take().transpose().map_err(|it: Unreadable| it.why),
                Ok(watcher::Event::Apply(object)) => reader.read(object).map(Some).map_err(|it| it.why),
                Ok(watcher::Event::Delete(_)) => Ok(None),
                Err(error) => Err(reason(&error)),
            };
            let object = match object {
                Ok(object) => object.map(Arc::new),
                Err(error) => {
                    tx.send_if_modified(|seen| match seen {
                        Seen::Unknown(last) => {
                            *last = Some(error);
                            true
                        }
                        // what was read before stays in use
                        Seen::Known(_) => false,
                    });
                    continue;
                }
            };
            let done = object.as_deref().and_then(immutable) == Some(true);
            tx.send_replace(Seen::Known(object.clone()));
            changed.send_modify(|n| *n += 1);
            match object {
                Some(object) => kept.put(slot(&key), &*object).await,
                None => kept.remove(slot(&key)),
            }
            if done {
                return;
            }
        }
    });
    (rx, task.abort_handle())
}

fn slot(key: &ObjectKey) -> Slot<'_> {
    let kind = match key.kind {
        ObjectKind::ConfigMap => "configmap",
        ObjectKind::Secret => "secret",
    };
    Slot(kind, &key.namespace, &key.name)
}

/// The object once it was read; what was kept of it where nothing is heard of the API server.
async fn read<K: Clone + DeserializeOwned>(
    mut seen: watch::Receiver<Seen<K>>,
    kept: &Kept,
    slot: Slot<'_>,
) -> Result<Option<K>, String> {
    if let Seen::Known(object) = &*seen.borrow() {
        return Ok(object.as_deref().cloned());
    }
    let Slot(what, _, name) = slot;
    let old = kept.get::<K>(slot);
    let limit = if old.is_some() { FIRST_READ_KEPT } else { FIRST_READ };
    let known = tokio::time::timeout(limit, seen.wait_for(|s| !matches!(s, Seen::Unknown(None)))).await;
    let known = known.map(|seen| seen.map(|s| s.clone()));
    let missing = match known {
        Ok(Ok(Seen::Known(object))) => return Ok(object.as_deref().cloned()),
        Ok(Ok(Seen::Unknown(error))) => error.unwrap_or_default(),
        Ok(Err(_)) => "its watch has ended".to_owned(),
        Err(_) => format!("no answer in {} s", limit.as_secs()),
    };
    or_kept(old, || format!("reading {what} {name:?}: {missing}"))
}

/// What was kept, if there is any; it is said why it is used.
fn or_kept<K>(old: Option<K>, error: impl FnOnce() -> String) -> Result<Option<K>, String> {
    match old {
        Some(old) => {
            warn!(error = error(), "using what was kept");
            Ok(Some(old))
        }
        None => Err(error()),
    }
}

/// An object as it is now, kept for the pod it is read for.
async fn get<K: Clone + Debug + DeserializeOwned + Serialize>(
    api: &Api<K>,
    kept: &Kept,
    slot: Slot<'_>,
    name: &str,
) -> Result<Option<K>, String> {
    match api.get_opt(name).await.and_then(|found| found.map(Answer::read).transpose()) {
        Ok(Some(object)) => {
            kept.put(slot, &object).await;
            Ok(Some(object))
        }
        Ok(None) => Ok(None),
        Err(error) => or_kept(kept.get(slot), || format!("reading {} {name:?}: {}", slot.0, said(&error))),
    }
}

impl ObjectSource for Objects {
    fn config_map<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<ConfigMap>, String>> {
        async move {
            match self.watched(ObjectKind::ConfigMap, namespace, name)? {
                Object::ConfigMap(seen) => read(seen, &self.kept, Slot("configmap", namespace, name)).await,
                Object::Secret(_) => Ok(None),
            }
        }
        .boxed()
    }

    fn secret<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<Secret>, String>> {
        async move {
            match self.watched(ObjectKind::Secret, namespace, name)? {
                Object::Secret(seen) => read(seen, &self.kept, Slot("secret", namespace, name)).await,
                Object::ConfigMap(_) => Ok(None),
            }
        }
        .boxed()
    }

    fn claim<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        pod_uid: &'a str,
    ) -> BoxFuture<'a, Result<Option<PersistentVolumeClaim>, String>> {
        let slot = Slot("persistentvolumeclaim", pod_uid, name);
        async move { get(&Api::namespaced(self.client()?, namespace), &self.kept, slot, name).await }.boxed()
    }

    fn persistent_volume<'a>(
        &'a self,
        name: &'a str,
        pod_uid: &'a str,
    ) -> BoxFuture<'a, Result<Option<PersistentVolume>, String>> {
        let slot = Slot("persistentvolume", pod_uid, name);
        async move { get(&Api::all(self.client()?), &self.kept, slot, name).await }.boxed()
    }

    fn selects_node<'a>(&'a self, selector: &'a NodeSelector) -> BoxFuture<'a, bool> {
        let holds = move |seen: &NodeSeen| node_selector::matches(selector, &seen.labels, &self.node);
        async move {
            if self.seen.borrow().as_ref().is_some_and(holds) {
                return true;
            }
            // it may have got a label that was not heard of here yet; until anything is heard, its pods are those it had before
            let limit = if self.seen.borrow().is_some() { FIRST_READ } else { FIRST_READ_KEPT };
            if let Some(client) = &self.client
                && let Ok(Ok(seen)) = tokio::time::timeout(limit, see_node(client, &self.node)).await
            {
                return holds(&seen);
            }
            // a node that starts with no API server goes on
            self.seen.borrow().is_none()
        }
        .boxed()
    }

    fn hold(&self, pod_uid: &str, keys: BTreeSet<ObjectKey>) {
        self.state().held.insert(pod_uid.to_owned(), keys);
    }

    fn release(&self, pod_uid: &str) {
        let mut state = self.state();
        let own = state.held.remove(pod_uid).unwrap_or_default();
        let State { watched, held } = &mut *state;
        // an agent that was started anew may not have watched all of them yet
        for key in own.into_iter().chain(watched.keys().cloned()).collect::<BTreeSet<_>>() {
            if !held.values().any(|keys| keys.contains(&key)) {
                if let Some(watched) = watched.remove(&key) {
                    watched.task.abort();
                }
                self.kept.remove(slot(&key));
            }
        }
        drop(state);
        self.certificates.release(pod_uid);
        self.bundles.release(pod_uid);
        self.kept.remove_all(pod_uid);
    }

    fn sweep(&self) {
        let state = self.state();
        self.kept.retain(|found| match found {
            Slot("node" | "services", ..) => true,
            Slot("configmap" | "secret", ..) => state.held.values().flatten().any(|key| slot(key) == found),
            Slot(_, uid, _) => state.held.contains_key(uid),
        });
    }

    fn trust_bundle<'a>(
        &'a self,
        source: &'a ClusterTrustBundleProjection,
        pod_uid: &'a str,
        place: &'a str,
    ) -> BoxFuture<'a, Result<String, String>> {
        async move {
            let slot = Slot("clustertrustbundle", pod_uid, place);
            match self.bundles.anchors(self.client()?, self.changed.clone(), source, pod_uid).await {
                Ok(anchors) => {
                    self.kept.put(slot, &anchors).await;
                    Ok(anchors)
                }
                Err(error) => or_kept(self.kept.get(slot), || error).map(Option::unwrap_or_default),
            }
        }
        .boxed()
    }

    fn pod_certificate(
        &self,
        source: &PodCertificateProjection,
        pod: &Pod,
        place: &str,
    ) -> Result<PodCertificate, String> {
        self.certificates.get(self.client()?, pod, place, source)
    }

    fn token<'a>(
        &'a self,
        namespace: &'a str,
        account: &'a str,
        pod_name: &'a str,
        pod_uid: &'a str,
        audience: Option<String>,
        expiration_seconds: i64,
    ) -> BoxFuture<'a, Result<(String, i64), String>> {
        async move {
            let whom = crate::hex::hex(audience.as_deref().unwrap_or_default().as_bytes());
            let name = format!("{account}.{whom}");
            let slot = Slot("token", pod_uid, &name);
            match self.request_token(namespace, account, (pod_name, pod_uid), audience, expiration_seconds).await {
                // the first one only: tokens are renewed every hour, and API servers take them for longer than they say
                Ok(token) if self.kept.get::<(String, i64)>(slot).is_none() => {
                    self.kept.put(slot, &token).await;
                    Ok(token)
                }
                Ok(token) => Ok(token),
                Err(error) => {
                    let old = self.kept.get::<(String, i64)>(slot).map(|(token, _)| token);
                    let now = jiff::Timestamp::now().as_second();
                    or_kept(old, || error).map(|old| (old.unwrap_or_default(), now + KEPT_TOKEN))
                }
            }
        }
        .boxed()
    }
}

impl Objects {
    async fn request_token(
        &self,
        namespace: &str,
        account: &str,
        (pod_name, pod_uid): (&str, &str),
        audience: Option<String>,
        expiration_seconds: i64,
    ) -> Result<(String, i64), String> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client()?, namespace);
        let bound = BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod_name.to_owned()),
            uid: Some(pod_uid.to_owned()),
        };
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(audience.into_iter().collect()),
                expiration_seconds: Some(expiration_seconds),
                bound_object_ref: Some(bound),
            }),
            ..TokenRequest::default()
        };
        let what = |why: String| format!("requesting a token of service account {namespace}/{account}: {why}");
        let answer = api.create_subresource("token", account, &PostParams::default(), &request).await;
        let answer = answer.and_then(Answer::<TokenRequest>::read).map_err(|e| what(said(&e)))?;
        let status =
            answer.status.ok_or_else(|| format!("no token of service account {namespace}/{account} in the answer"))?;
        let expires = status.expiration_timestamp.map_or(0, |t| t.0.as_second());
        Ok((status.token.unwrap_or_default(), expires))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_of_whom_nothing_was_heard_waits_short() {
        let silent = tower::service_fn(|_: http::Request<kube::client::Body>| {
            futures::future::pending::<Result<http::Response<kube::client::Body>, std::io::Error>>()
        });
        let selector = serde_json::json!({"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "disk", "operator": "In", "values": ["sd"]}]}]});
        let selector: NodeSelector = serde_json::from_value(selector).unwrap();
        for (seen, selected, limit) in [(None, true, FIRST_READ_KEPT), (Some(NodeSeen::default()), false, FIRST_READ)] {
            let (_heard, seen) = watch::channel(seen);
            let client = Client::new(silent, "default");
            let objects = Objects::new(Some(client), "pi", seen, watch::channel(0).0, Kept::default());
            let began = tokio::time::Instant::now();
            assert_eq!(objects.selects_node(&selector).await, selected);
            // timers are of whole milliseconds
            assert!(began.elapsed() < limit + Duration::from_millis(2), "{:?}", began.elapsed());
        }
    }
}
