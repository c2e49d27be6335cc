//! The cryptography of all TLS in this program.

/// Chooses it; must come before any TLS configuration is made. Repeatable.
pub fn install() {
    // already installed by another part is as good
    let _ = rustls::crypto::ring::default_provider().install_default();
}
