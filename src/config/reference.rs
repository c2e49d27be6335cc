//! `docs/settings.md`: every setting, written from where it is defined.
//!
//! `PIKELET_WRITE_DOCS=1 cargo test --lib settings_are_documented` writes it anew.

use std::fmt::Write;
use std::path::Path;

use super::foreign;
use crate::files::{self, Durability};

/// Where settings are defined.
const SOURCE: &str = include_str!("settings.rs");

/// One setting as its definition says it.
#[derive(Default)]
struct Defined {
    field: String,
    text: String,
    attributes: String,
}

impl Defined {
    /// The values of `name = "..."` among the attributes of `of` (`arg` or `serde`).
    fn all(&self, of: &str, name: &str) -> Vec<String> {
        let mut found = Vec::new();
        for attribute in self.attributes.split("#[").filter(|a| a.starts_with(of)) {
            let pattern = format!("{name} = \"");
            let mut rest = attribute;
            while let Some((before, after)) = rest.split_once(&pattern) {
                let (value, behind) = after.split_once('"').unwrap();
                let whole = before.ends_with([' ', '(']);
                found.extend(whole.then(|| value.to_owned()));
                rest = behind;
            }
        }
        found
    }

    fn names(&self) -> Vec<String> {
        let own = self.all("serde", "rename").first().cloned().unwrap_or_else(|| camel(&self.field));
        [vec![own], self.all("serde", "alias")].concat()
    }

    fn flags(&self) -> Vec<String> {
        if self.attributes.contains("arg(skip)") {
            return Vec::new();
        }
        let own = self.all("arg", "long").first().cloned().unwrap_or_else(|| self.field.replace('_', "-"));
        let all = [vec![own], self.all("arg", "alias")].concat();
        all.into_iter().map(|flag| format!("--{flag}")).collect()
    }
}

fn camel(field: &str) -> String {
    let mut up = false;
    let letter = |c: char| {
        let cased = if std::mem::take(&mut up) { c.to_ascii_uppercase() } else { c };
        up = c == '_';
        (c != '_').then_some(cased)
    };
    field.chars().filter_map(letter).collect()
}

fn defined() -> Vec<Defined> {
    let (mut all, mut now) = (Vec::new(), Defined::default());
    let body = SOURCE.split_once("pub struct Settings {").unwrap().1;
    for line in body.lines().map(str::trim).take_while(|line| *line != "}") {
        if let Some(text) = line.strip_prefix("/// ") {
            now.text = format!("{} {text}", now.text).trim().to_owned();
        } else if let Some(field) = line.strip_prefix("pub ") {
            now.field = field.split(':').next().unwrap().to_owned();
            all.push(std::mem::take(&mut now));
        } else {
            now.attributes = format!("{} {line}", now.attributes);
        }
    }
    all
}

fn cell(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn document() -> String {
    let mut text = String::from(
        "# Settings\n\n\
         Of the file (`/etc/pikelet/config.yaml`, or `--config FILE`), and of `pikelet run` and `pikelet join`, which go before\n\
         it. Names are those of the kubelet's `KubeletConfiguration` and flags; those of k3s are taken as well, and files of a\n\
         kubelet or of `k3s agent` as they are. This page is written by a test, from the definitions.\n\n\
         | in the file | flag | what it says |\n|---|---|---|\n",
    );
    for setting in defined() {
        let env = setting.all("arg", "env").first().map(|env| format!(" (`{env}`)")).unwrap_or_default();
        let what = setting.text.replace('|', "\\|").replace('<', "\\<");
        let (names, flags) = (cell(&setting.names()), cell(&setting.flags()));
        writeln!(text, "| {names} | {flags}{env} | {what} |").unwrap();
    }
    for (title, rows) in foreign::tables() {
        write!(text, "\n## {title}\n\n| name | what becomes of it |\n|---|---|\n").unwrap();
        for (field, flag, fate) in rows {
            let names: Vec<String> = [field, flag].into_iter().filter(|n| !n.is_empty()).map(str::to_owned).collect();
            writeln!(text, "| {} | {fate} |", cell(&names)).unwrap();
        }
    }
    text
}

#[test]
fn settings_are_documented() {
    let (file, wanted) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/settings.md"), document());
    if std::env::var_os("PIKELET_WRITE_DOCS").is_some() {
        files::write(&file, wanted.as_bytes(), 0o644, Durability::Volatile).unwrap();
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(found == wanted, "docs/settings.md is old: PIKELET_WRITE_DOCS=1 cargo test --lib settings_are_documented");
}

#[test]
fn names_are_those_that_are_read() {
    let command = <super::Settings as clap::Args>::augment_args(clap::Command::new("x"));
    let mut known: Vec<String> = Vec::new();
    for arg in command.get_arguments() {
        let names = arg.get_long().into_iter().chain(arg.get_all_aliases().into_iter().flatten());
        known.extend(names.map(|name| format!("--{name}")));
    }
    let written: Vec<String> = defined().iter().flat_map(Defined::flags).collect();
    assert_eq!(written, known);
    for setting in defined() {
        for name in setting.names() {
            let error = super::parse(&format!("{name}: {{unheard-of: 1}}\n")).err().unwrap_or_default();
            assert!(!error.contains(&format!("no setting {name:?}")), "{error}");
        }
    }
}
