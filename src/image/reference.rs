//! Image references: `[host[:port]/]path[:tag][@digest]`, with the defaults every container engine uses.

use super::digest::is_digest;

/// The registry of names without a host.
const DEFAULT_HOST: &str = "docker.io";
/// Its name of old, as logins still have it.
const OLD_DEFAULT_HOST: &str = "index.docker.io";

/// A reference that does not parse.
#[derive(Debug)]
pub struct Invalid {
    /// As written.
    pub reference: String,
    /// Why.
    pub message: &'static str,
}

/// A parsed reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// `host[:port]`.
    pub host: String,
    /// Repository path.
    pub repository: String,
    /// Tag, `latest` when neither tag nor digest is given.
    pub tag: Option<String>,
    /// `sha256:<64 hex>`.
    pub digest: Option<String>,
}

impl Reference {
    /// Parses a reference as people write it.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let bad = |message| Invalid { reference: text.to_owned(), message };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.to_owned())),
            None => (text, None),
        };
        if digest.as_ref().is_some_and(|d| !is_digest(d)) {
            return Err(bad("the digest must be sha256: and 64 hex digits"));
        }
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag.to_owned())),
            _ => (rest, None),
        };
        let tag_char = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if tag
            .as_ref()
            .is_some_and(|t| t.is_empty() || t.len() > 128 || !t.chars().all(tag_char) || t.starts_with(['.', '-']))
        {
            return Err(bad("invalid tag"));
        }
        let (host, path) = match rest.split_once('/') {
            Some((OLD_DEFAULT_HOST, path)) => (DEFAULT_HOST, path),
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
            _ => (DEFAULT_HOST, rest),
        };
        // whether the host was written or not
        let official = host == DEFAULT_HOST && !path.contains('/');
        let path = if official { format!("library/{path}") } else { path.to_owned() };
        let part = |p: &str| {
            let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            edge(p.chars().next())
                && edge(p.chars().last())
                && p.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
        };
        let (host_name, port) = host.split_once(':').unwrap_or((host, "0"));
        let host_ok = host_name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && host_name.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c))
            && port.parse::<u16>().is_ok();
        if rest.is_empty() || !host_ok || !path.split('/').all(part) {
            return Err(bad("invalid reference format: lower-case letters, digits and . _ - between slashes"));
        }
        let tag = if tag.is_none() && digest.is_none() { Some("latest".to_owned()) } else { tag };
        Ok(Self { host: host.to_owned(), repository: path, tag, digest })
    }

    /// `host/path`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// What is asked of the registry: the digest if there is one, else the tag.
    pub fn version(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }

    /// The full name under which the store keeps it.
    pub fn canonical(&self) -> String {
        match &self.digest {
            Some(digest) => format!("{}@{digest}", self.name()),
            None => format!("{}:{}", self.name(), self.version()),
        }
    }
}

/// The host of the registry an image is at; empty if the reference does not parse.
pub fn registry_of(reference: &str) -> String {
    Reference::parse(reference).map(|r| r.host).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_their_defaults() {
        let canonical = |s: &str| Reference::parse(s).map(|r| r.canonical());
        assert_eq!(canonical("busybox").unwrap(), "docker.io/library/busybox:latest");
        assert_eq!(canonical("a/b:1").unwrap(), "docker.io/a/b:1");
        assert_eq!(canonical("docker.io/traefik:v3").unwrap(), "docker.io/library/traefik:v3");
        assert_eq!(canonical("docker.io/library/traefik:v3").unwrap(), "docker.io/library/traefik:v3");
        assert_eq!(canonical("index.docker.io/nginx").unwrap(), "docker.io/library/nginx:latest");
        assert_eq!(canonical("index.docker.io/a/b").unwrap(), "docker.io/a/b:latest");
        assert_eq!(canonical("registry.docker.io/nginx").unwrap(), "registry.docker.io/nginx:latest");
        assert_eq!(canonical("127.0.0.1:5000/x").unwrap(), "127.0.0.1:5000/x:latest");
        assert_eq!(canonical("localhost/x:v1").unwrap(), "localhost/x:v1");
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(canonical(&format!("h.io/x:1@{digest}")).unwrap(), format!("h.io/x@{digest}"));
        for bad in [
            "",
            "docker.io/",
            "docker.io//x",
            "UPPER",
            "a//b",
            "x:",
            "x@sha256:12",
            "../x",
            "x:-a",
            "h.io?x/y",
            "h.io:99999/x",
            "h.io:/x",
        ] {
            assert!(canonical(bad).is_err(), "{bad}");
        }
    }
}
