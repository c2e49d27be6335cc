//! Which words of a command line others may see: in the process list, and in what k3s has nodes say of themselves.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use super::Settings;

/// Settings whose value may be a secret, by their field.
const SECRET: [&str; 4] = ["token", "static_pod_url", "static_pod_url_header", "kubelet_arg"];
/// Flags of commands that take settings, beside those.
const MORE: [&str; 11] = [
    "config",
    "dry-run",
    "timeout",
    "output",
    "settings",
    "yes",
    "address",
    "gateway",
    "name-servers",
    "time-servers",
    "help",
];

/// Flags that may be seen with their value, long and short.
struct Shown {
    long: BTreeSet<String>,
    short: BTreeSet<char>,
}

static SHOWN: LazyLock<Shown> = LazyLock::new(|| {
    let settings = <Settings as clap::Args>::augment_args(clap::Command::new("settings"));
    let mut shown = Shown { long: MORE.iter().map(|name| (*name).to_owned()).collect(), short: BTreeSet::new() };
    for flag in settings.get_arguments().filter(|flag| !SECRET.contains(&flag.get_id().as_str())) {
        shown
            .long
            .extend(flag.get_long().into_iter().chain(flag.get_all_aliases().into_iter().flatten()).map(str::to_owned));
        shown.short.extend(flag.get_short());
    }
    shown
});

/// From which byte on each word is to be hidden; `None`: it may be seen. A flag that is not known hides its value.
pub(crate) fn hidden(words: &[&[u8]]) -> Vec<Option<usize>> {
    let mut next = false;
    let mut of = |word: &[u8]| {
        if std::mem::take(&mut next) {
            return Some(0);
        }
        if word == b"--" || word == b"-" {
            return None;
        }
        if let Some(flag) = word.strip_prefix(b"--") {
            let equals = flag.iter().position(|b| *b == b'=');
            let name = flag.get(..equals.unwrap_or(flag.len())).unwrap_or_default();
            if std::str::from_utf8(name).is_ok_and(|name| SHOWN.long.contains(name)) {
                return None;
            }
            next = equals.is_none();
            return equals.map(|at| at + b"--=".len());
        }
        match word {
            [b'-', first, ..] if SHOWN.short.contains(&char::from(*first)) => None,
            // a value may follow a short flag at once, or short flags one another
            [b'-', _, rest @ ..] => {
                next = rest.is_empty() || rest.contains(&b't');
                Some(2)
            }
            _ => None,
        }
    };
    words.iter().map(|word| of(word)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(line: &str) -> String {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let cut = |(word, at): (&&[u8], Option<usize>)| {
            let word = String::from_utf8_lossy(word).into_owned();
            at.map_or(word.clone(), |at| format!("{}*", word.get(..at).unwrap_or_default()))
        };
        words.iter().zip(hidden(&words)).map(cut).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn only_known_flags_show_their_values() {
        for (line, shown) in [
            ("run --token x -v 4", "run --token * -v 4"),
            ("run --token=x --v=4 -s u", "run --token=* --v=4 -s u"),
            ("run -t x -v4", "run -t* * -v4"),
            ("run -tx --node-label a=b", "run -t* --node-label a=b"),
            (
                "run --manifest-url-header A:x --manifest-url http://u:p@h",
                "run --manifest-url-header * --manifest-url *",
            ),
            ("flash -yt x image", "flash -y* * image"),
            ("join --server u --dry-run --unheard-of x", "join --server u --dry-run --unheard-of *"),
            ("run --data-dir=/d -- t", "run --data-dir=/d -- t"),
        ] {
            assert_eq!(seen(line), shown);
        }
    }
}
