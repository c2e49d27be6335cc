//! Objects as the API server answers them, each read apart from all others: whoever may write one object may put into it
//! what this agent cannot read, and that must not hide the others.
//!
//! [`Api`] is the only way to them: clippy.toml forbids `kube::Api`, which gives up a whole list for one object in it.

use std::borrow::Cow;
use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Evict};
use kube::core::Request;
use kube::{Client, Resource};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use tracing::warn;

use crate::json::{self, Failed};

/// A kind of objects at the API server, each of them read by itself.
#[expect(clippy::disallowed_types, reason = "what it answers is read leniently")]
pub type Api<K> = kube::Api<Answer<K>>;

/// Objects that were told of, at most.
const REMEMBERED: usize = 1024;

/// An object as the API server gave it.
#[derive(Debug, Clone)]
pub enum Answer<K> {
    /// It could be read. `managedFields` are left out; times no clock here can show are the last, or first, it can.
    Read(K),
    /// It could not.
    Unreadable(Unreadable),
}

/// What is known of an object that cannot be read.
#[derive(Debug, Clone)]
pub struct Unreadable {
    /// Name, namespace, uid and resource version.
    pub metadata: Box<ObjectMeta>,
    /// Which field is wrong; nothing of what is in it, for that may be secret.
    pub why: String,
}

impl<K> Answer<K> {
    /// The object, or an error that names what of it cannot be read.
    pub fn read(self) -> Result<K, kube::Error> {
        match self {
            Self::Read(object) => Ok(object),
            Self::Unreadable(it) => Err(kube::Error::SerdeError(serde::de::Error::custom(it.why))),
        }
    }
}

impl<K> From<K> for Answer<K> {
    fn from(object: K) -> Self {
        Self::Read(object)
    }
}

/// Out of text alone, which is how all answers come: what is wrong in an object leaves what is around it to be read.
impl<'de, K: DeserializeOwned> Deserialize<'de> for Answer<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match json::read(<&RawValue>::deserialize(deserializer)?.get()) {
            Ok(object) => Ok(Self::Read(object)),
            Err(Failed { metadata: Some(metadata), why, .. }) => Ok(Self::Unreadable(Unreadable { metadata, why })),
            Err(Failed { why, .. }) => Err(D::Error::custom(why)),
        }
    }
}

impl<K: Serialize> Serialize for Answer<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Read(object) => object.serialize(serializer),
            Self::Unreadable(it) => Err(serde::ser::Error::custom(&it.why)),
        }
    }
}

impl<K: Resource> Resource for Answer<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(of: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &Self::DynamicType) -> Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &Self::DynamicType) -> Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Read(object) => object.meta(),
            Self::Unreadable(it) => &it.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Read(object) => object.meta_mut(),
            Self::Unreadable(it) => &mut it.metadata,
        }
    }
}

impl Evict for Answer<Pod> {}

/// Says in the log, once, which objects cannot be read.
#[derive(Debug, Default)]
pub struct Reader(BTreeSet<(String, String)>);

impl Reader {
    /// The object, if it can be read.
    pub fn read<K: Resource<DynamicType = ()>>(&mut self, answer: Answer<K>) -> Result<K, Unreadable> {
        match answer {
            Answer::Read(object) => Ok(object),
            Answer::Unreadable(it) => {
                if self.is_new(&it) {
                    let (kind, metadata) = (K::kind(&()), &it.metadata);
                    warn!(%kind, namespace = metadata.namespace, name = metadata.name, why = it.why, "an object cannot be read: what was known of it goes on");
                }
                Err(it)
            }
        }
    }

    fn is_new(&mut self, it: &Unreadable) -> bool {
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert((it.metadata.uid.clone().unwrap_or_default(), it.why.clone()))
    }
}

/// Deletes an object; nothing of the answer is read but whether it is an error.
pub async fn delete<K: Resource<DynamicType = ()>>(
    client: &Client,
    namespace: Option<&str>,
    name: &str,
    parameters: &DeleteParams,
) -> Result<(), kube::Error> {
    let request = Request::new(K::url_path(&(), namespace)).delete(name, parameters);
    client.request_text(request.map_err(kube::Error::BuildRequest)?).await.map(drop)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Pod, Secret, Service};
    use kube::core::{ObjectList, WatchEvent};
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, more: Value) -> Value {
        let mut pod = json!({"kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": name, "namespace": "default", "uid": format!("u-{name}"), "resourceVersion": "7",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "managedFields": [{"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:spec": {}}}]},
            "spec": {"containers": [{"name": "a", "image": "b", "ports": [{"containerPort": 80}]}]}});
        fn merge(into: &mut Value, more: Value) {
            match (into, more) {
                (Value::Object(into), Value::Object(more)) => {
                    for (key, value) in more {
                        merge(into.entry(key).or_insert(Value::Null), value);
                    }
                }
                (into, more) => *into = more,
            }
        }
        merge(&mut pod, more);
        pod
    }

    fn list(items: &str) -> Vec<Answer<Pod>> {
        let text =
            format!(r#"{{"kind":"PodList","apiVersion":"v1","metadata":{{"resourceVersion":"9"}},"items":[{items}]}}"#);
        let list: ObjectList<Answer<Pod>> = serde_json::from_str(&text).unwrap();
        assert_eq!(list.metadata.resource_version.as_deref(), Some("9"));
        list.items
    }

    fn beside_good_ones(evil: &str) -> Answer<Pod> {
        let mut seen = list(&format!("{},{evil},{}", pod("first", json!({})), pod("last", json!({}))));
        let names: Vec<_> = seen.iter().map(|p| p.meta().name.clone().unwrap()).collect();
        assert_eq!(names, ["first", "evil", "last"]);
        assert!(matches!(seen[0], Answer::Read(_)) && matches!(seen[2], Answer::Read(_)));
        let text = format!(r#"{{"type":"MODIFIED","object":{evil}}}"#);
        match serde_json::from_str::<WatchEvent<Answer<Pod>>>(&text).unwrap() {
            WatchEvent::Modified(pod) => assert_eq!(pod.meta().uid.as_deref(), Some("u-evil")),
            other => panic!("{other:?}"),
        }
        seen.swap_remove(1)
    }

    #[test]
    fn who_manages_which_fields_is_not_read_at_all() {
        let late = json!({"metadata": {"managedFields": [{"manager": "foo", "time": "10000-01-01T22:59:59Z"}]}});
        let read = beside_good_ones(&pod("evil", late).to_string()).read().unwrap();
        assert!(read.metadata.managed_fields.is_none() && read.metadata.uid.as_deref() == Some("u-evil"));
        // deeper than serde_json follows
        let deep = format!("{}{}", r#"{"f:a":"#.repeat(200), "{}".to_owned() + &"}".repeat(200));
        let evil = pod("evil", json!({"metadata": {"managedFields": [{"fieldsV1": "DEEP"}]}})).to_string();
        let evil = evil.replace("\"DEEP\"", &deep);
        assert!(serde_json::from_str::<Pod>(&evil).is_err());
        beside_good_ones(&evil).read().unwrap();
    }

    #[test]
    fn times_out_of_reach_become_the_last_and_the_first() {
        let read = |time: &str| {
            let pod = pod("evil", json!({"metadata": {"deletionTimestamp": time}}));
            beside_good_ones(&pod.to_string()).read().unwrap().metadata.deletion_timestamp.unwrap().0
        };
        for late in
            ["10000-01-01T22:59:59Z", "9999-12-31T23:59:59Z", "292277026596-12-04T15:30:07Z", "+12026-01-01T00:00:00Z"]
        {
            assert_eq!(read(late).strftime("%Y").to_string(), "9999", "{late}");
        }
        assert!(read("-0044-03-15T00:00:00Z") < read("0001-01-01T00:00:01Z"));
        assert_eq!(read("2026-01-01T00:00:00Z").as_second(), 1_767_225_600);
        // a zero time, where one has to be
        let condition = json!({"type": "a", "status": "True", "lastTransitionTime": null, "reason": "", "message": ""});
        let service = json!({"metadata": {"name": "s", "uid": "u"}, "status": {"conditions": [condition]}});
        let service: Answer<Service> = serde_json::from_str(&service.to_string()).unwrap();
        assert!(service.read().is_ok());
    }

    #[test]
    fn one_that_cannot_be_read_is_known_by_its_name_and_what_is_wrong() {
        for (wrong, place) in [
            (
                json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80_000_000_000_u64}]}]}}),
                "spec.containers[0].ports[0].containerPort",
            ),
            (json!({"spec": {"hostNetwork": "s3cret"}}), "spec.hostNetwork"),
            (json!({"spec": {"priority": {"s3cret": [1, {"a": []}]}}}), "spec.priority"),
            (json!({"metadata": {"labels": {"a": ["s3cret"]}}}), "metadata.labels.a"),
            (json!({"metadata": {"deletionTimestamp": "s3cret"}}), "metadata.deletionTimestamp"),
            (json!({"metadata": {"deletionTimestamp": {"s3cret": {}}}}), "metadata.deletionTimestamp"),
            (json!({"status": {"conditions": "s3cret"}}), "status.conditions"),
            (json!({"status": {"containerStatuses": [{"name": "a"}, 5]}}), "status.containerStatuses[1]"),
        ] {
            let Answer::Unreadable(it) = beside_good_ones(&pod("evil", wrong).to_string()) else { panic!("{place}") };
            assert_eq!(it.why, format!("{place} cannot be read"));
            let metadata = &it.metadata;
            assert_eq!(
                [&metadata.name, &metadata.namespace, &metadata.uid, &metadata.resource_version]
                    .map(|m| m.as_deref().unwrap()),
                ["evil", "default", "u-evil", "7"]
            );
            let error = Answer::<Pod>::Unreadable(it).read().unwrap_err();
            assert!(!error.to_string().contains("s3cret") && error.to_string().contains(place), "{error}");
        }
    }

    #[test]
    fn an_error_never_shows_what_is_in_an_object() {
        let secret = r#"{"metadata":{"name":"a"},"data":{"password":{"a":"c2VjcmV0"}}}"#;
        let error = serde_json::from_str::<Answer<Secret>>(secret).unwrap_err();
        assert!(error.to_string().contains("data.password cannot be read") && !error.to_string().contains("c2VjcmV0"));
        // what is cut off is no object
        assert!(serde_json::from_str::<Answer<Pod>>(&pod("evil", json!({})).to_string()[..200]).is_err());
    }

    #[test]
    fn objects_are_written_as_they_are() {
        let secret =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a", "uid": "u"}, "data": {"a": "Yg=="}});
        let read: Answer<Secret> = serde_json::from_str(&secret.to_string()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), secret);
    }

    #[test]
    fn each_is_told_of_once() {
        let mut reader = Reader::default();
        let it = |uid: &str| Unreadable {
            metadata: Box::new(ObjectMeta { uid: Some(uid.to_owned()), ..ObjectMeta::default() }),
            why: "spec cannot be read".to_owned(),
        };
        assert!(
            reader.is_new(&it("a")) && reader.is_new(&it("b")) && !reader.is_new(&it("a")) && !reader.is_new(&it("b"))
        );
    }
}
