//! Images: references, registries and credentials, the content store, unpacking and mounts.
//!
//! Knows nothing of pods.

mod manifest;
mod mount;
mod pull;
mod reference;
mod registry;
mod store;
mod types;
mod unpack;
mod xattr;

pub use mount::probe as probe_mount;
pub use store::ImageStore;
pub use types::*;
