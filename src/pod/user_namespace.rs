//! Which ids of the host the users of a pod are, where it has a user namespace of its own (`hostUsers: false`).
//!
//! Every such pod has a range of 65536 that no other pod has, as from the kubelet: of those that `/etc/subuid` and
//! `/etc/subgid` give the user `kubelet`, else of all but the first. It is kept beside the pod's checkpoint, in the
//! kubelet's format, for its files may outlive agent and sandbox.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use tracing::warn;

use super::worker::Worker;
use crate::files::{self, write_changed};
use crate::image::Users;
use crate::runtime::IdRange;

/// Ids of a pod.
const IDS: u32 = 1 << 16;
/// In a pod's folder.
const FILE: &str = "userns";
/// Whose subordinate ids are those of pods.
const USER: &str = "kubelet";

/// The ranges of a node.
pub struct IdRanges {
    pods_dir: PathBuf,
    /// Number of the first range, and how many there are; an error where the settings of the machine are wrong.
    available: Result<(u32, u32), String>,
    /// Number of the range of each pod.
    taken: Mutex<BTreeMap<String, u32>>,
}

impl IdRanges {
    /// Of a node of at most `max_pods`, with those that its pods were given before.
    pub fn open(pods_dir: PathBuf, max_pods: u32) -> Self {
        let read = |file: &str| match fs::read_to_string(file) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(String::new()),
            read => read.map_err(|e| format!("reading {file}: {e}")),
        };
        let files = read("/etc/subuid").and_then(|users| Ok((users, read("/etc/subgid")?)));
        let available = files.and_then(|(users, groups)| available(&users, &groups, max_pods));
        if let Err(error) = &available {
            warn!(%error, "pods with hostUsers: false cannot run");
        }
        let mut taken = BTreeMap::new();
        for dir in fs::read_dir(&pods_dir).into_iter().flatten().flatten() {
            if let (Ok(uid), Some(ids)) = (dir.file_name().into_string(), load(&dir.path())) {
                taken.insert(uid, ids.first / IDS);
            }
        }
        Self { pods_dir, available, taken: Mutex::new(taken) }
    }

    /// The range of a pod, which it keeps until [`IdRanges::release`].
    pub fn take(&self, uid: &str) -> Result<IdRange, String> {
        let (first, count) = self.available.clone()?;
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let number = match taken.get(uid) {
            Some(number) => *number,
            None => (first..first + count)
                .find(|n| !taken.values().any(|t| t == n))
                .ok_or_else(|| format!("all {count} ranges of user ids are taken by other pods"))?,
        };
        let ids = IdRange { first: number * IDS, count: IDS };
        let mapping = json!([{"hostId": ids.first, "containerId": 0, "length": ids.count}]);
        let file = self.pods_dir.join(uid).join(FILE);
        let text = json!({"uidMappings": mapping, "gidMappings": mapping}).to_string();
        let kept = files::dir_kept(&self.pods_dir.join(uid), 0o750)
            .and_then(|()| write_changed(&file, text.as_bytes(), 0o600));
        kept.map_err(|e| format!("writing {}: {e}", file.display()))?;
        taken.insert(uid.to_owned(), number);
        Ok(ids)
    }

    /// The pod and its files are gone.
    pub fn release(&self, uid: &str) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

fn load(pod_dir: &Path) -> Option<IdRange> {
    let kept: Value = serde_json::from_slice(&fs::read(pod_dir.join(FILE)).ok()?).ok()?;
    let first = u32::try_from(kept["uidMappings"][0]["hostId"].as_u64()?).ok()?;
    Some(IdRange { first, count: IDS })
}

/// The first range and their number, by the contents of `/etc/subuid` and `/etc/subgid`.
fn available(users: &str, groups: &str, max_pods: u32) -> Result<(u32, u32), String> {
    let of = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| line.trim().strip_prefix(USER)?.strip_prefix(':')).map(str::to_owned).collect()
    };
    let (users, groups) = (of(users), of(groups));
    if users.is_empty() && groups.is_empty() {
        return Ok((1, u32::MAX / IDS));
    }
    let wrong = |why: &str| Err(format!("/etc/subuid and /etc/subgid, user {USER}: {why}"));
    let ([ids], true) = (users.as_slice(), users == groups) else {
        return wrong("one line in each with the same ids is wanted");
    };
    let numbers = ids.split_once(':').and_then(|(first, count)| Some((first.parse().ok()?, count.parse().ok()?)));
    let Some((first, count)): Option<(u32, u32)> = numbers else { return wrong("the ids are no numbers") };
    if first < IDS || first % IDS != 0 || count % IDS != 0 {
        return wrong(&format!("{first} and {count} are to be multiples of {IDS}"));
    }
    if count / IDS < max_pods {
        return wrong(&format!("{count} ids are not enough for {max_pods} pods of {IDS} each"));
    }
    Ok((first / IDS, (count / IDS).min(u32::MAX / IDS - first / IDS + 1)))
}

impl Worker {
    /// The ids of the pod's users; `None` when they are the host's.
    pub(super) fn take_ids(&self) -> Result<Option<IdRange>, String> {
        let wanted = self.pod.spec.as_ref().and_then(|s| s.host_users) == Some(false);
        wanted.then(|| self.shared.id_ranges.take(&self.uid)).transpose()
    }

    /// The users that files of the running sandbox belong to; `None` when they are the host's.
    pub(super) fn users(&self) -> Option<Users> {
        let sandbox = self.sandbox.as_ref()?;
        let root = sandbox.ids?.first;
        Some(Users { namespace: self.shared.runtime.user_namespace(&sandbox.id)?, root })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ids_are_used_where_they_will_do() {
        assert_eq!(available("", "", 110), Ok((1, 65535)));
        assert_eq!(available("pi:100000:65536\n", "", 110), Ok((1, 65535)));
        let good = "pi:100000:65536\nkubelet:131072:13107200\n";
        assert_eq!(available(good, good, 110), Ok((2, 200)));
        for (users, groups) in [
            (good, ""),
            (good, "kubelet:65536:13107200\n"),
            ("kubelet:100000:13107200\n", "kubelet:100000:13107200\n"),
            ("kubelet:0:13107200\n", "kubelet:0:13107200\n"),
            ("kubelet:65536:65536\n", "kubelet:65536:65536\n"),
            ("kubelet:x:y\n", "kubelet:x:y\n"),
        ] {
            assert!(available(users, groups, 110).unwrap_err().contains("/etc/subuid"), "{users} {groups}");
        }
    }

    #[test]
    fn ranges_are_kept_over_restarts_and_used_again() {
        let dir = std::env::temp_dir().join(format!("pikelet-ids-{}", std::process::id()));
        let open = || IdRanges { available: Ok((1, 2)), ..IdRanges::open(dir.clone(), 110) };
        let ranges = open();
        let (a, b) = (ranges.take("a").unwrap(), ranges.take("b").unwrap());
        assert_eq!([a.first, b.first, b.count], [65536, 131_072, 65536]);
        assert!(ranges.take("c").unwrap_err().contains("all 2 ranges"));
        let again = open();
        assert_eq!((again.take("b").unwrap(), again.take("a").unwrap()), (b, a));
        fs::remove_dir_all(dir.join("a")).unwrap();
        again.release("a");
        assert_eq!(again.take("c").unwrap(), a);
        fs::remove_dir_all(dir).unwrap();
    }
}
