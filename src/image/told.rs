//! What a registry says beside a status: for the Event of who asked, so bounded, on one line, and without secrets.

use std::time::Duration;

use reqwest::Response;
use serde_json::Value;

use crate::errors::bare_of;

/// Bytes of an answer that are looked at.
const MOST: usize = 16 << 10;
/// Characters that are passed on.
const SHOWN: usize = 300;
/// Longest wait for them.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where registries, their storage and token services say it, if not in `errors`.
const PLACES: [&str; 5] = ["message", "details", "detail", "error_description", "error"];

/// What an answer says of itself; empty if nothing a person could use. `secrets` are not passed on.
pub async fn told(mut response: Response, secrets: &[String]) -> String {
    let mut text = Vec::new();
    let read = async {
        while let Ok(Some(piece)) = response.chunk().await {
            text.extend_from_slice(&piece[..piece.len().min(MOST - text.len())]);
            if text.len() == MOST {
                break;
            }
        }
    };
    // what came until then will do
    let _ = tokio::time::timeout(PATIENCE, read).await;
    shown(&text, secrets)
}

fn shown(text: &[u8], secrets: &[String]) -> String {
    let text = String::from_utf8_lossy(text);
    let said = match serde_json::from_str::<Value>(&text) {
        Ok(said) => match said["errors"].as_array().filter(|errors| !errors.is_empty()) {
            Some(errors) => errors.iter().map(one).collect::<Vec<_>>().join("; "),
            None => PLACES.iter().find_map(|place| said[*place].as_str()).unwrap_or_default().to_owned(),
        },
        // a page for browsers, or half a document
        Err(_) if text.trim_start().starts_with(['<', '{', '[']) => String::new(),
        Err(_) => text.into_owned(),
    };
    cleaned(&said, secrets)
}

fn one(error: &Value) -> String {
    let (code, message) = (error["code"].as_str().unwrap_or_default(), error["message"].as_str().unwrap_or_default());
    match (code.is_empty(), message.is_empty()) {
        (false, false) => format!("{}: {message}", code.to_lowercase()),
        (false, true) => code.to_lowercase(),
        _ => message.to_owned(),
    }
}

/// One line of what may be shown.
fn cleaned(text: &str, secrets: &[String]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().filter(|secret| secret.len() >= 4) {
        text = text.replace(secret.as_str(), "***");
    }
    // what writes from right to left, or nothing at all, hides what is said
    let plain = |c: char| if c.is_control() || is_unseen(c) { ' ' } else { c };
    let text: String = text.chars().map(plain).collect();
    let words = text.split_whitespace().map(|word| match word.find("://") {
        Some(_) => address(word),
        None => word.to_owned(),
    });
    let text = words.collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn is_unseen(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// A word with an address in it, without what may be a secret there.
fn address(word: &str) -> String {
    let start = word.find("http").unwrap_or(0);
    let end = word.trim_end_matches(['.', ',', ';', ')', '"', '\'', '>']).len().max(start);
    format!("{}{}{}", &word[..start], bare_of(&word[start..end]), &word[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_registries_say_is_shown_and_nothing_else() {
        let of = |text: &str| shown(text.as_bytes(), &["geheim".to_owned()]);
        let hub = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit. See: https://x.example/limit?who=me.","detail":null}]}"#;
        assert_eq!(of(hub), "toomanyrequests: You have reached your pull rate limit. See: https://x.example/limit.");
        assert_eq!(of(r#"{"details":"incorrect username or password"}"#), "incorrect username or password");
        assert_eq!(of(r#"{"errors":[{"code":"DENIED"},{"message":"no"}]}"#), "denied; no");
        assert_eq!(of("not\r\n\x1b[31mhere\u{202e}!\n"), "not [31mhere !");
        assert_eq!(of("<html><body>geheim</body></html>"), "");
        assert_eq!(
            of("Bearer geheim at https://u:geheim@x.example/a?token=geheim"),
            "Bearer *** at https://x.example/a"
        );
        assert_eq!(of(&"x".repeat(1000)).len(), SHOWN + 3);
        assert_eq!(of("\u{0}\u{1}"), "");
    }
}
