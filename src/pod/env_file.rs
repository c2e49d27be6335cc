//! Variables from a file of a volume (`fileKeyRef`): lines of `NAME='value'`, where a value may have line ends in it.
//!
//! Rules: Kubernetes "Define Environment Variable Values Using An Init Container" (a subset of a shell's syntax).

/// The value of `key`; `None` when the file has none, or an empty one.
pub(super) fn value(text: &str, key: &str) -> Result<Option<String>, String> {
    let mut rest = text;
    let mut line = 1;
    while !rest.is_empty() {
        let (first, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let trimmed = first.trim_start_matches([' ', '\t']);
        if trimmed.is_empty() || trimmed.starts_with('#') {
            (rest, line) = (after, line + 1);
            continue;
        }
        let wrong = |what: &str| format!("line {line}: {what}");
        let (name, value) = trimmed.split_once('=').ok_or_else(|| wrong("missing '='"))?;
        if name.is_empty() || name.ends_with([' ', '\t']) {
            return Err(wrong("a name must stand right before '='"));
        }
        if value.starts_with([' ', '\t']) || value.is_empty() {
            // as a shell has it: nothing is assigned
            if value.is_empty() {
                return Err(wrong("a value must be enclosed in single quotes"));
            }
            if name == key {
                return Ok(None);
            }
            (rest, line) = (after, line + 1);
            continue;
        }
        let begin = rest.len() - rest.trim_start_matches([' ', '\t']).len() + name.len() + 1;
        let quoted =
            rest[begin..].strip_prefix('\'').ok_or_else(|| wrong("a value must be enclosed in single quotes"))?;
        let (inner, behind) = quoted.split_once('\'').ok_or_else(|| wrong("unclosed single quote"))?;
        let (tail, after) = behind.split_once('\n').unwrap_or((behind, ""));
        let tail = tail.trim_start_matches([' ', '\t']);
        if !tail.is_empty() && !tail.starts_with('#') {
            return Err(wrong("unexpected content after the closing quote"));
        }
        if name == key {
            return Ok(Some(inner.to_owned()).filter(|v| !v.is_empty()));
        }
        line += inner.matches('\n').count() + 1;
        rest = after;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::value;

    #[test]
    fn values_are_quoted() {
        let text = "# one\n\n  A='1' # why\nB='two\nlines'\nC= 'none'\nD=''\nE='e'";
        assert_eq!(value(text, "A").unwrap().as_deref(), Some("1"));
        assert_eq!(value(text, "B").unwrap().as_deref(), Some("two\nlines"));
        assert_eq!(value(text, "E").unwrap().as_deref(), Some("e"));
        for none in ["C", "D", "F"] {
            assert_eq!(value(text, none).unwrap(), None, "{none}");
        }
        for (wrong, what) in [
            ("\nA", "line 2: missing"),
            ("A ='x'", "right before"),
            ("A=x", "single quotes"),
            ("A='x", "unclosed"),
            ("A='x' y", "unexpected"),
            ("='x'", "right before"),
        ] {
            assert!(value(wrong, "A").unwrap_err().contains(what), "{wrong}");
        }
    }
}
