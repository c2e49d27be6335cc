//! Settings of static pods: their folder, the web server that gives them, how often both are looked at.

use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value, json};

use super::{ConfigError, Settings, duration, wrong};
use crate::errors::bare;
use crate::pod::source::{CHECK, Remote, Sources};

pub(super) fn sources(flags: &Settings, file: &Settings) -> Result<Sources, ConfigError> {
    let folder_check =
        check("fileCheckFrequency", flags.file_check_frequency.as_ref().or(file.file_check_frequency.as_ref()))?;
    let remote_check =
        check("httpCheckFrequency", flags.http_check_frequency.as_ref().or(file.http_check_frequency.as_ref()))?;
    let url = flags.static_pod_url.as_ref().or(file.static_pod_url.as_ref()).filter(|url| !url.is_empty());
    let written = [&flags.static_pod_url_header, &file.static_pod_url_header];
    let written = written.into_iter().find(|h| !h.is_empty()).into_iter().flatten();
    let headers = written.map(|h| header(h)).collect::<Result<HeaderMap, _>>()?;
    let remote = match url {
        Some(text) => Some(Remote { url: address(text)?, headers, check: remote_check }),
        None => None,
    };
    let folder = flags.pod_manifest_path.as_ref().or(file.pod_manifest_path.as_ref());
    let folder = folder.filter(|path| !path.as_os_str().is_empty()).cloned();
    Ok(Sources { folder, folder_check, remote })
}

fn check(name: &str, text: Option<&String>) -> Result<Duration, ConfigError> {
    let Some(text) = text else { return Ok(CHECK) };
    let found = duration(name, text)?;
    if found < Duration::from_secs(1) {
        return wrong(format!("{name} {text:?}: it is at least 1s"));
    }
    Ok(found)
}

fn address(text: &str) -> Result<Url, ConfigError> {
    let url = Url::parse(text).map_err(|e| ConfigError(format!("staticPodURL: {e}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return wrong("staticPodURL: it begins with http:// or https://".to_owned());
    }
    Ok(url)
}

/// The value may be a secret, and is in no message.
fn header(text: &str) -> Result<(HeaderName, HeaderValue), ConfigError> {
    let named = text.split_once(':').and_then(|(name, value)| Some((name.trim().parse().ok()?, value.trim())));
    let Some((name, value)) = named else {
        return wrong("staticPodURLHeader: each is written name:value".to_owned());
    };
    let mut value =
        HeaderValue::from_str(value).map_err(|e| ConfigError(format!("staticPodURLHeader {name}: its value: {e}")))?;
    value.set_sensitive(true);
    Ok((name, value))
}

/// As a `KubeletConfiguration` has it; values of headers are masked, as the kubelet does.
pub(super) fn written(sources: &Sources) -> Value {
    let seconds = |d: Duration| format!("{}s", d.as_secs_f64());
    let remote = sources.remote.as_ref();
    let names = remote.iter().flat_map(|r| r.headers.keys());
    let masked: Map<_, _> = names.map(|name| (name.to_string(), json!(["<masked>"]))).collect();
    json!({
        "staticPodPath": sources.folder, "fileCheckFrequency": seconds(sources.folder_check),
        "staticPodURL": remote.map(|r| bare(&r.url)), "staticPodURLHeader": masked,
        "httpCheckFrequency": seconds(remote.map_or(CHECK, |r| r.check)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_and_its_headers() {
        let file: Settings = serde_saphyr::from_str(
            "staticPodPath: /m\nstaticPodURL: http://m/pods\nstaticPodURLHeader: {X-Token: [a, b]}\nhttpCheckFrequency: 1m\n",
        )
        .unwrap();
        let found = sources(&Settings::default(), &file).unwrap();
        let remote = found.remote.clone().unwrap();
        assert_eq!((remote.headers.get_all("x-token").iter().count(), remote.check), (2, Duration::from_mins(1)));
        assert!(!written(&found).to_string().contains("\"a\""));
        let wrong = |flags: Settings| sources(&flags, &Settings::default()).unwrap_err().to_string();
        let url = |text: &str| Settings { static_pod_url: Some(text.to_owned()), ..Settings::default() };
        assert!(wrong(url("ftp://m")).contains("http://"));
        let bare = Settings { static_pod_url_header: vec!["secret".to_owned()], ..url("http://m") };
        assert!(wrong(bare).ends_with("name:value"));
        let fast = Settings { file_check_frequency: Some("10ms".to_owned()), ..Settings::default() };
        assert!(wrong(fast).contains("at least 1s"));
    }
}
