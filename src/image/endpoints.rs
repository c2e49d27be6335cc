//! Where an image is asked for: mirrors, then its own registry, as k3s's `registries.yaml` and the agent's settings say.

use std::collections::BTreeMap;
use std::path::PathBuf;

use regex::Regex;
use serde::Deserialize;

use super::credentials::{self, Credential};
use super::reference::Reference;
use super::types::{RegistryConfig, StoreConfig};

/// Every registry without an entry of its own.
const WILDCARD: &str = "*";

/// The content of a `registries.yaml` (k3s's format).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registries {
    /// By the host in an image's name, or `*`.
    #[serde(deserialize_with = "nullable")]
    pub mirrors: BTreeMap<String, Mirror>,
    /// By the host of an endpoint, or `*`.
    #[serde(deserialize_with = "nullable")]
    pub configs: BTreeMap<String, Access>,
}

/// Who answers for a registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mirror {
    /// Tried in order, before the registry itself.
    #[serde(deserialize_with = "nullable")]
    pub endpoint: Vec<String>,
    /// Regular expressions over the repository and what replaces them, at these endpoints.
    #[serde(deserialize_with = "nullable")]
    pub rewrite: BTreeMap<String, String>,
}

/// How an endpoint is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    /// Login.
    pub auth: Option<Auth>,
    /// TLS.
    pub tls: Option<Tls>,
}

/// A login: name and password, both in docker's `auth`, or a refresh token.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// base64 of `name:password`.
    #[serde(rename = "auth")]
    pub encoded: String,
    /// Refresh token of the registry's token service.
    pub identity_token: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Auth({})", self.username)
    }
}

/// Certificates of an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// PEM file with the certificate authorities trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Client certificate.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// Accept any certificate.
    pub insecure_skip_verify: bool,
}

/// A key with nothing behind it is as good as none.
fn nullable<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

impl Registries {
    /// Finds mistakes that would show only with a pull: endpoints and expressions that do not parse.
    pub fn check(&self) -> Result<(), String> {
        for (host, mirror) in &self.mirrors {
            for endpoint in &mirror.endpoint {
                base(endpoint).map_err(|e| format!("mirrors.{host}.endpoint {endpoint:?}: {e}"))?;
            }
            for pattern in mirror.rewrite.keys() {
                Regex::new(pattern).map_err(|e| format!("mirrors.{host}.rewrite {pattern:?}: {e}"))?;
            }
        }
        let half = |t: &Tls| t.cert_file.is_some() != t.key_file.is_some();
        match self.configs.iter().find(|(_, a)| a.tls.as_ref().is_some_and(half)) {
            Some((host, _)) => Err(format!("configs.{host}.tls: cert_file and key_file go together")),
            None => Ok(()),
        }
    }
}

/// One place to ask, with one login.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// `scheme://host/v2`.
    pub base: String,
    /// Repository there.
    pub repository: String,
    /// The registry a mirror is asked to stand for.
    pub stands_for: Option<String>,
    /// Certificates.
    pub tls: Tls,
    /// Logins, tried in order; none: anonymous.
    pub logins: Vec<Credential>,
}

/// An endpoint as a URL without a slash at its end; without a scheme it is HTTPS, and without a path `/v2`.
fn base(endpoint: &str) -> Result<(String, String), String> {
    let text = if endpoint.contains("://") { endpoint.to_owned() } else { format!("https://{endpoint}") };
    let url = reqwest::Url::parse(&text).map_err(|e| e.to_string())?;
    let name = url.host_str().ok_or("it has no host")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("scheme {:?}: it is http or https", url.scheme()));
    }
    let host = url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
    let path = url.path().trim_end_matches('/');
    let path = if path.is_empty() { "/v2" } else { path };
    Ok((format!("{}://{host}{path}", url.scheme()), host))
}

fn login(host: &str, auth: &Auth) -> Option<Credential> {
    let identity_token = Some(auth.identity_token.clone()).filter(|t| !t.is_empty());
    let (username, password) = match credentials::decode_auth(&auth.encoded) {
        Some(pair) => pair,
        None => (auth.username.clone(), auth.password.clone()),
    };
    (identity_token.is_some() || !username.is_empty()).then(|| Credential {
        registry: host.to_owned(),
        username,
        password,
        identity_token,
        ..Credential::default()
    })
}

/// The places to ask for an image, in order. Logins of `given` go only to the hosts they were written for.
pub fn of(reference: &Reference, config: &StoreConfig, given: &[Credential]) -> Result<Vec<Endpoint>, String> {
    let file = &config.private;
    let access = |hosts: [&str; 2]| {
        let found = hosts.iter().find_map(|h| file.configs.get(*h)).or_else(|| file.configs.get(WILDCARD));
        found.cloned().unwrap_or_default()
    };
    let mut endpoints = Vec::new();
    let mirror = file.mirrors.get(&reference.host).or_else(|| file.mirrors.get(WILDCARD)).cloned().unwrap_or_default();
    for endpoint in &mirror.endpoint {
        let (base, host) = base(endpoint).map_err(|e| format!("endpoint {endpoint:?}: {e}"))?;
        let repository = rewritten(&reference.repository, &mirror.rewrite)?;
        let Access { auth, tls } = access([&host, &host]);
        let mut logins = credentials::choose(given, &host, &repository);
        logins.extend(auth.and_then(|a| login(&host, &a)));
        let stands_for = (host != reference.host).then(|| reference.host.clone());
        endpoints.push(Endpoint { base, repository, stands_for, tls: tls.unwrap_or_default(), logins });
    }
    if config.only_mirrors && !endpoints.is_empty() {
        return Ok(endpoints);
    }
    let (name, repository) = (&reference.host, reference.repository.clone());
    let host = if name == "docker.io" { "registry-1.docker.io" } else { name };
    let RegistryConfig { insecure, ca_file, insecure_skip_verify } =
        config.registries.get(name).cloned().unwrap_or_default();
    let Access { auth, tls } = access([host, name]);
    let mut tls = tls.unwrap_or_default();
    tls.ca_file = ca_file.or(tls.ca_file);
    tls.insecure_skip_verify |= insecure_skip_verify;
    let mut logins = credentials::choose(given, name, &repository);
    logins.extend(auth.and_then(|a| login(name, &a)));
    // a registry of this machine itself needs no certificate, and may speak plain HTTP, as with containerd
    let local = !insecure && is_loopback(host) && tls.ca_file.is_none();
    tls.insecure_skip_verify |= local;
    let schemes: &[&str] = match (insecure, local) {
        (true, _) => &["http"],
        (false, true) => &["https", "http"],
        (false, false) => &["https"],
    };
    for scheme in schemes {
        let base = format!("{scheme}://{host}/v2");
        if !endpoints.iter().any(|e| e.base == base && e.repository == repository) {
            let (repository, tls, logins) = (repository.clone(), tls.clone(), logins.clone());
            endpoints.push(Endpoint { base, repository, stands_for: None, tls, logins });
        }
    }
    Ok(endpoints)
}

/// Whether `host[:port]` is this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The repository after the first expression that changes it.
fn rewritten(repository: &str, rewrite: &BTreeMap<String, String>) -> Result<String, String> {
    for (pattern, replacement) in rewrite {
        let expression = Regex::new(pattern).map_err(|e| format!("rewrite {pattern:?}: {e}"))?;
        let changed = expression.replace_all(repository, replacement.as_str());
        if changed != repository {
            return Ok(changed.into_owned());
        }
    }
    Ok(repository.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(image: &str, config: &StoreConfig) -> Vec<String> {
        let endpoints = of(&Reference::parse(image).unwrap(), config, &[]).unwrap();
        endpoints.into_iter().map(|e| format!("{}/{}", e.base, e.repository)).collect()
    }

    #[test]
    fn a_registry_of_this_machine_may_speak_http() {
        let config = StoreConfig::default();
        assert_eq!(bases("localhost:5000/x", &config), ["https://localhost:5000/v2/x", "http://localhost:5000/v2/x"]);
        assert_eq!(bases("127.0.0.1/x", &config).len(), 2);
        assert_eq!(bases("localhost.example/x", &config), ["https://localhost.example/v2/x"]);
        assert!(is_loopback("[::1]:5000") && !is_loopback("[2001:db8::1]:5000"));
    }

    fn config(yaml: &str) -> StoreConfig {
        StoreConfig { private: serde_saphyr::from_str(yaml).unwrap(), ..StoreConfig::default() }
    }

    #[test]
    fn mirrors_come_before_the_registry_itself() {
        let config = config(
            "mirrors:\n  r.example:\n    endpoint: [\"http://one:5000\", \"https://two/v2/proxy/\"]\n    \
             rewrite: {\"^library/(.*)\": \"mine/$1\"}\n  \"*\":\n    endpoint: [three]\n  empty.example:\n",
        );
        assert_eq!(
            bases("r.example/library/x:1", &config),
            ["http://one:5000/v2/mine/x", "https://two/v2/proxy/mine/x", "https://r.example/v2/library/x"]
        );
        assert_eq!(bases("other.example/x", &config), ["https://three/v2/x", "https://other.example/v2/x"]);
        assert_eq!(bases("three/x", &config), ["https://three/v2/three/x", "https://registry-1.docker.io/v2/three/x"]);
    }

    #[test]
    fn the_registry_itself_may_be_left_out() {
        let yaml = "mirrors:\n  r.example:\n    endpoint: [\"http://one:5000\"]\n  empty.example:\n";
        let own = StoreConfig { only_mirrors: true, ..config(yaml) };
        assert_eq!(bases("r.example/x", &own), ["http://one:5000/v2/x"]);
        assert_eq!(bases("empty.example/x", &own), ["https://empty.example/v2/x"], "it has no mirror");
        assert_eq!(bases("other.example/x", &own), ["https://other.example/v2/x"]);
        let all = StoreConfig { only_mirrors: true, ..config("mirrors: {\"*\": {endpoint: [one]}}") };
        assert_eq!(bases("other.example/x", &all), ["https://one/v2/x"]);
    }

    #[test]
    fn logins_go_where_they_were_written_for() {
        let mut config = config(
            "mirrors: {r.example: {endpoint: [\"https://one:5000\"]}}\nconfigs:\n  one:5000:\n    \
             auth: {username: m, password: p}\n  \"*\":\n    tls: {insecure_skip_verify: true}\n",
        );
        let given = credentials::docker_config(&serde_json::json!({"auths": {"r.example": {"auth": "dTpw"}}}));
        let image = Reference::parse("r.example/x").unwrap();
        let users = |config: &StoreConfig| {
            let endpoints = of(&image, config, &given).unwrap();
            endpoints.iter().map(|e| e.logins.iter().map(|l| l.username.clone()).collect()).collect::<Vec<Vec<_>>>()
        };
        assert_eq!(users(&config), [["m"], ["u"]]);
        assert!(of(&image, &config, &given).unwrap()[1].tls.insecure_skip_verify);
        config.private.configs.get_mut("one:5000").unwrap().auth.as_mut().unwrap().encoded = "YTpi".into();
        assert_eq!(users(&config)[0], ["a"]);
    }

    #[test]
    fn mistakes_are_found_at_the_start() {
        let check = |yaml: &str| serde_saphyr::from_str::<Registries>(yaml).unwrap().check();
        assert!(check("mirrors: {r: {endpoint: [\"ftp://x\"]}}").unwrap_err().contains("http or https"));
        assert!(check("mirrors: {r: {rewrite: {\"(\": x}}}").unwrap_err().contains("rewrite"));
        assert!(check("configs: {r: {tls: {cert_file: /c}}}").unwrap_err().contains("go together"));
    }
}
