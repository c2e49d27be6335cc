//! What a registry wants of who asks: the challenges of `WWW-Authenticate` (RFC 9110), in all their forms.

/// One way to log in.
#[derive(Debug, PartialEq, Eq)]
pub struct Challenge {
    /// `basic`, `bearer`: in small letters.
    pub scheme: String,
    /// By name in small letters.
    fields: Vec<(String, String)>,
}

impl Challenge {
    /// What is said under a name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// The challenges of all header lines of an answer, in order.
pub fn challenges<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    for line in lines {
        let mut rest = line;
        loop {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
            let (name, behind) = rest.split_at(end);
            if name.is_empty() {
                break;
            }
            let value =
                behind.trim_start_matches([' ', '\t']).strip_prefix('=').map(|v| v.trim_start_matches([' ', '\t']));
            if let (Some(value), Some(challenge)) = (value, found.last_mut()) {
                let (value, behind) = read_value(value);
                challenge.fields.push((name.to_ascii_lowercase(), value));
                rest = behind;
            } else {
                found.push(Challenge { scheme: name.to_ascii_lowercase(), fields: Vec::new() });
                // the form without names, as Negotiate has it
                rest = skip_blob(behind);
            }
        }
    }
    found
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// A value with or without quotes, and what follows.
fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        // some write addresses without quotes
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// What follows a lone value behind a scheme; all of `text` if there is none.
fn skip_blob(text: &str) -> &str {
    let blob = text.trim_start_matches([' ', '\t']);
    let end = blob.find([',', ' ', '\t', '"']).unwrap_or(blob.len());
    let (word, behind) = blob.split_at(end);
    let lone = behind.is_empty() || behind.starts_with(',');
    let named = word.trim_end_matches('=').contains('=');
    if lone && !named && !word.is_empty() && text.len() > blob.len() { behind } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> Vec<String> {
        let said = |c: Challenge| {
            let fields: Vec<String> = c.fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("{} {}", c.scheme, fields.join(";"))
        };
        challenges(lines.iter().copied()).into_iter().map(said).collect()
    }

    #[test]
    fn every_form_of_the_header_is_understood() {
        let hub =
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#;
        let wanted = "bearer realm=https://auth.docker.io/token;service=registry.docker.io;scope=repository:a/b:pull";
        assert_eq!(of(&[hub]), [wanted]);
        assert_eq!(of(&[r#"BEARER Realm = "https://x/t" , Service=reg"#]), ["bearer realm=https://x/t;service=reg"]);
        assert_eq!(of(&["bearer realm=https://x/t?a=b,service=reg"]), ["bearer realm=https://x/t?a=b;service=reg"]);
        let both = r#"Basic realm="a, \"b\"", Bearer realm="https://x/t""#;
        assert_eq!(of(&[both]), [r#"basic realm=a, "b""#, "bearer realm=https://x/t"]);
        assert_eq!(of(&["Basic", r#"Bearer realm="https://x/t""#]), ["basic ", "bearer realm=https://x/t"]);
        assert_eq!(of(&["Negotiate YWJj==, Basic realm=x"]), ["negotiate ", "basic realm=x"]);
        assert_eq!(of(&["Negotiate, NTLM, Basic realm=x"]), ["negotiate ", "ntlm ", "basic realm=x"]);
        assert_eq!(of(&["", ",,", "\"", r#"Bearer realm="open"#]), ["bearer realm=open"]);
    }
}
