//! What pods of this node use of the API, kept on disk for a start with no API server: objects, tokens, the Services'
//! variables and the node's range of addresses (`<root>/objects`, open to root alone).
//!
//! Written when it changes only. `keepObjects: false` turns it off.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;

use crate::files::{self, sync_dir, write_changed};
use crate::json;

/// The folder; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    dir: Option<Arc<PathBuf>>,
}

/// What a kept thing is filed under: its kind, whose it is (a namespace or the uid of a pod) and its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot<'a>(pub &'a str, pub &'a str, pub &'a str);

impl Slot<'_> {
    /// `None` for names no object has.
    fn file(&self, dir: &Path) -> Option<PathBuf> {
        let plain = |part: &str| !part.contains(['/', '\0', '_']) && part.len() < 254;
        let Self(kind, whose, name) = self;
        let fits = plain(whose) && plain(name) && whose.len() + name.len() < 200;
        fits.then(|| dir.join(format!("{kind}_{whose}_{name}.json")))
    }
}

impl Kept {
    /// Opens the folder, and makes it where it is not there yet.
    ///
    /// # Errors
    /// When it can't be made, or is open to others.
    pub fn open(dir: &Path) -> io::Result<Self> {
        files::dir(dir, 0o700)?;
        Ok(Self { dir: Some(Arc::new(dir.to_owned())) })
    }

    /// Keeps nothing, and removes what was kept.
    pub fn none(dir: &Path) -> Self {
        if let Err(error) = files::remove_tree(dir) {
            warn!(dir = %dir.display(), %error, "objects that are not to be kept were not removed");
        }
        Self::default()
    }

    /// Files a thing; one that is filed so already costs no write. What fails is said: the next start may lack it.
    pub async fn put<T: Serialize>(&self, slot: Slot<'_>, thing: &T) {
        let Some((dir, file)) = self.dir.clone().and_then(|dir| Some((dir.clone(), slot.file(&dir)?))) else { return };
        let written = match serde_json::to_vec(thing) {
            Ok(text) => {
                let write = move || {
                    write_changed(&file, &text, 0o600).and_then(|new| if new { sync_dir(&dir) } else { Ok(()) })
                };
                tokio::task::spawn_blocking(write).await.unwrap_or_else(|e| Err(io::Error::other(e)))
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = written {
            warn!(?slot, %error, "not kept for a start with no API server");
        }
    }

    /// The thing filed there.
    pub fn get<T: DeserializeOwned>(&self, slot: Slot<'_>) -> Option<T> {
        let text = fs::read(slot.file(self.dir.as_ref()?)?).ok()?;
        let read = json::from_slice(&text);
        // not what is wrong there: it may be a secret's
        read.inspect_err(|error| {
            warn!(?slot, line = error.line(), column = error.column(), "what was kept is not readable");
        })
        .ok()
    }

    /// Forgets a thing.
    pub fn remove(&self, slot: Slot<'_>) {
        let Some(file) = self.dir.as_ref().and_then(|dir| slot.file(dir)) else { return };
        forget(&file);
    }

    /// Forgets what `wanted` does not want.
    pub fn retain(&self, wanted: impl Fn(Slot<'_>) -> bool) {
        let entries = self.dir.iter().filter_map(|dir| fs::read_dir(dir.as_path()).ok()).flatten().flatten();
        for entry in entries {
            let name = entry.file_name();
            let parts =
                name.to_str().and_then(|n| n.strip_suffix(".json")).map(|n| n.splitn(3, '_').collect::<Vec<_>>());
            if let Some([kind, whose, name]) = parts.as_deref()
                && !wanted(Slot(kind, whose, name))
            {
                forget(&entry.path());
            }
        }
    }

    /// Forgets all that is filed under `whose`.
    pub fn remove_all(&self, whose: &str) {
        self.retain(|slot| slot.1 != whose);
    }
}

fn forget(file: &Path) {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(file = %file.display(), %error, "kept object not removed");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn things_are_kept_and_forgotten() {
        let dir = std::env::temp_dir().join(format!("pikelet-kept-{}", std::process::id()));
        let kept = Kept::open(&dir).unwrap();
        kept.put(Slot("secret", "ns", "a.b"), &"text").await;
        kept.put(Slot("token", "uid", "x"), &1).await;
        assert_eq!(kept.get::<String>(Slot("secret", "ns", "a.b")).as_deref(), Some("text"));
        assert_eq!(kept.get::<String>(Slot("secret", "ns", "../a")), None);
        assert_eq!(fs::metadata(&dir).unwrap().permissions(), std::os::unix::fs::PermissionsExt::from_mode(0o40700));
        kept.put(Slot("secret", "ns", "b"), &"text").await;
        kept.retain(|slot| slot != Slot("secret", "ns", "b"));
        assert_eq!(kept.get::<String>(Slot("secret", "ns", "b")), None);
        kept.remove_all("uid");
        assert_eq!(kept.get::<u8>(Slot("token", "uid", "x")), None);
        kept.remove(Slot("secret", "ns", "a.b"));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        Kept::none(&dir).put(Slot("token", "uid", "x"), &1).await;
        assert!(!dir.exists());
    }
}
