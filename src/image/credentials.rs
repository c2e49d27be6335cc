//! Logins at registries: docker's configuration format, and the kubelet's rule which of them belong to an image.

use std::path::{Path, PathBuf};

use base64::Engine;
use serde_json::Value;
use tracing::warn;

use super::access::Origin;

/// One login at a registry.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credential {
    /// `host[:port][/path]`, with `*` in parts of the host, as in docker's configuration file.
    pub registry: String,
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
    /// Refresh token of the registry's token service; used instead of name and password.
    pub identity_token: Option<String>,
    /// Bearer token, sent as it is; used instead of name and password.
    pub registry_token: Option<String>,
    /// Where it comes from.
    pub origin: Origin,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credential({} at {})", self.username, self.registry)
    }
}

/// Name and password of docker's `auth`: base64 of `name:password`.
pub fn decode_auth(auth: &str) -> Option<(String, String)> {
    let decoded = base64::engine::general_purpose::STANDARD.decode(auth.trim()).ok()?;
    let pair = String::from_utf8(decoded).ok()?;
    let (user, password) = pair.split_once(':')?;
    Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// The logins of a docker configuration: `{"auths": {registry: {...}}}`, or the older form without `auths`.
pub fn docker_config(config: &Value) -> Vec<Credential> {
    let auths = config.get("auths").unwrap_or(config);
    let login = |(registry, entry): (&String, &Value)| {
        let text = |key: &str| entry[key].as_str().filter(|t| !t.is_empty()).map(str::to_owned);
        let identity_token = text("identitytoken");
        let registry_token = text("registrytoken");
        let pair = text("username").zip(text("password")).or_else(|| decode_auth(&text("auth")?));
        let token = identity_token.is_some() || registry_token.is_some();
        let (username, password) = pair.or_else(|| token.then(Default::default))?;
        let origin = Origin::Node;
        Some(Credential { registry: registry.clone(), username, password, identity_token, registry_token, origin })
    };
    auths.as_object().into_iter().flatten().filter_map(login).collect()
}

/// Where a node's own docker configuration may be, first the one that counts (the kubelet's order).
pub fn node_config_files(root_dir: &Path) -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    let folders = [root_dir.to_owned(), "/var/lib/kubelet".into(), home.join(".docker"), "/.docker".into()];
    let old = [root_dir.to_owned(), "/var/lib/kubelet".into(), home, "/".into()];
    let new = folders.into_iter().map(|f| f.join("config.json"));
    new.chain(old.into_iter().map(|f| f.join(".dockercfg"))).collect()
}

/// The logins of the first of `files` there is; read for each pull, so that a change needs no restart.
pub fn of_node(files: &[PathBuf]) -> Vec<Credential> {
    for file in files {
        let Ok(text) = std::fs::read(file) else { continue };
        match serde_json::from_slice(&text) {
            Ok(config) => return docker_config(&config),
            Err(error) => warn!(file = %file.display(), %error, "node's registry logins not read"),
        }
    }
    Vec::new()
}

/// The names the default registry has in docker's configuration files.
fn is_default(host: &str) -> bool {
    matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

/// `*` and `?` as in shells. Of several `*` only the last one can be what does not fit yet, so it takes no longer than both
/// lengths multiplied: whoever may make a Secret writes the pattern.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // behind the last `*`, and from where on what follows it is tried
    let mut last: Option<(usize, usize)> = None;
    while t < text.len() {
        match (pattern.get(p), last) {
            (Some(b'*'), _) => {
                p += 1;
                last = Some((p, t));
            }
            (Some(c), _) if *c == b'?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            (_, Some((behind, from))) => {
                last = Some((behind, from + 1));
                (p, t) = (behind, from + 1);
            }
            _ => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

/// True if a login written for `registry` is meant for `repository` at `host`.
pub fn matches(registry: &str, host: &str, repository: &str) -> bool {
    let registry = registry.trim_start_matches("https://").trim_start_matches("http://");
    let (pattern, path) = registry.split_once('/').unwrap_or((registry, ""));
    let path = path.trim_end_matches('/');
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    let same_host = || {
        let split = |h: &str| h.rsplit_once(':').map_or((h.to_owned(), String::new()), |(n, p)| (n.into(), p.into()));
        let ((pattern, pattern_port), (host, port)): ((String, String), (String, String)) =
            (split(pattern), split(host));
        let parts = |h: &str| h.split('.').map(|p| p.as_bytes().to_vec()).collect::<Vec<_>>();
        let (pattern, host) = (parts(&pattern), parts(&host));
        pattern_port == port && pattern.len() == host.len() && pattern.iter().zip(&host).all(|(p, h)| glob(p, h))
    };
    (same_host() || (is_default(pattern) && is_default(host))) && repository.starts_with(path)
}

/// The logins for a repository, the most specific first (the kubelet's order: by name, backwards).
pub fn choose(all: &[Credential], host: &str, repository: &str) -> Vec<Credential> {
    let mut found: Vec<_> = all.iter().filter(|c| matches(&c.registry, host, repository)).cloned().collect();
    found.sort_by(|a, b| b.registry.cmp(&a.registry));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_shells_and_take_no_time() {
        for (pattern, text, fits) in [
            ("", "", true),
            ("*", "", true),
            ("*", "gcr", true),
            ("a*c", "abbc", true),
            ("a*c", "abbd", false),
            ("*a*b", "xaxbxb", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a**", "a", true),
            ("a*", "b", false),
            ("?", "", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), fits, "{pattern} {text}");
        }
        let pattern = "*a".repeat(200) + "*b";
        assert!(!glob(pattern.as_bytes(), "a".repeat(2000).as_bytes()));
    }

    #[test]
    fn docker_configurations_are_read() {
        let of = |v: Value| docker_config(&v).into_iter().map(|c| (c.username, c.password)).collect::<Vec<_>>();
        let pair = |u: &str, p: &str| vec![(u.to_owned(), p.to_owned())];
        assert_eq!(of(serde_json::json!({"auths": {"r": {"auth": "dTpw"}}})), pair("u", "p"));
        assert_eq!(of(serde_json::json!({"r": {"username": "a", "password": "b"}})), pair("a", "b"));
        assert!(of(serde_json::json!({"auths": {"r": {"auth": "???"}}})).is_empty());
        let token = docker_config(&serde_json::json!({"auths": {"r": {"identitytoken": "t"}}}));
        assert_eq!(token[0].identity_token.as_deref(), Some("t"));
    }

    #[test]
    fn logins_belong_to_hosts_and_paths() {
        assert!(matches("https://r.example/v2/", "r.example", "a/b"));
        assert!(matches("*.example:5000", "r.example:5000", "a"));
        assert!(!matches("*.example", "a.b.example", "a") && !matches("r.example", "r.example:5000", "a"));
        assert!(matches("r.example/team", "r.example", "team/app") && !matches("r.example/team", "r.example", "x"));
        assert!(matches("https://index.docker.io/v1/", "docker.io", "library/busybox"));
        let login = |r: &str| Credential { registry: r.into(), ..Credential::default() };
        let found = choose(&[login("r.example"), login("r.example/team"), login("other")], "r.example", "team/app");
        assert_eq!(found.iter().map(|c| c.registry.as_str()).collect::<Vec<_>>(), ["r.example/team", "r.example"]);
    }
}
