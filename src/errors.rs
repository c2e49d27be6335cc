//! Errors as people read them. They go to logs and Events, which more people read than may know what is in an address: a
//! login, or a query that is one (a registry's storage signs the addresses it hands out).

use std::error::Error;

use reqwest::Url;

/// An error with all its causes on one line, each said once; addresses in it as [`bare`] has them.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = said(error);
    let mut source = error.source();
    while let Some(inner) = source {
        let more = said(inner);
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = inner.source();
    }
    text
}

fn said(error: &(dyn Error + 'static)) -> String {
    let text = error.to_string();
    match error.downcast_ref::<reqwest::Error>().and_then(reqwest::Error::url) {
        Some(url) => text.replace(url.as_str(), &bare(url)),
        None => text,
    }
}

/// An address without what may be a secret in it: login, query and fragment.
pub fn bare(url: &Url) -> String {
    let mut shown = url.clone();
    // both fail only where there is no host, and so no login
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.set_query(None);
    shown.set_fragment(None);
    shown.into()
}

/// The same of an address that nobody has read yet.
pub fn bare_of(text: &str) -> String {
    Url::parse(text).map_or_else(|e| format!("an address that is none ({e})"), |url| bare(&url))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn secrets_in_addresses_are_not_said() {
        crate::crypto::install();
        let url = "http://who:geheim@127.0.0.1:9/blob?Signature=geheim#geheim";
        assert_eq!(bare_of(url), "http://127.0.0.1:9/blob");
        assert!(!bare_of("geheim").contains("geheim"));
        let error = reqwest::Client::new().get(url).send().await.unwrap_err();
        let text = causes(&error);
        assert!(text.contains("http://127.0.0.1:9/blob") && !text.contains("geheim"), "{text}");
        assert!(text.contains("refused"), "{text}");
    }
}
