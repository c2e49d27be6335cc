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
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret, ServiceAccount};
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::retry::Retry;
use crate::volume::{ObjectKey, ObjectKind, ObjectSource};

const STANDALONE: &str = "no API server is configured: standalone pods cannot use ConfigMaps, Secrets or tokens";
/// How long a first read waits for the API server.
const FIRST_READ: Duration = Duration::from_secs(10);

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
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Objects {
    /// A reader that counts every change of a watched object in `changed`.
    pub fn new(client: Option<Client>, changed: watch::Sender<u64>) -> Self {
        Self { client, state: Mutex::default(), changed }
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
                let (seen, task) = start::<ConfigMap>(client, &key, self.changed.clone(), |c| c.immutable);
                (Object::ConfigMap(seen), task)
            }
            ObjectKind::Secret => {
                let (seen, task) = start::<Secret>(client, &key, self.changed.clone(), |s| s.immutable);
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
    changed: watch::Sender<u64>,
    immutable: Immutable<K>,
) -> (watch::Receiver<Seen<K>>, AbortHandle)
where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let api: Api<K> = Api::namespaced(client, &key.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.name));
    let (tx, rx) = watch::channel(Seen::Unknown(None));
    let task = tokio::spawn(async move {
        let mut events = watcher(api, config).backoff(Retry::new()).boxed();
        let mut listed = None;
        while let Some(event) = events.next().await {
            let object = match event {
                Ok(watcher::Event::Init) => {
                    listed = None;
                    continue;
                }
                Ok(watcher::Event::InitApply(object)) => {
                    listed = Some(Arc::new(object));
                    continue;
                }
                Ok(watcher::Event::InitDone) => listed.take(),
                Ok(watcher::Event::Apply(object)) => Some(Arc::new(object)),
                Ok(watcher::Event::Delete(_)) => None,
                Err(error) => {
                    tx.send_if_modified(|seen| match seen {
                        Seen::Unknown(last) => {
                            *last = Some(error.to_string());
                            true
                        }
                        Seen::Known(_) => false,
                    });
                    continue;
                }
            };
            let done = object.as_deref().and_then(immutable) == Some(true);
            tx.send_replace(Seen::Known(object));
            changed.send_modify(|n| *n += 1);
            if done {
                return;
            }
        }
    });
    (rx, task.abort_handle())
}

/// The object once it was read.
async fn read<K: Clone>(mut seen: watch::Receiver<Seen<K>>, what: &str, name: &str) -> Result<Option<K>, String> {
    let known = tokio::time::timeout(FIRST_READ, seen.wait_for(|s| !matches!(s, Seen::Unknown(None)))).await;
    let known = known.map(|seen| seen.map(|s| s.clone()));
    match known {
        Ok(Ok(Seen::Known(object))) => Ok(object.as_deref().cloned()),
        Ok(Ok(Seen::Unknown(error))) => Err(format!("reading {what} {name:?}: {}", error.unwrap_or_default())),
        Ok(Err(_)) => Err(format!("reading {what} {name:?}: its watch has ended")),
        Err(_) => Err(format!("reading {what} {name:?}: no answer in {} s", FIRST_READ.as_secs())),
    }
}

/// An object as it is now.
async fn get<K: Clone + Debug + DeserializeOwned>(api: &Api<K>, what: &str, name: &str) -> Result<Option<K>, String> {
    api.get_opt(name).await.map_err(|e| format!("reading {what} {name:?}: {e}"))
}

impl ObjectSource for Objects {
    fn config_map<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<ConfigMap>, String>> {
        async move {
            match self.watched(ObjectKind::ConfigMap, namespace, name)? {
                Object::ConfigMap(seen) => read(seen, "configmap", name).await,
                Object::Secret(_) => Ok(None),
            }
        }
        .boxed()
    }

    fn secret<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<Secret>, String>> {
        async move {
            match self.watched(ObjectKind::Secret, namespace, name)? {
                Object::Secret(seen) => read(seen, "secret", name).await,
                Object::ConfigMap(_) => Ok(None),
            }
        }
        .boxed()
    }

    fn claim<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<PersistentVolumeClaim>, String>> {
        async move { get(&Api::namespaced(self.client()?, namespace), "persistentvolumeclaim", name).await }.boxed()
    }

    fn persistent_volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<PersistentVolume>, String>> {
        async move { get(&Api::all(self.client()?), "persistentvolume", name).await }.boxed()
    }

    fn hold(&self, pod_uid: &str, keys: BTreeSet<ObjectKey>) {
        self.state().held.insert(pod_uid.to_owned(), keys);
    }

    fn release(&self, pod_uid: &str) {
        let mut state = self.state();
        state.held.remove(pod_uid);
        let State { watched, held } = &mut *state;
        watched.retain(|key, watched| {
            let kept = held.values().any(|keys| keys.contains(key));
            if !kept {
                watched.task.abort();
            }
            kept
        });
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
            let what = |e| format!("requesting a token of service account {namespace}/{account}: {e}");
            let answer = api.create_token_request(account, &PostParams::default(), &request).await.map_err(what)?;
            let status = answer
                .status
                .ok_or_else(|| format!("no token of service account {namespace}/{account} in the answer"))?;
            let expires = status.expiration_timestamp.map_or(0, |t| t.0.as_second());
            Ok((status.token.unwrap_or_default(), expires))
        }
        .boxed()
    }
}
