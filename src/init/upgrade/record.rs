//! The last upgrade and what came of it, on the data partition.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files;
use crate::init::Failure;

/// How far an upgrade has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It was put on the card, and has to show that it works.
    Trying,
    /// It works, and is what the board starts.
    Confirmed,
    /// It does not: the system of before is what the board starts.
    Failed,
}

/// The last upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Where the image is from.
    pub image: String,
    /// Its sha256 in hexadecimal digits.
    pub sha256: String,
    /// The folder it was put into.
    pub set: String,
    /// What the image says it is.
    pub system: String,
    /// How far it has come.
    pub state: State,
    /// Why it failed.
    #[serde(default)]
    pub reason: String,
    /// The sha256 of the image the Node's annotation asked for last, of those that were put on the card.
    #[serde(default)]
    pub asked: Option<String>,
    /// The cluster heard of it.
    #[serde(default)]
    pub told: bool,
}

fn path(folder: &Path) -> PathBuf {
    folder.join("record.json")
}

impl Record {
    /// The record in `folder`, if there is one that can be read.
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path(folder)).ok()?).ok()
    }

    /// Writes it, for good.
    pub fn write(&self, folder: &Path) -> Result<(), Failure> {
        let path = path(folder);
        let write = || {
            files::dir(folder, 0o700)?;
            files::write_changed(&path, &serde_json::to_vec(self)?, 0o600)?;
            files::sync_dir(folder)
        };
        Ok(write().map_err(|e| format!("writing {}: {e}", path.display()))?)
    }

    /// Lets the annotation ask for any image again.
    pub fn forget_asked(folder: &Path) -> Result<(), Failure> {
        match Self::read(folder).filter(|record| record.asked.is_some()) {
            Some(record) => Self { asked: None, ..record }.write(folder),
            None => Ok(()),
        }
    }
}
