//! Secrets of the settings file, moved from the FAT partition, which any computer reads, to the data partition, when a person
//! wants that (`keepSecretsOnCard: false`) and they have shown to be right.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use super::settings::{self, key};
use super::{BOOT, Failure, boot};
use crate::files::{self, Durability};

/// Settings that are secrets, or hold passwords.
const SECRET: [&str; 3] = ["token", "registries", "wifi"];
/// For root alone.
const FOLDER: &str = "/var/lib/pikelet/secrets";

/// The settings that were moved; empty when none were.
pub fn kept() -> String {
    fs::read_to_string(Path::new(FOLDER).join(settings::FILE)).unwrap_or_default()
}

/// A part of a settings file: a setting with its lines, or what stands between two of them.
struct Part<'a> {
    key: Option<&'a str>,
    text: String,
}

fn parts(text: &str) -> Vec<Part<'_>> {
    let mut parts: Vec<Part<'_>> = Vec::new();
    for line in text.split_inclusive('\n') {
        let goes_on = line.starts_with([' ', '\t', '-', '}', ']']) && !line.trim().is_empty();
        match parts.last_mut() {
            Some(last) if goes_on => last.text.push_str(line),
            _ => parts.push(Part { key: key(line), text: line.to_owned() }),
        }
    }
    parts
}

/// The text with the settings of `kept` that it does not have itself.
pub fn with(text: &str, kept: &str) -> String {
    let text = text.trim_start_matches('\u{feff}');
    let own = parts(text);
    let more = parts(kept).into_iter().filter(|part| part.key.is_some_and(|k| own.iter().all(|o| o.key != Some(k))));
    let more: Vec<String> = more.map(|part| part.text).collect();
    let between = if more.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{between}{}", more.concat())
}

/// The text without its secrets, and these; `None` when it has none.
fn taken_out(text: &str) -> Option<(String, String)> {
    // what an editor of another system puts before the first setting
    let text = text.trim_start_matches('\u{feff}');
    let (mut rest, mut secrets) = (String::new(), String::new());
    for part in parts(text) {
        match part.key.filter(|key| SECRET.contains(key)) {
            Some(key) => {
                let end = if part.text.ends_with("\r\n") { "\r\n" } else { "\n" };
                let note =
                    format!("# {key}: moved to the board's data partition; what is written here again goes first");
                rest.push_str(&note);
                rest.push_str(end);
                secrets.push_str(part.text.trim_end());
                secrets.push('\n');
            }
            None => rest.push_str(&part.text),
        }
    }
    (!secrets.is_empty()).then_some((rest, secrets))
}

/// Why secrets could not be told from the rest of this text, if so.
pub(super) fn mistake(text: &str) -> Option<&'static str> {
    let one = text.trim_start_matches('\u{feff}').lines().any(|line| line.starts_with('{') || line.starts_with('?'));
    one.then_some("keepSecretsOnCard: secrets are moved line by line: write one setting a line, not all in braces")
}

/// Moves them, if there are any on the FAT partition. First they are on the data partition for good, then they leave the
/// other: a power cut leaves them on one or on both. True when there were some.
pub fn move_away() -> Result<bool, Failure> {
    let path = Path::new(BOOT).join(settings::FILE);
    let text = fs::read_to_string(&path).map_err(|e| format!("reading {}: {e}", path.display()))?;
    let Some((rest, secrets)) = taken_out(&text) else { return Ok(false) };
    let folder = Path::new(FOLDER);
    let keep = || {
        files::dir(folder, 0o700)?;
        let file = folder.join(settings::FILE);
        files::write(&file, with(&secrets, &kept()).as_bytes(), 0o600, Durability::Synced)?;
        files::sync_dir(folder)?;
        folder.parent().map_or(Ok(()), files::sync_dir)
    };
    keep().map_err(|e| format!("keeping secrets in {FOLDER}: {e}"))?;
    boot::writable(|| {
        let replace = || {
            let mut old = OpenOptions::new().write(true).open(&path)?;
            files::write(&path, rest.as_bytes(), 0o600, Durability::Synced)?;
            files::sync_dir(Path::new(BOOT))?;
            // what the file was is still on the card
            old.write_all(&vec![0; text.len()])?;
            old.sync_all()
        };
        Ok(replace().map_err(|e: std::io::Error| format!("writing {}: {e}", path.display()))?)
    })?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# mine\r\nserver: s\r\ntoken: K10secret\r\n# about registries\r\nregistries:\r\n  configs:\r\n    r:\r\n\
                        \x20     auth: {password: p}\r\n\r\nnodeName: pi\r\nregisterWithTaints:\r\n- a:NoSchedule\r\n";

    #[test]
    fn secrets_are_taken_out_and_the_rest_stays() {
        let (rest, secrets) = taken_out(TEXT).unwrap();
        assert!(!rest.contains("K10secret") && !rest.contains("password"));
        assert_eq!(rest.lines().count(), TEXT.lines().count() - 3);
        assert!(rest.contains("# token: moved") && rest.contains("# about registries\r\n# registries: moved"));
        assert!(rest.contains("nodeName: pi\r\nregisterWithTaints:\r\n- a:NoSchedule\r\n"));
        assert!(secrets.contains("token: K10secret\n") && secrets.contains("auth: {password: p}\n"));
        assert!(taken_out(&rest).is_none());
        assert!(taken_out("#token: x\n").is_none());
        let (rest, secrets) = taken_out("\u{feff}token: K10secret\nserver: s\n").unwrap();
        assert!(!rest.contains("K10secret") && secrets == "token: K10secret\n");
        assert!(mistake("\u{feff}{token: K10secret, server: s}\n").is_some() && mistake(TEXT).is_none());
    }

    #[test]
    fn what_was_moved_is_read_again_unless_it_is_written_anew() {
        let (rest, secrets) = taken_out(TEXT).unwrap();
        let again = with(&rest, &secrets);
        assert!(again.starts_with(&rest) && again.ends_with(&secrets));
        let anew = with("token: new", &secrets);
        assert!(anew.contains("token: new\nregistries:") && !anew.contains("K10secret"));
        assert_eq!(with("a: b", ""), "a: b");
    }
}
