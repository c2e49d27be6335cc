//! Garbage collection of images, as the kubelet does it: when the disk is full above a threshold, images that nobody
//! uses go, least recently used first, until it is below another; and those unused for a maximum age, if one is set.

use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;
use tracing::{info, warn};

use super::store::{ImageStore, Seen};
use super::types::{Image, ImageError};

/// How often is looked while nothing is pulled (the kubelet's period).
const PERIOD: Duration = Duration::from_mins(5);

/// When images are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GcPolicy {
    /// Percentage of use at which it begins; 100: never.
    pub high_percent: u8,
    /// Percentage of use it aims at.
    pub low_percent: u8,
    /// Younger images are kept.
    pub min_age: Duration,
    /// Images unused for longer go in any case; zero: none.
    pub max_age: Duration,
}

impl Default for GcPolicy {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, min_age: Duration::from_mins(2), max_age: Duration::ZERO }
    }
}

/// Why a collection did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// What may go is not enough.
    #[error(
        "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found \
         {freed} bytes eligible to free."
    )]
    NotEnough {
        /// Bytes to free.
        wanted: u64,
        /// Bytes freed.
        freed: u64,
    },
    /// The file system says of itself that it has no room at all.
    #[error("invalid capacity 0 on image filesystem")]
    NoCapacity,
    /// The store or its file system failed.
    #[error(transparent)]
    Store(#[from] ImageError),
}

/// Bytes to free on a file system of `capacity` bytes with `available` left; `None` below the high threshold.
fn to_free(capacity: u64, available: u64, policy: &GcPolicy) -> Option<u64> {
    // a file system that reserves blocks for root has less than nothing left for others
    let available = available.min(capacity);
    let used_percent = 100 - (u128::from(available) * 100 / u128::from(capacity.max(1))) as u64;
    if policy.high_percent >= 100 || used_percent < u64::from(policy.high_percent) {
        return None;
    }
    let wanted = (u128::from(capacity) * u128::from(100 - policy.low_percent) / 100) as u64;
    Some(wanted.saturating_sub(available))
}

/// The order in which images go: never one in use, nor one too young.
fn eligible(mut images: Vec<(Image, Seen, bool)>, now: Instant, policy: &GcPolicy) -> Vec<(Image, Seen)> {
    images.retain(|(image, seen, in_use)| {
        let young = now.saturating_duration_since(seen.detected) < policy.min_age;
        !image.pinned && !in_use && !young && seen.used.is_none_or(|u| u < now)
    });
    images.sort_by_key(|(_, seen, _)| (seen.used, seen.detected));
    images.into_iter().map(|(image, seen, _)| (image, seen)).collect()
}

impl ImageStore {
    /// Collects once; returns the bytes of the files that were removed.
    pub async fn collect_garbage(&self, policy: &GcPolicy) -> Result<u64, GcError> {
        let found = self.seen().await?;
        let now = Instant::now();
        let mut images = eligible(found, now, policy);
        let mut total = 0;
        if !policy.max_age.is_zero() {
            let old = |seen: &Seen| now.saturating_duration_since(seen.used.unwrap_or(seen.detected)) > policy.max_age;
            let (gone, kept) = images.into_iter().partition(|(_, seen)| old(seen));
            images = kept;
            total += self.remove_until(gone, u64::MAX, "unused for longer than imageMaximumGCAge").await?;
        }
        let disk = statvfs(self.dir()).map_err(|e| ImageError::Io {
            what: format!("looking at the file system of {}", self.dir().display()),
            source: e.into(),
        })?;
        let unit = crate::machine::usage::block_size(&disk);
        if disk.blocks() == 0 {
            return Err(GcError::NoCapacity);
        }
        let Some(wanted) = to_free(disk.blocks() * unit, disk.blocks_available() * unit, policy) else {
            return Ok(total);
        };
        // layers of no image first: nobody misses them
        let mut freed = self.discard().await?;
        if freed < wanted {
            freed += self.remove_until(images, wanted - freed, "the disk is filling up").await?;
        }
        if freed < wanted { Err(GcError::NotEnough { wanted, freed }) } else { Ok(total + freed) }
    }

    /// Removes every image nobody uses, but those too young, and what is left of others; returns the bytes of the
    /// files that were removed.
    pub async fn remove_unused(&self, policy: &GcPolicy) -> Result<u64, ImageError> {
        let images = eligible(self.seen().await?, Instant::now(), policy);
        Ok(self.discard().await? + self.remove_until(images, u64::MAX, "the node is low on disk space").await?)
    }

    async fn remove_until(&self, images: Vec<(Image, Seen)>, wanted: u64, why: &str) -> Result<u64, ImageError> {
        let mut freed = 0;
        for (image, _) in images {
            if freed >= wanted {
                break;
            }
            match self.remove(&image.id).await {
                Ok(bytes) => {
                    info!(image = image.id, names = ?image.repo_tags, bytes, why, "image removed");
                    freed += bytes;
                }
                // a container or somebody else was quicker
                Err(ImageError::InUse(_) | ImageError::NotFound(_)) => {}
                Err(error) => warn!(image = image.id, %error, "image not removed"),
            }
        }
        Ok(freed)
    }

    /// Collects after pulls and from time to time, for ever; `report` gets an Event's reason and message.
    pub async fn keep_room(self, policy: GcPolicy, report: impl Fn(&str, String)) {
        let mut changes = self.subscribe();
        let mut failed = false;
        loop {
            match self.collect_garbage(&policy).await {
                Ok(_) => failed = false,
                Err(error) => {
                    warn!(%error, "image garbage collection");
                    match error {
                        GcError::NotEnough { .. } => report("FreeDiskSpaceFailed", error.to_string()),
                        GcError::NoCapacity => report("InvalidDiskCapacity", error.to_string()),
                        GcError::Store(_) => {}
                    }
                    // once may be chance
                    if failed {
                        report("ImageGCFailed", error.to_string());
                    }
                    failed = true;
                }
            }
            changes.borrow_and_update();
            // whichever comes first; no writes while idle
            let _ = tokio::time::timeout(PERIOD, changes.changed()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thresholds_are_the_kubelets() {
        let policy = GcPolicy::default();
        assert_eq!(to_free(1000, 160, &policy), None);
        assert_eq!(to_free(1000, 150, &policy), Some(50));
        assert_eq!(to_free(1000, 0, &policy), Some(200));
        assert_eq!(to_free(1000, 0, &GcPolicy { high_percent: 100, ..policy }), None);
    }

    #[test]
    fn least_recently_used_goes_first_and_what_is_used_or_young_stays() {
        let now = Instant::now() + Duration::from_hours(1);
        let ago = |minutes: u64| now.checked_sub(Duration::from_mins(minutes));
        let image = |id: &str, detected: u64, used: Option<u64>, in_use: bool| {
            let seen = Seen { detected: ago(detected).unwrap(), used: used.and_then(ago) };
            (Image { id: id.to_owned(), ..Image::default() }, seen, in_use)
        };
        let images = vec![
            image("recent", 50, Some(5), false),
            image("in use", 50, Some(50), true),
            image("young", 1, None, false),
            image("old", 50, Some(40), false),
            image("never used", 50, None, false),
        ];
        let order: Vec<_> = eligible(images, now, &GcPolicy::default()).into_iter().map(|(i, _)| i.id).collect();
        assert_eq!(order, ["never used", "old", "recent"]);
    }
}
