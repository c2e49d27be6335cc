//! Images: references, registries and credentials, the content store, unpacking and mounts.
//!
//! Knows nothing of pods.

mod access;
mod archive;
mod blobs;
mod challenge;
mod client;
mod compression;
mod credentials;
mod digest;
mod download;
mod endpoints;
mod export;
mod flights;
mod gc;
mod guard;
mod hashed;
mod implied;
mod import;
mod index;
mod layers;
mod manifest;
mod mount;
mod pieces;
mod platform;
mod providers;
mod pull;
mod reference;
mod registry;
mod resolve;
mod retar;
mod shared_sync;
mod sink;
mod slots;
mod store;
mod told;
mod transfer;
mod tree;
mod types;
mod unpack;
mod volumes;
mod xattr;

pub use access::{Needs, Origin, Verification};
pub use compression::Compression;
pub use credentials::{Credential, docker_config, node_config_files};
pub use endpoints::Registries;
pub use export::{Export, Exported};
pub use gc::{GcError, GcPolicy};
pub use mount::{Users, probe as probe_mount};
pub use pieces::Piece;
pub use reference::registry_of;
pub use resolve::Use;
pub use store::{ImageStore, PULLS};
pub use transfer::Imported;
pub use types::*;
pub use volumes::{VOLUMES, places as volume_places};
