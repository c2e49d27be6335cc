//! Turns a parser's complaint into one that helps: which key, on which line, what was meant. What stands in the file is in
//! none, but for names of keys: a mistake is made beside a password as easily as anywhere.

use kube::config::KubeconfigError;

use crate::errors::causes;

/// How alike two keys must be (Jaro-Winkler, 0 to 1) to be offered.
const ALIKE: f64 = 0.7;
/// In the place of a value.
const OMITTED: char = '…';
/// What comes before the name of a key, which is shown; all else in quotes is a value.
const NAMES: [&str; 3] = ["unknown field ", "missing field ", "duplicate field "];

/// The message for a person about a YAML text that may hold secrets.
pub fn explain(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let line = error.location().map(|l| format!("line {}: ", l.line())).unwrap_or_default();
    if let Some((_, rest)) = text.split_once("unknown field `")
        && let Some((key, rest)) = rest.split_once('`')
    {
        return unknown(&line, key, rest);
    }
    // the lines around come after the first one
    let said = without_values(text.lines().next().unwrap_or_default());
    let said = said.trim_start_matches("error: ");
    if said.contains("line ") { said.to_owned() } else { format!("{line}{said}") }
}

/// The message for a person about a value that may hold secrets: `text` is what serde says of it.
pub fn explain_value(error: &serde_json::Error) -> String {
    without_values(error.to_string().lines().next().unwrap_or_default())
}

/// What a kubeconfig that cannot be read is told by: it holds keys and tokens.
pub fn explain_kubeconfig(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::Parse(error) => explain(error),
        other => causes(other),
    }
}

fn unknown(line: &str, key: &str, rest: &str) -> String {
    // without a blank after the colon the value is taken for a part of the key
    let name = key.split([':', '=', ' ', '"']).next().unwrap_or_default();
    if name != key {
        return format!("{line}there is no setting {name:?} with its value in it: a blank comes after the colon");
    }
    let known = rest.lines().next().unwrap_or_default().trim_start_matches(", expected one of ");
    let known = known.split([',', ' ', '`']).filter(|n| !n.is_empty());
    let alike = |name: &&str| strsim::jaro_winkler(&name.to_lowercase(), &key.to_lowercase());
    let closest = known.map(|n| (alike(&n), n)).filter(|(a, _)| *a >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0));
    match closest {
        Some((_, name)) => format!("{line}there is no setting {key:?}: did you mean {name:?}?"),
        None => format!("{line}there is no setting {key:?}: `pikelet run --help` lists them"),
    }
}

/// A message of serde without what it quotes: ``integer `1` ``, `string "x"`; names of keys and what was expected stay.
fn without_values(said: &str) -> String {
    let (mut text, mut rest) = (String::new(), said);
    while let Some(at) = rest.find(['"', '`']) {
        let (before, quoted) = rest.split_at(at);
        text.push_str(before);
        // what serde expects is of the program, and comes last
        if text.contains("expected ") || NAMES.iter().any(|name| before.ends_with(name)) {
            let end = quoted.char_indices().skip(1).find(|(_, c)| *c == '`').map_or(quoted.len(), |(i, _)| i + 1);
            text.push_str(&quoted[..end]);
            rest = &quoted[end..];
            continue;
        }
        text.push(OMITTED);
        rest = quoted.get(end_of(quoted)..).unwrap_or_default();
    }
    text + rest
}

/// Where what is quoted at the beginning of `text` ends; a mark with a backslash before it is no end.
fn end_of(text: &str) -> usize {
    let mark = text.chars().next();
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if Some(c) == mark && !escaped {
            return at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_left_out_and_names_are_not() {
        for (said, told) in [
            (
                "invalid type: string \"u:hunter2\", expected struct Auth",
                "invalid type: string …, expected struct Auth",
            ),
            ("invalid type: integer `12345678`, expected a string", "invalid type: integer …, expected a string"),
            ("string \"a\\\"secret\\\\\" b", "string … b"),
            ("unknown variant `secret`, expected one of `a`, `b`", "unknown variant …, expected one of `a`, `b`"),
            ("missing field `key`", "missing field `key`"),
            ("duplicate field `key` at \"x", "duplicate field `key` at …"),
            ("unknown field `mirors`, expected `mirrors`", "unknown field `mirors`, expected `mirrors`"),
        ] {
            assert_eq!(without_values(said), told);
        }
    }
}
