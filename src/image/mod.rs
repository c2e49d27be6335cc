//! Images: references, registries and credentials, the content store, unpacking and mounts.
//!
//! Knows nothing of pods.

mod credentials;
mod digest;
mod download;
mod durable;
mod endpoints;
mod flights;
mod gc;
mod hashed;
mod index;
mod layers;
mod manifest;
mod mount;
mod pull;
mod reference;
mod registry;
mod store;
mod types;
mod unpack;
mod xattr;

pub use credentials::{Credential, docker_config, node_config_files};
pub use endpoints::Registries;
pub use gc::{GcError, GcPolicy};
pub use mount::probe as probe_mount;
pub use reference::registry_of;
pub use store::{ImageStore, PULLS};
pub use types::*;
