//! What the agent serves: the kubelet API with authentication and authorization, and its own root-only socket.
//!
//! Knows nothing of libcontainer: it asks the rooms that own what is asked for.

pub mod access;
pub mod api;
pub mod local;
mod logs;
pub mod tls;
