//! `ClusterTrustBundles` for pods: all of them are watched while a pod of this node uses one (Kubernetes "Projected
//! Volumes", clusterTrustBundle).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::core::{Selector, SelectorExt};
use kube::runtime::watcher;
use kube::{Client, Resource};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::answer::{Api, Reader};
use super::retry::{patient, reason};
use crate::pki;

/// How long a first read waits for the API server.
const FIRST_READ: Duration = Duration::from_secs(10);

/// Bundles by name, or why they are not known.
type Seen = Result<BTreeMap<String, Arc<ClusterTrustBundle>>, String>;

/// The watch, and the pods it is for.
#[derive(Default)]
pub(super) struct TrustBundles {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    users: BTreeSet<String>,
    watch: Option<(watch::Receiver<Option<Seen>>, AbortHandle)>,
}

impl TrustBundles {
    /// The anchors a source names, in PEM, each once; `None` when there are none and it may be so. Wakes `changed` when
    /// they are others.
    pub async fn anchors(
        &self,
        client: Client,
        changed: watch::Sender<u64>,
        source: &ClusterTrustBundleProjection,
        pod_uid: &str,
    ) -> Result<String, String> {
        let mut seen = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.users.insert(pod_uid.to_owned());
            state.watch.get_or_insert_with(|| start(client, changed)).0.clone()
        };
        let known = tokio::time::timeout(FIRST_READ, seen.wait_for(Option::is_some)).await;
        let bundles = match known {
            Ok(Ok(seen)) => seen.clone().unwrap_or_else(|| Ok(BTreeMap::new()))?,
            Ok(Err(_)) => return Err("reading ClusterTrustBundles: their watch has ended".to_owned()),
            Err(_) => return Err(format!("reading ClusterTrustBundles: no answer in {} s", FIRST_READ.as_secs())),
        };
        let found = matching(source, &bundles)?;
        if found.is_empty() && source.optional != Some(true) {
            return Err(match &source.name {
                Some(name) => format!("clustertrustbundle {name:?} not found"),
                None => "combination of signerName and labelSelector matched zero ClusterTrustBundles".to_owned(),
            });
        }
        normalized(found.iter().map(|b| b.spec.trust_bundle.as_str()))
    }

    /// The pod of that uid is gone.
    pub fn release(&self, pod_uid: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.users.remove(pod_uid);
        if state.users.is_empty()
            && let Some((_, task)) = state.watch.take()
        {
            task.abort();
        }
    }
}

fn start(client: Client, changed: watch::Sender<u64>) -> (watch::Receiver<Option<Seen>>, AbortHandle) {
    let (tx, rx) = watch::channel(None);
    let task = tokio::spawn(async move {
        let mut events =
            patient(None, watcher(Api::<ClusterTrustBundle>::all(client), watcher::Config::default())).boxed();
        let mut bundles: BTreeMap<String, Arc<ClusterTrustBundle>> = BTreeMap::new();
        let mut before = BTreeMap::new();
        let (mut listing, mut reader) = (true, Reader::default());
        let name = |b: &ObjectMeta| b.name.clone().unwrap_or_default();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => {
                    before = std::mem::take(&mut bundles);
                    listing = true;
                }
                Ok(watcher::Event::InitApply(bundle) | watcher::Event::Apply(bundle)) => {
                    let name = name(bundle.meta());
                    let read = reader.read(bundle).ok().map(Arc::new);
                    // one that cannot be read stays what it was
                    if let Some(bundle) = read.or_else(|| before.remove(&name)) {
                        bundles.insert(name, bundle);
                    }
                }
                Ok(watcher::Event::Delete(bundle)) => drop(bundles.remove(&name(bundle.meta()))),
                Ok(watcher::Event::InitDone) => {
                    before.clear();
                    listing = false;
                }
                Err(error) => {
                    // what was read before stays in use
                    let error = format!("reading ClusterTrustBundles: {}", reason(&error));
                    tx.send_if_modified(|seen| {
                        !matches!(seen, Some(Ok(_))) && {
                            *seen = Some(Err(error));
                            true
                        }
                    });
                    continue;
                }
            }
            if !listing {
                tx.send_replace(Some(Ok(bundles.clone())));
                changed.send_modify(|n| *n += 1);
            }
        }
    });
    (rx, task.abort_handle())
}

/// One by its name, or those of a signer with the labels asked for: without a selector none, with an empty one all.
fn matching(
    source: &ClusterTrustBundleProjection,
    bundles: &BTreeMap<String, Arc<ClusterTrustBundle>>,
) -> Result<Vec<Arc<ClusterTrustBundle>>, String> {
    if let Some(name) = &source.name {
        return Ok(bundles.get(name).cloned().into_iter().collect());
    }
    let Some(signer) = &source.signer_name else {
        return Err("ClusterTrustBundle projection requires either name or signerName to be set".to_owned());
    };
    let Some(selector) = &source.label_selector else { return Ok(Vec::new()) };
    let selector = selects(selector)?;
    let of_signer = bundles.values().filter(|b| b.spec.signer_name.as_ref() == Some(signer));
    let labels = |b: &ClusterTrustBundle| b.metadata.labels.clone().unwrap_or_default();
    Ok(of_signer.filter(|b| selector.matches(&labels(b))).cloned().collect())
}

fn selects(selector: &LabelSelector) -> Result<Selector, String> {
    Selector::try_from(selector.clone()).map_err(|e| format!("labelSelector: {e}"))
}

/// All certificates of the bundles, each once.
fn normalized<'a>(bundles: impl Iterator<Item = &'a str>) -> Result<String, String> {
    let mut anchors = BTreeSet::new();
    for bundle in bundles {
        for anchor in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            anchors.insert(anchor.map_err(|e| format!("a ClusterTrustBundle is damaged: {e}"))?.to_vec());
        }
    }
    Ok(anchors.iter().map(|der| pki::pem("CERTIFICATE", der)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_by_name_signer_and_labels() {
        let bundle = |name: &str, signer: Option<&str>, label: &str| {
            let bundle = serde_json::json!({"metadata": {"name": name, "labels": {"l": label}},
                "spec": {"signerName": signer, "trustBundle": ""}});
            (name.to_owned(), Arc::new(serde_json::from_value::<ClusterTrustBundle>(bundle).unwrap()))
        };
        let all =
            BTreeMap::from([bundle("a", None, "x"), bundle("s:1", Some("s/s"), "x"), bundle("s:2", Some("s/s"), "y")]);
        let names = |source: serde_json::Value| {
            let found = matching(&serde_json::from_value(source).unwrap(), &all).unwrap();
            found.iter().map(|b| b.metadata.name.clone().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(names(serde_json::json!({"name": "a", "path": "p"})), ["a"]);
        assert!(names(serde_json::json!({"signerName": "s/s", "path": "p"})).is_empty());
        assert_eq!(names(serde_json::json!({"signerName": "s/s", "labelSelector": {}, "path": "p"})), ["s:1", "s:2"]);
        let labelled =
            serde_json::json!({"signerName": "s/s", "labelSelector": {"matchLabels": {"l": "y"}}, "path": "p"});
        assert_eq!(names(labelled), ["s:2"]);
    }

    #[test]
    fn anchors_come_once() {
        let made = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
        let twice = format!("# a comment\n{made}{made}");
        let found = normalized([twice.as_str(), made.as_str()].into_iter()).unwrap();
        assert_eq!(found.matches("BEGIN CERTIFICATE").count(), 1);
        assert_eq!(normalized([found.as_str()].into_iter()).unwrap(), found);
    }
}
