//! Images: references, registries and credentials, the content store, unpacking and mounts.
//!
//! Knows nothing of pods.

mod types;

pub use types::*;

use std::path::{Path, PathBuf};

/// The image store; cheap to clone.
#[derive(Clone)]
pub struct ImageStore {}

impl ImageStore {
    /// Opens (and where needed creates or repairs) the store.
    pub async fn open(_config: StoreConfig) -> Result<Self, ImageError> {
        Err(ImageError::NotFound("stub".into()))
    }
    /// The image a reference (tag, digest or image id) names, if it is whole in the store.
    pub async fn get(&self, _reference: &str) -> Result<Option<Image>, ImageError> {
        Ok(None)
    }
    /// Pulls by tag or digest for this machine's platform. `credentials` are tried for their registry, in order.
    pub async fn pull(&self, _reference: &str, _credentials: &[Credential]) -> Result<Image, ImageError> {
        Err(ImageError::NotFound("stub".into()))
    }
    /// Every whole image.
    pub async fn list(&self) -> Result<Vec<Image>, ImageError> {
        Ok(vec![])
    }
    /// Removes an image by reference or id; layers no other image needs go too.
    pub async fn remove(&self, _reference: &str) -> Result<(), ImageError> {
        Ok(())
    }
    /// Mounts the image's layers under a fresh write layer in `dir` (`dir/upper`, `dir/work`, `dir/rootfs`); returns `dir/rootfs`.
    pub async fn mount(&self, _image: &Image, _dir: &Path) -> Result<PathBuf, ImageError> {
        Err(ImageError::NotFound("stub".into()))
    }
    /// Unmounts and removes `dir`. Safe to repeat.
    pub async fn unmount(&self, _dir: &Path) -> Result<(), ImageError> {
        Ok(())
    }
}
