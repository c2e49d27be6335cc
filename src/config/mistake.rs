//! Turns a parser's complaint about an unknown key into one that helps: which key, on which line, what was meant.

/// How alike two keys must be (Jaro-Winkler, 0 to 1) to be offered.
const ALIKE: f64 = 0.7;

/// The message for a person; other mistakes stay as the parser words them.
pub fn explain(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let Some((_, rest)) = text.split_once("unknown field `") else { return text };
    let Some((key, rest)) = rest.split_once('`') else { return text };
    let line = error.location().map(|l| format!("line {}: ", l.line())).unwrap_or_default();
    let known = rest.lines().next().unwrap_or_default().trim_start_matches(", expected one of ");
    let known = known.split([',', ' ', '`']).filter(|n| !n.is_empty());
    let alike = |name: &&str| strsim::jaro_winkler(&name.to_lowercase(), &key.to_lowercase());
    let closest = known.map(|n| (alike(&n), n)).filter(|(a, _)| *a >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0));
    match closest {
        Some((_, name)) => format!("{line}there is no setting {key:?}: did you mean {name:?}?"),
        None => format!("{line}there is no setting {key:?}: `pikelet run --help` lists them"),
    }
}
