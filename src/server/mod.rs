//! What the agent serves: the kubelet API with authentication and authorization, and its own root-only socket.
//!
//! Knows nothing of libcontainer: it asks the rooms that own what is asked for.

pub mod access;
mod admission;
mod answers;
pub mod api;
mod bearer;
mod commands;
mod connection;
mod files;
pub mod identity;
mod idle;
pub mod images;
mod inspect;
mod listen;
pub mod local;
mod logs;
mod memory;
mod orders;
pub mod spdy;
pub mod stats;
pub mod streaming;
pub mod tls;
mod visit;
