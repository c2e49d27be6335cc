//! How content digests are written: `sha256:<64 hex digits>`.

/// True for `sha256:` and 64 lower-case hex digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_hex)
}

/// True for 64 lower-case hex digits.
pub fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

/// Refuses what is not `digest`, but has the digest `got`. Which one that is is told nobody: a registry may have led to where
/// only this node comes, and whoever made the pod reads this.
pub fn matches(digest: &str, got: &str) -> Result<(), String> {
    if got == digest {
        Ok(())
    } else {
        Err(format!("what arrived for {digest} is something else: digest does not match"))
    }
}

/// The digits of a digest: its file name.
pub fn hex(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrived_instead_is_told_nobody() {
        assert_eq!(matches("sha256:0", "sha256:0"), Ok(()));
        let error = matches("sha256:0", "sha256:5ec2e7").unwrap_err();
        assert!(error.contains("sha256:0") && !error.contains("5ec2e7"), "{error}");
    }
}
