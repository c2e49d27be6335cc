//! The command line and the environment, whose secrets leave both as soon as they are read: anybody may look at the process
//! list, and every child gets the environment.

use std::ffi::OsString;
use std::sync::OnceLock;

use crate::config::hidden;

/// Commands that take settings, or a token.
const WITH_SECRETS: [&str; 5] = ["run", "check", "join", "leave", "flash"];
/// Variables that are secrets, among those that settings are taken from.
const VARIABLES: [&str; 1] = ["K3S_TOKEN"];
/// In the place of each byte of a secret.
const OMITTED: u8 = b'*';

/// The words of the command line. The process list has them without secrets from now on.
pub fn take() -> Vec<OsString> {
    let words: Vec<OsString> = std::env::args_os().collect();
    if words.get(1).is_some_and(|command| WITH_SECRETS.iter().any(|c| command == *c))
        && let Some((start, end)) = place(&std::fs::read_to_string("/proc/self/stat").unwrap_or_default())
    {
        // SAFETY: the kernel put the words there, one after another, and nothing else is between; the memory is this
        // process's, may be written, and no thread and no reference into it exists yet.
        #[allow(unsafe_code)]
        let area = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, end - start) };
        let known: usize = words.iter().map(|word| word.len() + 1).sum();
        if known == area.len() {
            hide(area);
        }
    }
    words
}

/// What [`forget`] took out of the environment.
static TOKEN: OnceLock<String> = OnceLock::new();

/// The token that was in the environment.
pub fn token() -> Option<String> {
    TOKEN.get().cloned()
}

/// Takes secrets out of the environment, once settings were read from it; no thread may exist yet.
pub fn forget() {
    if let Ok(token) = std::env::var("K3S_TOKEN") {
        // it is set here only
        let _ = TOKEN.set(token);
    }
    for name in VARIABLES {
        // SAFETY: there is no other thread that could read the environment meanwhile.
        #[allow(unsafe_code)]
        unsafe {
            std::env::remove_var(name);
        }
    }
}

/// Where the words begin and end (proc(5), `/proc/pid/stat`: `arg_start` and `arg_end`).
fn place(stat: &str) -> Option<(usize, usize)> {
    // the name of the program is in parentheses and may have anything in it; the third field follows
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(48 - 3);
    let mut number = || fields.next()?.parse::<usize>().ok();
    let (start, end) = (number()?, number()?);
    (start != 0 && start < end).then_some((start, end))
}

/// Overwrites the secrets among words that end with a zero each.
fn hide(area: &mut [u8]) {
    let words: Vec<&[u8]> = area.split(|b| *b == 0).collect();
    let places = hidden(&words);
    for (word, place) in area.split_mut(|b| *b == 0).zip(places) {
        if let Some(secret) = place.and_then(|at| word.get_mut(at..)) {
            secret.fill(OMITTED);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn secrets_are_overwritten_where_they_are() {
        let mut area = b"pikelet\0run\0--token\0secret\0-v\04\0-tsecret\0".to_vec();
        hide(&mut area);
        assert_eq!(area, b"pikelet\0run\0--token\0******\0-v\04\0-t******\0");
    }

    #[test]
    fn the_kernel_says_where_the_words_are() {
        let (start, end) = place(&std::fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
        let words: usize = std::env::args_os().map(|word| word.as_bytes().len() + 1).sum();
        assert_eq!(end - start, words);
        assert_eq!(place("1 (a) b) S 1"), None);
        assert_eq!(place(""), None);
    }
}
