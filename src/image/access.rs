//! Which pods may use an image that is here already: those that could pull it.
//!
//! With the store is kept which logins each image was pulled with (`pulled/<hex of its id>.json`, never the logins
//! themselves). Rules and names: the kubelet's `imagePullCredentialsVerificationPolicy` and `ImagePulledRecord`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::credentials::Credential;
use super::digest::hex;
use super::hashed::digest_of;
use crate::files::{self, Durability};

/// Secrets of one image up to which another that holds the same login is noted without a pull (the kubelet's).
const NOTED: usize = 100;

/// Where a login comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The node's own files and programs: any pod may use what it pulls.
    #[default]
    Node,
    /// A pull secret.
    Secret {
        /// Its uid.
        uid: String,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A person at the node: the image counts as brought there, like one that was imported.
    Hand,
}

/// `imagePullCredentialsVerificationPolicy`: the images whose users need no login.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Verification {
    /// All.
    NeverVerify,
    /// Those that no pod had pulled: imported, or pulled by hand.
    #[default]
    NeverVerifyPreloadedImages,
    /// Those of these names; `.../*` at an end stands for all below.
    NeverVerifyAllowlistedImages(Vec<String>),
    /// None.
    AlwaysVerify,
}

impl Verification {
    /// From the settings of those names.
    pub fn parse(policy: Option<&str>, allowlist: &[String]) -> Result<Self, String> {
        let parsed = match policy {
            None | Some("" | "NeverVerifyPreloadedImages") => Self::NeverVerifyPreloadedImages,
            Some("NeverVerify") => Self::NeverVerify,
            Some("AlwaysVerify") => Self::AlwaysVerify,
            Some("NeverVerifyAllowlistedImages") => {
                allowlist.iter().try_for_each(|pattern| check_pattern(pattern))?;
                return Ok(Self::NeverVerifyAllowlistedImages(allowlist.to_vec()));
            }
            Some(other) => {
                return Err(format!(
                    "imagePullCredentialsVerificationPolicy {other:?}: it is NeverVerify, NeverVerifyPreloadedImages, \
                     NeverVerifyAllowlistedImages or AlwaysVerify"
                ));
            }
        };
        if allowlist.is_empty() {
            return Ok(parsed);
        }
        Err("preloadedImagesVerificationAllowlist needs imagePullCredentialsVerificationPolicy: \
             NeverVerifyAllowlistedImages"
            .to_owned())
    }

    /// As the settings spell it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NeverVerify => "NeverVerify",
            Self::NeverVerifyPreloadedImages => "NeverVerifyPreloadedImages",
            Self::NeverVerifyAllowlistedImages(_) => "NeverVerifyAllowlistedImages",
            Self::AlwaysVerify => "AlwaysVerify",
        }
    }

    /// Whether who uses the image must have a login; `reference` as the pod has it, `pulled`: pods have pulled it.
    fn needs_login(&self, reference: &str, pulled: bool) -> bool {
        match self {
            Self::NeverVerify => false,
            Self::NeverVerifyPreloadedImages => pulled,
            Self::NeverVerifyAllowlistedImages(patterns) => {
                let name = without_version(reference);
                !patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
                    Some(prefix) => name.starts_with(prefix),
                    None => name == pattern,
                })
            }
            Self::AlwaysVerify => true,
        }
    }
}

/// A reference without tag and digest.
fn without_version(reference: &str) -> &str {
    let name = reference.split_once('@').map_or(reference, |(name, _)| name);
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    }
}

fn check_pattern(pattern: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("preloadedImagesVerificationAllowlist {pattern:?}: {why}"));
    let name = pattern.strip_suffix("/*").unwrap_or(pattern);
    if name.is_empty() {
        return wrong("a registry or an image is wanted");
    }
    if pattern != pattern.trim() {
        return wrong("there are blanks around it");
    }
    if name.contains('*') {
        return wrong("a * can only be all behind the last slash");
    }
    // a registry may have a port
    if name == pattern && without_version(name) != name {
        return wrong("tags and digests cannot be told apart here");
    }
    Ok(())
}

/// A secret an image was pulled with, or could have been.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Granted {
    namespace: String,
    name: String,
    uid: String,
    credential_hash: String,
}

impl Granted {
    fn same_secret(&self, other: &Self) -> bool {
        (&self.namespace, &self.name, &self.uid) == (&other.namespace, &other.name, &other.uid)
    }

    /// `None`: the login is not a secret's.
    fn of(login: &Credential) -> Option<Self> {
        let Origin::Secret { uid, namespace, name } = &login.origin else { return None };
        let parts = serde_json::json!([
            login.registry,
            login.username,
            login.password,
            login.identity_token,
            login.registry_token
        ]);
        let credential_hash = digest_of(parts.to_string().as_bytes());
        Some(Self { namespace: namespace.clone(), name: name.clone(), uid: uid.clone(), credential_hash })
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Access {
    /// Any pod may use it.
    node_pods_accessible: bool,
    kubernetes_secrets: Vec<Granted>,
}

impl Access {
    fn add(&mut self, granted: Option<Granted>) {
        match granted {
            _ if self.node_pods_accessible => {}
            None => *self = Self { node_pods_accessible: true, kubernetes_secrets: Vec::new() },
            Some(granted) => {
                self.kubernetes_secrets.retain(|known| !known.same_secret(&granted));
                self.kubernetes_secrets.push(granted);
                self.kubernetes_secrets.sort();
            }
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Record {
    image_ref: String,
    /// By the name it was pulled by, without tag and digest.
    credential_mapping: BTreeMap<String, Access>,
}

/// What is known before the pod's logins are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Any pod may use the image.
    Nothing,
    /// One of the logins it was pulled with: [`Records::granted`].
    Login,
    /// A pull, which shows whether the pod may.
    Pull,
}

/// The records of a store.
#[derive(Debug)]
pub struct Records {
    dir: PathBuf,
    policy: Verification,
    writing: Mutex<()>,
}

impl Records {
    /// Those of the store in `store`.
    pub fn open(store: &Path, policy: Verification) -> io::Result<Self> {
        let dir = store.join("pulled");
        files::dir(&dir, 0o700)?;
        Ok(Self { dir, policy, writing: Mutex::default() })
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{}.json", hex(id)))
    }

    /// One that is not understood says that pods pulled the image, and not which.
    fn read(&self, id: &str) -> io::Result<Option<Record>> {
        match fs::read(self.path(id)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text).unwrap_or_default())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Record)) -> io::Result<()> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut record = self.read(id)?.unwrap_or_default();
        let before = serde_json::to_vec(&record)?;
        id.clone_into(&mut record.image_ref);
        change(&mut record);
        let text = serde_json::to_vec(&record)?;
        if text == before {
            return Ok(());
        }
        files::write(&self.path(id), &text, 0o600, Durability::Synced)?;
        files::sync_dir(&self.dir)
    }

    /// Notes that an image was pulled by `name` (without tag and digest) with that login, or none. To be called before the
    /// image can be found: after a power cut it must not be there for everybody.
    pub fn note(&self, id: &str, name: &str, login: Option<&Credential>) -> io::Result<()> {
        if login.is_some_and(|login| login.origin == Origin::Hand) {
            return Ok(());
        }
        let granted = login.and_then(Granted::of);
        self.change(id, |record| record.credential_mapping.entry(name.to_owned()).or_default().add(granted))
    }

    /// The image is gone.
    pub fn forget(&self, id: &str) {
        if let Err(error) = fs::remove_file(self.path(id))
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(image = id, %error, "record of its logins not removed");
        }
    }

    /// What a pod needs to use the image `id` as `reference`, of which `name` is all but tag and digest.
    pub fn needs(&self, id: &str, reference: &str, name: &str) -> Needs {
        let record = match self.read(id) {
            Ok(record) => record,
            Err(error) => {
                warn!(image = id, %error, "record of its logins not read: it is asked for at its registry");
                return Needs::Pull;
            }
        };
        if !self.policy.needs_login(reference, record.is_some()) {
            return Needs::Nothing;
        }
        match record.and_then(|record| record.credential_mapping.get(name).cloned()) {
            Some(access) if access.node_pods_accessible => Needs::Nothing,
            Some(access) if !access.kubernetes_secrets.is_empty() => Needs::Login,
            _ => Needs::Pull,
        }
    }

    /// Whether one of those logins is one the image was pulled with: the same login, or the same secret with another.
    pub fn granted(&self, id: &str, name: &str, logins: &[Credential]) -> bool {
        let record = self.read(id).ok().flatten().unwrap_or_default();
        let Some(access) = record.credential_mapping.get(name) else { return false };
        for own in logins.iter().filter_map(Granted::of) {
            let same_login = |known: &Granted| known.credential_hash == own.credential_hash;
            let known = &access.kubernetes_secrets;
            let found = known.iter().any(|k| same_login(k) || k.same_secret(&own));
            if !found {
                continue;
            }
            if !known.contains(&own)
                && known.len() < NOTED
                && let Err(error) = self.change(id, |record| {
                    record.credential_mapping.entry(name.to_owned()).or_default().add(Some(own));
                })
            {
                warn!(image = id, %error, "record of its logins not written");
            }
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::folder::Folder;
    use std::os::unix::fs::PermissionsExt;

    const ID: &str = "sha256:aaaa";

    fn login(secret: &str, password: &str) -> Credential {
        let origin = Origin::Secret { uid: format!("u-{secret}"), namespace: "n".into(), name: secret.into() };
        Credential {
            registry: "r".into(),
            username: "u".into(),
            password: password.into(),
            origin,
            ..Credential::default()
        }
    }

    #[test]
    fn who_could_pull_an_image_may_use_it() {
        let folder = Folder::new();
        let open = || Records::open(folder.path(), Verification::default()).unwrap();
        let records = open();
        assert_eq!(records.needs(ID, "r/app:1", "r/app"), Needs::Nothing, "nobody pulled it: it was there before");
        records.note(ID, "r/app", Some(&login("a", "1"))).unwrap();
        let mode = fs::metadata(records.path(ID)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode, fs::read_to_string(records.path(ID)).unwrap().contains("\"1\"")), (0o600, false));
        let records = open();
        assert_eq!(records.needs(ID, "r/app:1", "r/app"), Needs::Login);
        assert_eq!(records.needs(ID, "r/copy:1", "r/copy"), Needs::Pull, "by another name it may be another's");
        assert!(!records.granted(ID, "r/app", &[]) && !records.granted(ID, "r/app", &[login("b", "2")]));
        let node = Credential { origin: Origin::Node, ..login("a", "1") };
        assert!(!records.granted(ID, "r/app", &[node]));
        // another secret with the same login, which counts by itself from then on; a secret with a new login
        assert!(records.granted(ID, "r/app", &[login("b", "1")]));
        assert!(records.granted(ID, "r/app", &[login("b", "3")]) && records.granted(ID, "r/app", &[login("c", "3")]));
        assert!(!records.granted(ID, "r/copy", &[login("a", "1")]));
        records.note(ID, "r/app", None).unwrap();
        assert_eq!(records.needs(ID, "r/app:1", "r/app"), Needs::Nothing, "anybody can pull it");
        records.note(ID, "r/app", Some(&login("a", "1"))).unwrap();
        assert_eq!(records.needs(ID, "r/app:1", "r/app"), Needs::Nothing);
        records.forget(ID);
        records.forget(ID);
        let hand = Credential { origin: Origin::Hand, ..login("a", "1") };
        records.note(ID, "r/app", Some(&hand)).unwrap();
        assert!(!records.path(ID).exists());
        fs::write(records.path(ID), "\0\0").unwrap();
        assert_eq!(records.needs(ID, "r/app:1", "r/app"), Needs::Pull, "what is not understood lets nobody in");
    }

    #[test]
    fn policies_are_the_kubelets() {
        let list = ["r.example/base/*", "r.example:5000/app"].map(str::to_owned);
        let parse = |policy: Option<&'static str>, list: &[String]| Verification::parse(policy, list);
        let needs =
            |policy: &'static str, reference, pulled| parse(Some(policy), &[]).unwrap().needs_login(reference, pulled);
        assert_eq!(parse(None, &[]), Ok(Verification::NeverVerifyPreloadedImages));
        assert_eq!([needs("NeverVerify", "r/x", true), needs("AlwaysVerify", "r/x", false)], [false, true]);
        assert_eq!([true, false].map(|p| needs("NeverVerifyPreloadedImages", "r/x", p)), [true, false]);
        let listed = parse(Some("NeverVerifyAllowlistedImages"), &list).unwrap();
        for reference in
            ["r.example/base/x:1", "r.example/base/x/y", "r.example:5000/app@sha256:1", "r.example:5000/app:2"]
        {
            assert!(!listed.needs_login(reference, true), "{reference}");
        }
        for reference in ["r.example/base", "r.example/basement", "r.example:5000/app/x", "r.example/app"] {
            assert!(listed.needs_login(reference, false), "{reference}");
        }
        for wrong in ["", "/*", " r/*", "r/*/x", "r/x:1", "r/x@sha256:1"] {
            assert!(parse(Some("NeverVerifyAllowlistedImages"), &[wrong.to_owned()]).is_err(), "{wrong:?}");
        }
        assert!(parse(None, &list).is_err() && parse(Some("Never"), &[]).is_err());
    }
}
