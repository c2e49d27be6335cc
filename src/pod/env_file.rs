//! Variables from a file of a volume (`fileKeyRef`): lines of `NAME='value'`, where a value may have line ends in it.
//!
//! Rules: Kubernetes "Define Environment Variable Values Using An Init Container" (a subset of a shell's syntax).

use std::collections::BTreeMap;

/// What a file says, up to its first mistake.
#[derive(Debug, Default)]
pub(super) struct EnvFile {
    /// `None`: nothing is assigned, or nothing of any length.
    values: BTreeMap<String, Option<String>>,
    mistake: Option<String>,
}

impl EnvFile {
    /// Reads the text, once for all keys.
    pub fn read(text: &str) -> Self {
        let mut file = Self::default();
        let (mut rest, mut line) = (text, 1);
        while !rest.is_empty() {
            match next(rest) {
                Ok((assigned, after)) => {
                    if let Some((name, value)) = assigned {
                        let value = value.filter(|v| !v.is_empty()).map(str::to_owned);
                        file.values.entry(name.to_owned()).or_insert(value);
                    }
                    line += rest[..rest.len() - after.len()].matches('\n').count();
                    rest = after;
                }
                Err(what) => {
                    file.mistake = Some(format!("line {line}: {what}"));
                    break;
                }
            }
        }
        file
    }

    /// The value of `key`; `None` when the file has none, or an empty one. A mistake behind it is none.
    pub fn value(&self, key: &str) -> Result<Option<String>, String> {
        match (self.values.get(key), &self.mistake) {
            (Some(value), _) => Ok(value.clone()),
            (None, Some(mistake)) => Err(mistake.clone()),
            (None, None) => Ok(None),
        }
    }
}

/// A name, and its value where one is assigned.
type Assigned<'a> = Option<(&'a str, Option<&'a str>)>;

/// The next assignment, if the line is one, and what follows.
fn next(rest: &str) -> Result<(Assigned<'_>, &str), &'static str> {
    let (first, after) = rest.split_once('\n').unwrap_or((rest, ""));
    let trimmed = first.trim_start_matches([' ', '\t']);
    if trimmed.is_empty() || trimmed.starts_with('#') {
        return Ok((None, after));
    }
    let (name, value) = trimmed.split_once('=').ok_or("missing '='")?;
    if name.is_empty() || name.ends_with([' ', '\t']) {
        return Err("a name must stand right before '='");
    }
    if value.is_empty() {
        return Err("a value must be enclosed in single quotes");
    }
    if value.starts_with([' ', '\t']) {
        // as a shell has it: nothing is assigned
        return Ok((Some((name, None)), after));
    }
    let begin = rest.len() - rest.trim_start_matches([' ', '\t']).len() + name.len() + 1;
    let quoted = rest[begin..].strip_prefix('\'').ok_or("a value must be enclosed in single quotes")?;
    let (inner, behind) = quoted.split_once('\'').ok_or("unclosed single quote")?;
    let (tail, after) = behind.split_once('\n').unwrap_or((behind, ""));
    let tail = tail.trim_start_matches([' ', '\t']);
    if !tail.is_empty() && !tail.starts_with('#') {
        return Err("unexpected content after the closing quote");
    }
    Ok((Some((name, Some(inner))), after))
}

#[cfg(test)]
mod tests {
    use super::EnvFile;

    fn value(text: &str, key: &str) -> Result<Option<String>, String> {
        EnvFile::read(text).value(key)
    }

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
