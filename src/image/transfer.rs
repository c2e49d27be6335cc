//! Archives into the store: one by one, or all of a folder at start (boards without a network).

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::archive;
use super::import;
use super::pieces::{Piece, Pieces};
use super::platform::Machine;
use super::store::ImageStore;
use super::types::ImageError;
use crate::files::{sync_dir, write_changed};

/// Which archives of the folder are in the store.
const RECORD: &str = "imported.json";
/// Times between looks at archives that could not be imported, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_mins(1);
const LAST_PAUSE: Duration = Duration::from_hours(1);
/// What archives are called, as k3s has them.
const ENDINGS: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"];

/// An image of an archive.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Imported {
    /// Its name in the store; in the archive if it is not there.
    pub name: String,
    /// Its id, or why it is not in the store.
    pub result: Result<String, String>,
}

/// What an archive was when its images came into the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    size: u64,
    /// Nanoseconds since the epoch.
    modified: u64,
    images: Vec<String>,
}

impl ImageStore {
    /// Imports an archive (OCI or docker's, also as gzip or zstd) that comes in pieces. `name` is for an archive of one
    /// image, or of images that have only a tag.
    pub async fn import(
        &self,
        archive: mpsc::Receiver<Piece>,
        name: Option<String>,
    ) -> Result<Vec<Imported>, ImageError> {
        self.import_from(Pieces::new(archive), name, false).await
    }

    async fn import_from(
        &self,
        from: impl Read + Send + 'static,
        wanted: Option<String>,
        pinned: bool,
    ) -> Result<Vec<Imported>, ImageError> {
        let _slot = self.pull_slot("").await?;
        let (before, known) = self.inventory().await?;
        let sink = self.sink().clone();
        let read = tokio::task::spawn_blocking(move || {
            let contents = archive::read(from, &sink, &known)?;
            Ok((import::images(&contents, &Machine::here())?, contents.pins))
        });
        let result = match read.await.map_err(|e| e.to_string()).flatten() {
            Ok((found, pins)) => {
                let named = self.name_all(found, wanted.as_deref(), pinned).await;
                drop(pins);
                named
            }
            Err(message) => Err(ImageError::Archive { message }),
        };
        // layers of other platforms, or of no image
        if let Err(error) = self.tidy(before).await {
            warn!(%error, "unused layers of an archive are left over");
        }
        result
    }

    async fn name_all(
        &self,
        found: Vec<import::Found>,
        wanted: Option<&str>,
        pinned: bool,
    ) -> Result<Vec<Imported>, ImageError> {
        if found.is_empty() {
            return Err(ImageError::Archive { message: "the archive has no images".to_owned() });
        }
        let date: String = jiff::Timestamp::now().to_string().chars().take(10).collect();
        let only = found.len() == 1;
        let mut all = Vec::new();
        for (written, image) in found {
            let name = import::name(written.as_deref(), wanted, only, &date);
            let shown = || written.clone().unwrap_or_else(|| "<none>".to_owned());
            all.push(match (name, image) {
                (Ok(name), Ok(mut pulled)) => {
                    pulled.pinned = pinned;
                    let id = pulled.config_digest.clone();
                    self.add(name.clone(), pulled).await?;
                    self.touch(&id);
                    info!(image = name, id, "imported");
                    Imported { name, result: Ok(id) }
                }
                (name, Err(error)) => Imported { name: name.unwrap_or_else(|_| shown()), result: Err(error) },
                (Err(error), Ok(_)) => Imported { name: shown(), result: Err(error) },
            });
        }
        Ok(all)
    }

    /// Imports the archives of the configured folder that are new or changed since, or whose images are gone; the images
    /// are never garbage. One that cannot be does not keep the others away: `report` gets an Event's reason and message.
    /// Returns whether there was such a one.
    pub async fn import_folder(&self, report: impl Fn(&str, String)) -> bool {
        let some = AtomicBool::new(false);
        if let Some(dir) = self.import_dir() {
            let failed = |message: String| {
                warn!(message, "image archive not imported");
                report("ImageImportFailed", message);
                some.store(true, Ordering::Relaxed);
            };
            match archives(&dir) {
                Ok(found) => self.import_each(found, failed).await,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => failed(format!("{}: {error}", dir.display())),
            }
        }
        self.settle();
        some.into_inner()
    }

    /// The same, until all are there: the disk may have been full.
    pub async fn keep_folder(&self, report: impl Fn(&str, String)) {
        let mut pause = FIRST_PAUSE;
        while self.import_folder(&report).await {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    async fn import_each(&self, found: Vec<PathBuf>, failed: impl Fn(String)) {
        let record = self.dir().join(RECORD);
        let old: BTreeMap<String, Seen> =
            fs::read(&record).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let mut seen = BTreeMap::new();
        for path in found {
            let file = path.display().to_string();
            match self.import_file(&path, old.get(&file)).await {
                Ok(now) => drop(seen.insert(file, now)),
                Err(message) => failed(format!("{file}: {message}")),
            }
            // after each: a cut does not make it begin again
            if seen != old && !seen.is_empty() {
                let merged: BTreeMap<_, _> = old.iter().chain(&seen).collect();
                if let Err(error) = self.remember(&record, &merged) {
                    warn!(file = %record.display(), %error, "not written: archives will be read again at the next start");
                }
            }
        }
    }

    fn remember(&self, record: &Path, seen: &BTreeMap<&String, &Seen>) -> io::Result<()> {
        write_changed(record, &serde_json::to_vec(seen)?, 0o600)?;
        sync_dir(self.dir())
    }

    async fn import_file(&self, path: &Path, before: Option<&Seen>) -> Result<Seen, String> {
        let meta = fs::metadata(path).map_err(|e| e.to_string())?;
        let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH).duration_since(UNIX_EPOCH).unwrap_or_default();
        let (size, modified) = (meta.len(), modified.as_nanos() as u64);
        if let Some(before) = before.filter(|b| b.size == size && b.modified == modified)
            && self.has_all(&before.images).await
        {
            return Ok(before.clone());
        }
        info!(file = %path.display(), bytes = size, "importing");
        let file = fs::File::open(path).map_err(|e| e.to_string())?;
        let imported = self.import_from(file, None, true).await.map_err(|e| e.to_string())?;
        let mut errors = Vec::new();
        let mut images = Vec::new();
        for image in imported {
            match image.result {
                Ok(_) => images.push(image.name),
                Err(error) => errors.push(format!("image {}: {error}", image.name)),
            }
        }
        if errors.is_empty() { Ok(Seen { size, modified, images }) } else { Err(errors.join("; ")) }
    }

    async fn has_all(&self, images: &[String]) -> bool {
        for image in images {
            if !matches!(self.get(image).await, Ok(Some(_))) {
                return false;
            }
        }
        true
    }
}

/// The archives of a folder, in the order of their names.
fn archives(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if ENDINGS.iter().any(|e| name.ends_with(e)) && path.is_file() {
            found.push(path);
        } else {
            info!(file = %path.display(), "not an image archive: passed over (.tar, .tar.gz, .tgz, .tar.zst, .tzst)");
        }
    }
    found.sort();
    Ok(found)
}
