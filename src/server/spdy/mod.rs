//! SPDY/3.1 as Kubernetes clients speak it (draft-mbelshe-httpbis-spdy-3): framing, header compression, sessions.
//!
//! Their library (moby/spdystream) knows no flow control: windows are neither kept nor waited for, and a reader that
//! stops is felt through the connection itself.

pub mod frame;
pub mod headers;
mod session;

pub use session::{Session, Stream};
