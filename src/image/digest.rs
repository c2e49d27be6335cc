//! How content digests are written: `sha256:<64 hex digits>`.

/// True for `sha256:` and 64 lower-case hex digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_hex)
}

/// True for 64 lower-case hex digits.
pub fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

/// The digits of a digest: its file name.
pub fn hex(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}
