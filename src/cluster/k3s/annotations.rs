//! What an agent of k3s writes on its Node of itself, for k3s's controllers and for people.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::config::hidden;

/// In the place of a secret.
const OMITTED: &str = "********";
/// Variables that are those of k3s.
const VARIABLES: &str = "K3S_";
/// Of these the values may be seen.
const SHOWN_VARIABLES: [&str; 6] =
    ["K3S_URL", "K3S_NODE_NAME", "K3S_TOKEN_FILE", "K3S_CONFIG_FILE", "K3S_DATA_DIR", "K3S_DEBUG"];

/// `k3s.io/node-args`, `k3s.io/node-env` and `k3s.io/node-config-hash` of an agent with these arguments and variables.
pub(super) fn of_process(
    arguments: impl Iterator<Item = String>,
    variables: impl Iterator<Item = (String, String)>,
) -> [(&'static str, String); 3] {
    let arguments = serde_json::json!(without_secrets(&arguments.collect::<Vec<_>>())).to_string();
    let secret = |name: &str| !SHOWN_VARIABLES.contains(&name);
    let variables: BTreeMap<String, String> = variables
        .filter(|(name, _)| name.starts_with(VARIABLES))
        .map(|(name, value)| if secret(&name) { (name, OMITTED.to_owned()) } else { (name, value) })
        .collect();
    let variables = serde_json::json!(variables).to_string();
    let hash = base32(&Sha256::digest(format!("{arguments}{variables}")));
    [("k3s.io/node-args", arguments), ("k3s.io/node-env", variables), ("k3s.io/node-config-hash", hash)]
}

fn without_secrets(arguments: &[String]) -> Vec<String> {
    let words: Vec<&[u8]> = arguments.iter().map(String::as_bytes).collect();
    let omit = |(word, at): (&String, Option<usize>)| match at {
        // a flag alone keeps its name; what follows it is hidden
        Some(at) if at < word.len() => format!("{}{OMITTED}", word.get(..at).unwrap_or_default()),
        _ => word.clone(),
    };
    arguments.iter().zip(hidden(&words)).map(omit).collect()
}

/// RFC 4648, with padding.
fn base32(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut text = String::new();
    for five in bytes.chunks(5) {
        let bits = (0..5).fold(0_u64, |bits, i| bits << 8 | u64::from(five.get(i).copied().unwrap_or(0)));
        let used = (five.len() * 8).div_ceil(5);
        for digit in 0..8 {
            let value = (bits >> (35 - 5 * digit)) as usize & 31;
            text.push(if digit < used { char::from(DIGITS[value]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_the_rfc() {
        let all = [
            ("", ""),
            ("f", "MY======"),
            ("fo", "MZXQ===="),
            ("foo", "MZXW6==="),
            ("foob", "MZXW6YQ="),
            ("fooba", "MZXW6YTB"),
        ];
        for (bytes, text) in all {
            assert_eq!(base32(bytes.as_bytes()), text);
        }
        assert_eq!(base32(b"foobar"), "MZXW6YTBOI======");
    }

    #[test]
    fn no_secret_is_told() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let of = |text: &str| {
            let variables =
                [("K3S_TOKEN", "x"), ("K3S_TOKEN_FILE", "/f"), ("K3S_URL", "u"), ("K3S_OTHER", "x"), ("HOME", "/")];
            of_process(words(text).into_iter(), variables.map(|(k, v)| (k.to_owned(), v.to_owned())).into_iter())
        };
        let [(_, arguments), ..] = of("run --manifest-url-header Authorization:secret --node-label a=b");
        assert_eq!(arguments, r#"["run","--manifest-url-header","********","--node-label","a=b"]"#);
        for text in ["run --token x -v 4", "run --token=x -v 4", "run -t x -v 4", "run -tx -v 4"] {
            let [(_, arguments), (_, variables), (_, hash)] = of(text);
            assert!(!arguments.contains('x') && arguments.ends_with(r#"********","-v","4"]"#), "{arguments}");
            assert_eq!(
                variables,
                r#"{"K3S_OTHER":"********","K3S_TOKEN":"********","K3S_TOKEN_FILE":"/f","K3S_URL":"u"}"#
            );
            assert_eq!((hash.len(), hash.ends_with("====")), (56, true));
        }
        assert_ne!(of("run")[2], of("run -v 4")[2]);
    }
}
