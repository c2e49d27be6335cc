//! pikelet: kubelet, container runtime, image store and pod network in one binary.
//!
//! Each module is a room of `docs/architecture.md` and says in its header what it owns. Rooms talk to each other
//! through the small typed handles they export, never through each other's files.

// tests make what they like; the lint is for what is released
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod agent;
pub mod allocator;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod crypto;
pub mod errors;
mod files;
pub mod hex;
pub mod image;
pub mod init;
mod json;
pub mod machine;
pub mod membership;
pub mod metrics;
mod mount_tree;
pub mod network;
mod node_selector;
pub mod pki;
pub mod pod;
pub mod quantity;
pub mod runtime;
pub mod server;
pub mod service;
pub mod volume;
