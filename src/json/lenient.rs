//! Makes the text of one object ready to be read: `managedFields` are left out, and a time that jiff does not reach becomes
//! the last, or the first, it does. What an object is called is learnt on the way, and where something is wrong its place is
//! found in the text. Nothing here knows the types that are read: in the program it would be there once for each of them.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Of `metadata`: what has to be known of an object that cannot be read.
const IDENTITY: [&str; 4] = ["name", "namespace", "uid", "resourceVersion"];
/// Fields that are a `Time` or `MicroTime`, after what they are in: all that k8s-openapi has in the kinds that are read here
/// (`src/v1_36` there). None of them is in a map whose keys are anybody's, as `labels` or `data` are.
const TIMES: [(&str, &str); 22] = [
    ("", "eventTime"),
    ("", "firstTimestamp"),
    ("", "lastTimestamp"),
    ("conditions", "lastHeartbeatTime"),
    ("conditions", "lastProbeTime"),
    NEEDED,
    ("conditions", "lastUpdateTime"),
    ("metadata", "creationTimestamp"),
    ("metadata", "deletionTimestamp"),
    ("running", "startedAt"),
    ("series", "lastObservedTime"),
    ("spec", "acquireTime"),
    ("spec", "renewTime"),
    ("status", "beginRefreshAt"),
    ("status", "expirationTimestamp"),
    ("status", "lastPhaseTransitionTime"),
    ("status", "notAfter"),
    ("status", "notBefore"),
    ("status", "startTime"),
    ("taints", "timeAdded"),
    ("terminated", "finishedAt"),
    ("terminated", "startedAt"),
];
/// The one that has to be there in some kinds (`meta/v1.Condition`): Go writes null when there is none.
const NEEDED: (&str, &str) = ("conditions", "lastTransitionTime");
/// The first and the last time objects have here: all of a year from where jiff ends, so that one may reckon with them.
const FIRST: &str = "\"0001-01-01T00:00:00Z\"";
const LAST: &str = "\"9999-01-01T00:00:00Z\"";
/// Values in one another that are told apart: `serde_json` follows no deeper.
const DEPTH: usize = 128;
/// Characters of a place that are told.
const PLACE: usize = 200;

/// Why an object was not read.
pub struct Failed {
    /// What is wrong, with what stands there.
    pub error: serde_json::Error,
    /// Name, namespace, uid and resource version, if they could be read.
    pub metadata: Option<Box<ObjectMeta>>,
    /// Which field is wrong; nothing of what is in it.
    pub why: String,
}

/// The text of an object, ready to be read.
pub struct Ready<'t> {
    pub text: Cow<'t, str>,
    /// It has null where some kinds need a time.
    pub lacks_time: bool,
    identity: [Option<String>; 4],
}

impl<'t> Ready<'t> {
    /// With `fill`, null is the first time there is where some kinds need one.
    pub fn of(text: &'t str, fill: bool) -> Self {
        let mut ready = Self { text: Cow::Borrowed(""), lacks_time: false, identity: Default::default() };
        let mut walk = Walk::new(text);
        let mut copied = 0;
        while let Some(found) = walk.next() {
            let Some((holder, key)) = walk.member().filter(|_| found.part != Part::Close) else { continue };
            let value = text.get(found.start..found.end).unwrap_or_default();
            let instead = if (holder, key) == ("metadata", "managedFields") {
                walk.skip(&found);
                Some("null")
            } else if TIMES.contains(&(holder, key)) && value.starts_with('"') {
                within_reach(&unescaped(value))
            } else if (holder, key) == NEEDED && value == "null" {
                ready.lacks_time = true;
                fill.then_some(FIRST)
            } else {
                let known =
                    IDENTITY.iter().position(|k| *k == key).filter(|_| holder == "metadata" && walk.path.len() == 2);
                if let Some(known) = known.filter(|_| value.starts_with('"')).and_then(|i| ready.identity.get_mut(i)) {
                    *known = Some(unescaped(value).into_owned());
                }
                None
            };
            if let Some(instead) = instead {
                ready.text += text.get(copied..found.start).unwrap_or_default();
                ready.text += instead;
                copied = walk.at;
            }
        }
        ready.text += text.get(copied..).unwrap_or_default();
        ready
    }

    /// What is told of an error in reading the text.
    pub fn failed(self, error: serde_json::Error) -> Failed {
        let [name, namespace, uid, resource_version] = self.identity;
        let named = name.is_some() && uid.is_some() && resource_version.is_some();
        let metadata = ObjectMeta { name, namespace, uid, resource_version, ..ObjectMeta::default() };
        let lines = self.text.split_inclusive('\n').take(error.line().saturating_sub(1));
        let place = place(&self.text, lines.map(str::len).sum::<usize>() + error.column());
        let place = if place.is_empty() { "the object" } else { &place };
        Failed { error, metadata: named.then(|| Box::new(metadata)), why: format!("{place} cannot be read") }
    }
}

/// The keys and numbers that lead to the innermost value which holds an offset.
fn place(text: &str, offset: usize) -> String {
    let mut walk = Walk::new(text);
    let found = loop {
        match walk.next() {
            Some(found) if found.end < offset || found.part == Part::Open && found.start < offset => {}
            found => break found,
        }
    };
    // before a value, what it is in is wrong; only of an object or a list nothing is read where it is not expected
    if found.is_some_and(|f| f.start > offset && f.part != Part::Close || f.start == offset && f.part == Part::Whole) {
        walk.path.pop();
    }
    let place = walk.path.iter().map(|step| match step {
        Step::Key(key) => format!(".{key}"),
        Step::Number(number) => format!("[{number}]"),
    });
    place.collect::<String>().trim_start_matches('.').chars().take(PLACE).collect()
}

/// What is read instead of a text that stands for a time of RFC 3339, in quotes: of a year that has no four digits, or that
/// jiff does not reach, the nearest there is; what is no time is none then either. `None`: it is read as it is.
fn within_reach(text: &str) -> Option<&'static str> {
    const NO_TIME: Option<&str> = Some("\"\"");
    let (sign, rest) = match text.as_bytes().first() {
        Some(b'-') => (-1, text.get(1..)),
        Some(b'+') => (1, text.get(1..)),
        _ => (0, Some(text)),
    };
    let Some((year, rest)) = rest.and_then(|r| r.split_once('-')) else { return NO_TIME };
    let looks_right = year.len() >= 4 && year.bytes().all(|b| b.is_ascii_digit()) && rest.get(5..6) == Some("T");
    match (looks_right, sign) {
        (false, _) => NO_TIME,
        (true, -1) => Some(FIRST),
        (true, _) if year.len() > 4 || year == "9999" => Some(LAST),
        (true, 0) if year == "0000" => Some(FIRST),
        (true, _) => None,
    }
}

/// What a string in quotes says; nothing if it is none.
fn unescaped(quoted: &str) -> Cow<'_, str> {
    match quoted.get(1..quoted.len().saturating_sub(1)) {
        Some(text) if !text.contains('\\') => Cow::Borrowed(text),
        _ => Cow::Owned(serde_json::from_str(quoted).unwrap_or_default()),
    }
}

/// The way to a value.
enum Step<'t> {
    Key(Cow<'t, str>),
    Number(usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A whole value with none in it, or deeper than [`DEPTH`].
    Whole,
    /// Where an object or a list begins.
    Open,
    /// Where it ends.
    Close,
}

/// Offsets of a part of a value.
#[derive(Clone, Copy)]
struct Found {
    part: Part,
    start: usize,
    end: usize,
}

/// Goes through a text from value to value. What is no JSON is not told from what is: it is read afterwards.
struct Walk<'t> {
    text: &'t str,
    at: usize,
    path: Vec<Step<'t>>,
    /// A list or an object has begun, and the path does not lead into it yet.
    opened: Option<Step<'t>>,
    /// The next string is a key.
    key: bool,
}

impl<'t> Walk<'t> {
    fn new(text: &'t str) -> Self {
        Self { text, at: 0, path: Vec::new(), opened: None, key: false }
    }

    fn next(&mut self) -> Option<Found> {
        if let Some(step) = self.opened.take() {
            self.key = matches!(step, Step::Key(_));
            self.path.push(step);
        }
        loop {
            let start = self.at;
            let byte = *self.text.as_bytes().get(start)?;
            self.at = match byte {
                b'"' => self.string_end(start)?,
                b'{' | b'[' if self.path.len() >= DEPTH => self.container_end(start)?,
                b' ' | b'\t' | b'\r' | b'\n' | b':' | b',' | b'{' | b'[' | b'}' | b']' => start + 1,
                _ => self
                    .text
                    .get(start..)?
                    .find([' ', '\t', '\r', '\n', ':', ',', '{', '[', '}', ']', '"'])
                    .map_or(self.text.len(), |n| start + n),
            };
            let part = match (byte, self.path.last_mut()) {
                (b' ' | b'\t' | b'\r' | b'\n' | b':', _) => continue,
                (b',', Some(Step::Number(number))) => {
                    *number += 1;
                    continue;
                }
                (b',', _) => {
                    self.key = true;
                    continue;
                }
                (b'"', Some(Step::Key(key))) if self.key => {
                    *key = unescaped(self.text.get(start..self.at)?);
                    self.key = false;
                    continue;
                }
                (b'{' | b'[', _) if self.at == start + 1 => {
                    self.opened = Some(if byte == b'{' { Step::Key(Cow::Borrowed("")) } else { Step::Number(0) });
                    Part::Open
                }
                (b'}' | b']', _) => {
                    self.path.pop()?;
                    self.key = false;
                    Part::Close
                }
                _ => Part::Whole,
            };
            return Some(Found { part, start, end: self.at });
        }
    }

    /// The key where it is, and of the objects around it the innermost one's own.
    fn member(&self) -> Option<(&str, &str)> {
        let (Step::Key(key), around) = self.path.split_last()? else { return None };
        let holder = around.iter().rev().find_map(|step| match step {
            Step::Key(key) => Some(key.as_ref()),
            Step::Number(_) => None,
        });
        Some((holder.unwrap_or_default(), key))
    }

    /// Goes past the value that was found.
    fn skip(&mut self, found: &Found) {
        if self.opened.take().is_some() {
            self.at = self.container_end(found.start).unwrap_or(self.text.len());
        }
    }

    fn string_end(&self, start: usize) -> Option<usize> {
        let mut bytes = self.text.bytes().enumerate().skip(start + 1);
        loop {
            match bytes.next()? {
                (_, b'\\') => drop(bytes.next()),
                (at, b'"') => return Some(at + 1),
                _ => {}
            }
        }
    }

    fn container_end(&self, start: usize) -> Option<usize> {
        let (mut at, mut depth) = (start, 0_usize);
        loop {
            let end = match self.text.as_bytes().get(at)? {
                b'"' => self.string_end(at)?,
                _ => at + 1,
            };
            match self.text.as_bytes().get(at)? {
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some(end);
            }
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::TokenRequest;
    use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
    use k8s_openapi::api::certificates::v1beta1::PodCertificateRequest;
    use k8s_openapi::api::coordination::v1::Lease;
    use k8s_openapi::api::core::v1::{
        ConfigMap, Event, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service,
    };
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use crate::json::read;

    fn why<K: DeserializeOwned>(text: &str) -> String {
        read::<K>(text).map(drop).unwrap_err().why
    }

    #[test]
    fn every_time_may_be_out_of_reach() {
        const FAR: &str = "10000-01-01T00:00:00Z";
        fn reads<K: DeserializeOwned + serde::Serialize>(mut object: Value) {
            object["metadata"] = json!({"creationTimestamp": FAR, "deletionTimestamp": FAR});
            let object = object.to_string();
            assert!(serde_json::from_str::<K>(&object).is_err());
            let Ok(found) = read::<K>(&object) else { panic!("{object}") };
            let found = serde_json::to_string(&found).unwrap();
            assert_eq!(found.matches("9999-01-01").count(), object.matches(FAR).count(), "{found}");
        }
        let condition =
            json!([{"type": "a", "status": "True", "reason": "", "message": "", "lastTransitionTime": FAR}]);
        let condition = |more: &str| {
            let mut conditions = condition.clone();
            conditions[0][more] = FAR.into();
            conditions
        };
        let state = json!({"running": {"startedAt": FAR}});
        let ended = json!({"terminated": {"startedAt": FAR, "finishedAt": FAR, "exitCode": 0}});
        let container = |state: &Value, last: &Value| json!({"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": state, "lastState": last});
        reads::<Pod>(json!({"status": {"startTime": FAR, "conditions": condition("lastProbeTime"),
            "containerStatuses": [container(&state, &ended)], "initContainerStatuses": [container(&ended, &state)]}}));
        reads::<Node>(json!({"spec": {"taints": [{"key": "a", "effect": "NoExecute", "timeAdded": FAR}]},
            "status": {"conditions": condition("lastHeartbeatTime")}}));
        reads::<Service>(json!({"status": {"conditions": condition("lastTransitionTime")}}));
        reads::<PersistentVolume>(json!({"status": {"lastPhaseTransitionTime": FAR}}));
        reads::<PersistentVolumeClaim>(json!({"status": {"conditions": condition("lastProbeTime")}}));
        reads::<Event>(json!({"eventTime": FAR, "firstTimestamp": FAR, "lastTimestamp": FAR,
            "series": {"lastObservedTime": FAR}, "involvedObject": {}}));
        reads::<Lease>(json!({"spec": {"acquireTime": FAR, "renewTime": FAR}}));
        reads::<CertificateSigningRequest>(json!({"spec": {"request": "", "signerName": ""},
            "status": {"conditions": condition("lastUpdateTime")}}));
        reads::<PodCertificateRequest>(json!({
            "spec": {"nodeName": "", "nodeUID": "", "podName": "", "podUID": "", "serviceAccountName": "",
                "serviceAccountUID": "", "signerName": "", "stubPKCS10Request": ""},
            "status": {"beginRefreshAt": FAR, "notAfter": FAR, "notBefore": FAR,
                "conditions": condition("lastTransitionTime")}}));
        reads::<TokenRequest>(json!({"spec": {"audiences": []}, "status": {"expirationTimestamp": FAR, "token": ""}}));
    }

    #[test]
    fn what_people_name_as_they_like_is_left_alone() {
        let all = json!({"managedFields": "[]", "deletionTimestamp": "10000-01-01T00:00:00Z", "metadata": "null"});
        let map: ConfigMap = read(&json!({"metadata": {"annotations": all, "labels": all}, "data": all}).to_string())
            .unwrap_or_else(|failed| panic!("{}", failed.why));
        for found in [map.data, map.metadata.annotations, map.metadata.labels] {
            assert_eq!(json!(found), all);
        }
    }

    #[test]
    fn null_is_a_time_only_where_one_has_to_be() {
        let mut object = json!({"metadata": {"deletionTimestamp": null},
            "status": {"conditions": [{"type": "a", "status": "True", "lastTransitionTime": null}]}});
        let pod: Pod = read(&object.to_string()).unwrap_or_else(|failed| panic!("{}", failed.why));
        assert_eq!(pod.status.unwrap().conditions.unwrap()[0].last_transition_time, None);
        let service: Service = read(&object.to_string()).unwrap_or_else(|failed| panic!("{}", failed.why));
        assert_eq!(service.metadata.deletion_timestamp, None);
        assert_eq!(service.status.unwrap().conditions.unwrap()[0].last_transition_time.0.as_second(), -62_135_596_800);
        object["status"]["conditions"][0]["status"] = json!(1);
        assert_eq!(why::<Service>(&object.to_string()), "status.conditions[0].status cannot be read");
    }

    #[test]
    fn keys_may_be_written_in_any_way_and_twice() {
        let text = r#"{"m\u0065tadata": {"name": "a", "managed\u0046ields": 5, "uid": "u", "n\u0061me": "\"b\u00e9\\",
            "deletion\u0054imestamp": "\u00310000-01-01T00:00:00Z", "resourceVersion": "1"}, "metadata" : {"name":"c"},
            "spec": {"containers": [{"n\u0061me": 7}]}}"#;
        let failed = read::<Pod>(text).map(drop).unwrap_err();
        let metadata = failed.metadata.unwrap();
        assert_eq!([metadata.name.as_deref(), metadata.uid.as_deref()], [Some("c"), Some("u")]);
        assert_eq!(failed.why, "spec.containers[0].name cannot be read");
        let pod: Pod = read(&text.replace(": 7", ": \"}],\"")).unwrap_or_else(|failed| panic!("{}", failed.why));
        assert_eq!(pod.metadata.name.as_deref(), Some("c"));
        assert_eq!(pod.spec.unwrap().containers[0].name, "}],");
    }

    #[test]
    fn depth_is_no_matter_where_nothing_is_read() {
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
            let deep = format!("{}1{}", open.repeat(200_000), close.repeat(200_000));
            assert!(read::<Vec<Pod>>(&deep).is_err() && read::<Pod>(&open.repeat(200_000)).is_err());
            let pod = format!(r#"{{"unknown": {deep}, "metadata": {{"managedFields": {deep}, "name": "a"}}}}"#);
            let pod: Pod = read(&pod).unwrap_or_else(|failed| panic!("{}", failed.why));
            assert_eq!(pod.metadata.name.as_deref(), Some("a"));
            let pod = format!(r#"{{"unknown": {deep}, "spec": {{"hostname": {deep}}}}}"#);
            assert_eq!(why::<Pod>(&pod), "spec.hostname cannot be read");
        }
    }

    #[test]
    fn what_is_cut_off_or_followed_by_more_is_no_object() {
        let text = r#"{"metadata": {"managedFields": [{"a": ["\"\\"]}], "labels": {"ä": "\u00e4"}, "uid": null},
            "spec": {"containers": [], "priority": -1, "hostNetwork": true}}"#;
        assert!(read::<Pod>(text).is_ok());
        for end in (0..text.len()).filter(|n| text.is_char_boundary(*n)) {
            assert!(read::<Pod>(&text[..end]).is_err(), "{end}");
        }
        for more in ["}", "]", "{}", ",", "\"", "x", "ä", "\\"] {
            assert!(read::<Pod>(&format!("{text}{more}")).is_err() && read::<Pod>(&format!("{more}{text}")).is_err());
        }
        for damage in ["\\ä", "\"", "[", "}", ":", ",", "\0"] {
            for at in (0..text.len()).filter(|n| text.is_char_boundary(*n)) {
                let _ = read::<Pod>(&format!("{}{damage}{}", &text[..at], &text[at..]));
            }
        }
    }

    #[test]
    fn the_place_is_the_innermost() {
        for (text, place) in [
            ("[]", "the object"),
            (r#""s3cret""#, "the object"),
            (r#"{"spec": {"containers": [[1], 2]}}"#, "spec.containers[0]"),
            (r#"{"spec": {"containers": [{"name":"a"},[]]}}"#, "spec.containers[1]"),
            (
                "{\n\"spec\":\n{\"containers\":\n[{\"name\":\"a\",\n\"env\":[{\"name\":\"b\",\n\"value\":5}]}]}}",
                "spec.containers[0].env[0].value",
            ),
            (r#"{"spec": {"containers": [{"name": "\ud800"}]}}"#, "spec.containers[0].name"),
            (r#"{"spec": {"priority": 1e999}}"#, "spec.priority"),
            (r#"{"spec": {"overhead": {"a.b/c": {}}}}"#, "spec.overhead.a.b/c"),
            (r#"{"status": {"startTime": "20260101T000000Z"}}"#, "status.startTime"),
        ] {
            assert_eq!(why::<Pod>(text), format!("{place} cannot be read"), "{text}");
        }
        // a field that has to be there
        assert_eq!(
            why::<Service>(r#"{"status": {"conditions": [{"type": "a"}, 1]}}"#),
            "status.conditions[0] cannot be read"
        );
        assert_eq!(why::<Secret>(r#"{"data": {"a": "YQ==", "b": "s3cret!"}}"#), "data.b cannot be read");
    }
}
