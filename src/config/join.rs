//! Which control plane is joined, and by what right.

use std::path::Path;

use super::{ConfigError, Settings, list, wrong};
use crate::cluster::{BootstrapToken, Join, Pin, Source, Token};

/// From flags and file: a kubeconfig, a bootstrap kubeconfig, or a server with a token.
pub fn join(root_dir: &Path, flags: &Settings, file: &Settings) -> Result<Option<Join>, ConfigError> {
    let kubeconfig = flags.kubeconfig.as_ref().or(file.kubeconfig.as_ref());
    // what a flag names is not overruled by what the file names
    let bootstrap = flags.bootstrap_kubeconfig.as_ref();
    let bootstrap = bootstrap.or(file.bootstrap_kubeconfig.as_ref().filter(|_| flags.server.is_none()));
    // variables of the environment may be there, and empty
    let server = flags.server.as_ref().filter(|s| !s.is_empty()).or(file.server.as_ref());
    let server = server.filter(|_| flags.bootstrap_kubeconfig.is_none());
    let kept = || kubeconfig.cloned().unwrap_or_else(|| root_dir.join("kubeconfig"));
    match (bootstrap, server) {
        (Some(_), Some(_)) => wrong("server and bootstrapKubeconfig: one of them is to be set, not both".to_owned()),
        (Some(bootstrap), None) => {
            Ok(Some(Join::Bootstrap { source: Source::Kubeconfig(bootstrap.clone()), kubeconfig: kept() }))
        }
        (None, Some(server)) => {
            let server = url(server)?;
            let pins = list(flags.ca_cert_hash.clone(), file.ca_cert_hash.clone());
            let pins = pins.iter().map(|text| {
                Pin::parse(text).ok_or_else(|| {
                    ConfigError(format!("ca-cert-hash {text:?}: it is written sha256:<64 hexadecimal digits>"))
                })
            });
            let pins = pins.collect::<Result<Vec<_>, _>>()?;
            let text = token(flags, file)?;
            let bootstrap = |token| {
                let source = Source::Token { server: server.clone(), token, pins: pins.clone() };
                Box::new(Join::Bootstrap { source, kubeconfig: kept() })
            };
            let k3s = |token| Box::new(Join::K3s { server: server.clone(), token });
            let unsafely = flags.unsafe_skip_ca_verification.or(file.unsafe_skip_ca_verification).unwrap_or(false);
            let of_k3s = |text: &str| {
                let token = Token::parse(text).map_err(|e| ConfigError(format!("token: {e}")))?;
                Ok(token.shown_to_anybody(unsafely))
            };
            // only kubeadm has hashes of its own; a bootstrap token alone may be of either
            Ok(Some(match text.as_deref().map(|text| (BootstrapToken::parse(text), text)) {
                None if pins.is_empty() => Join::Ask { k3s: k3s(None), bootstrap: bootstrap(None) },
                None => *bootstrap(None),
                Some((Some(token), _)) if !pins.is_empty() => *bootstrap(Some(token)),
                Some((Some(token), text)) => {
                    Join::Ask { k3s: k3s(Some(of_k3s(text)?)), bootstrap: bootstrap(Some(token)) }
                }
                Some((None, _)) if !pins.is_empty() => {
                    return wrong(
                        "ca-cert-hash goes with a bootstrap token, abcdef.0123456789abcdef; a token of k3s has the \
                        hash in it"
                            .to_owned(),
                    );
                }
                Some((None, text)) => *k3s(Some(of_k3s(text)?)),
            }))
        }
        (None, None) => Ok(kubeconfig.cloned().map(Join::Kubeconfig)),
    }
}

fn url(server: &str) -> Result<String, ConfigError> {
    let server = if server.contains("://") { server.to_owned() } else { format!("https://{server}") };
    // a name and a password in it would be in every message about this server
    if server.contains('@') {
        return wrong(
            "server: a URL such as https://server:6443 has no user in it: the token goes into token".to_owned(),
        );
    }
    let parsed = reqwest::Url::parse(&server).map_err(|e| ConfigError(format!("server {server:?}: {e}")))?;
    if parsed.scheme() != "https" || parsed.host_str().is_none() || !matches!(parsed.path(), "" | "/") {
        return wrong(format!("server {server:?}: it is a URL such as https://server:6443"));
    }
    Ok(server.trim_end_matches('/').to_owned())
}

/// The token, or the first line of its file.
fn token(flags: &Settings, file: &Settings) -> Result<Option<String>, ConfigError> {
    let token = |settings: &Settings| settings.token.clone().filter(|t| !t.is_empty());
    let path = |settings: &Settings| settings.token_file.clone().filter(|p| !p.as_os_str().is_empty());
    let named = |settings: &Settings| match (token(settings), path(settings)) {
        (Some(token), _) => Some(Ok(token)),
        (None, Some(path)) => Some(
            std::fs::read_to_string(&path)
                .map(|text| text.lines().next().unwrap_or_default().to_owned())
                .map_err(|e| ConfigError(format!("token file {}: {e}", path.display()))),
        ),
        (None, None) => None,
    };
    let token = named(flags).or_else(|| named(file)).transpose()?;
    Ok(token.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(flags: Settings, file: Settings) -> Result<Option<Join>, String> {
        join(Path::new("/r"), &flags, &file).map_err(|e| e.to_string())
    }

    #[test]
    fn one_way_to_join_is_chosen() {
        assert!(of(Settings::default(), Settings::default()).unwrap().is_none());
        let file = Settings {
            server: Some("https://s:6443/".into()),
            token: Some("abcdef.0123456789abcdef".into()),
            ca_cert_hash: vec![format!("sha256:{}", "0".repeat(64))],
            ..Settings::default()
        };
        let Some(Join::Bootstrap { source: Source::Token { server, token, .. }, kubeconfig }) =
            of(Settings::default(), file.clone()).unwrap()
        else {
            panic!()
        };
        assert_eq!((server.as_str(), token.is_some()), ("https://s:6443", true));
        assert_eq!(kubeconfig, Path::new("/r/kubeconfig"));
        let open = Settings { ca_cert_hash: vec![], ..file.clone() };
        assert!(matches!(of(open.clone(), Settings::default()).unwrap(), Some(Join::Ask { .. })));
        let k3s = Settings { token: Some("K10::node:password".into()), ..open };
        assert!(matches!(of(k3s.clone(), Settings::default()).unwrap(), Some(Join::K3s { token: Some(_), .. })));
        assert!(of(k3s, file.clone()).unwrap_err().contains("ca-cert-hash goes with a bootstrap token"));
        let empty = Settings { server: Some(String::new()), token: Some(String::new()), ..Settings::default() };
        let Some(Join::Bootstrap { source: Source::Token { token, .. }, .. }) =
            of(empty.clone(), file.clone()).unwrap()
        else {
            panic!()
        };
        assert!(token.is_some());
        assert!(of(empty, Settings::default()).unwrap().is_none());
        let flags = Settings { bootstrap_kubeconfig: Some("/b".into()), ..Settings::default() };
        let Some(Join::Bootstrap { source: Source::Kubeconfig(path), .. }) = of(flags, file).unwrap() else { panic!() };
        assert_eq!(path, Path::new("/b"));
    }

    #[test]
    fn mistakes_are_named() {
        let server = |server: &str| Settings { server: Some(server.into()), ..Settings::default() };
        let error = of(server("https://u:hunter2@s:6443"), Settings::default()).unwrap_err();
        assert!(error.contains("no user in it") && !error.contains("hunter2"), "{error}");
        for bad in ["http://s", "https://s/path", "https://"] {
            assert!(of(server(bad), Settings::default()).unwrap_err().contains("server"), "{bad}");
        }
        let with = |token: &str, hash: &str| Settings {
            token: Some(token.into()),
            ca_cert_hash: vec![hash.into()],
            ..server("s:6443")
        };
        assert!(of(with("abcdef.0123456789abcdef", "12"), Settings::default()).unwrap_err().contains("ca-cert-hash"));
        let file = Settings { token_file: Some("/no/such".into()), ..server("s") };
        assert!(of(file, Settings::default()).unwrap_err().contains("/no/such"));
    }
}
