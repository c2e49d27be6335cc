//! The systemd unit of the agent, as `pikelet join` and `leave` want it.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use super::client::Failure;
use crate::config::DEFAULT_FILE;
use crate::files::{self, Durability};

const NAME: &str = "pikelet.service";
/// Where a unit is made if the system has none.
const FILE: &str = "/etc/systemd/system/pikelet.service";
/// First line of such a one: it may be removed again.
const OURS: &str = "# written by `pikelet join`, removed by `pikelet leave`\n";
const UNIT: &str = include_str!("../../systemd/pikelet.service");
/// The command in it.
const START: &str = "/usr/local/bin/pikelet run";

/// Whether systemd manages this machine (`sd_booted(3)`).
pub fn systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

fn systemctl(args: &[&str]) -> Result<String, Failure> {
    let done = Command::new("systemctl").args(args).output();
    let done = done.map_err(|e| format!("running systemctl {}: {e}", args.join(" ")))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(format!("systemctl {}: {}", args.join(" "), said.trim()).into())
}

/// The command that starts an agent with the settings file `config`, as systemd.service(5) has it.
pub fn command(config: &Path) -> Result<String, Failure> {
    let program = quoted(&std::env::current_exe()?.display().to_string());
    let config =
        (config != Path::new(DEFAULT_FILE)).then(|| format!(" --config {}", quoted(&config.display().to_string())));
    Ok(format!("{program} run{}", config.unwrap_or_default()))
}

/// One word of a command line of a unit.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@=,".contains(c);
    if word.chars().all(plain) {
        return word.to_owned();
    }
    let mut text = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            // specifiers and variables
            '%' | '$' => text.extend([c, c]),
            c => text.push(c),
        }
    }
    text + "\""
}

/// Groups whose members are as good as root: root's own, and Debian's `staff`, which may write below /usr/local.
const TRUSTED_GROUPS: [u32; 2] = [0, 50];
const WRITABLE_BY_GROUP: u32 = 0o020;
const WRITABLE_BY_ALL: u32 = 0o002;

/// Who but root could put another file into the place of one that is so.
fn others(found: &Metadata) -> Option<String> {
    if found.uid() != 0 {
        return Some(format!("belongs to user {}", found.uid()));
    }
    if found.mode() & WRITABLE_BY_ALL != 0 {
        return Some("may be written by everybody".to_owned());
    }
    let group = found.mode() & WRITABLE_BY_GROUP != 0 && !TRUSTED_GROUPS.contains(&found.gid());
    group.then(|| format!("may be written by group {}", found.gid()))
}

/// An error when somebody else than root could replace the program that root's service is going to run.
fn is_roots(program: &Path) -> Result<(), Failure> {
    let program = program.canonicalize()?;
    for part in program.ancestors() {
        let found = fs::metadata(part).map_err(|e| format!("{}: {e}", part.display()))?;
        if let Some(why) = others(&found) {
            return Err(format!(
                "no service is made of {}: {} {why}, and whoever replaces the program is root at the next start; install it \
                 first, and join by that: install -m 755 {} /usr/local/bin/pikelet && /usr/local/bin/pikelet join ...",
                program.display(),
                part.display(),
                program.display()
            )
            .into());
        }
    }
    Ok(())
}

/// An error when a unit would have to be made, and the program is none that root's service may run.
pub fn may_start() -> Result<(), Failure> {
    match systemctl(&["cat", NAME]) {
        Ok(unit) if !unit.contains(OURS.trim_end()) => Ok(()),
        Ok(_) | Err(_) => is_roots(&std::env::current_exe()?),
    }
}

/// Enables the unit and starts it anew; makes it if there is none. Returns what was done.
pub fn start(config: &Path) -> Result<Vec<String>, Failure> {
    let mut done = Vec::new();
    let wanted = command(config)?;
    match systemctl(&["cat", NAME]) {
        // one of an administrator or a package is not changed
        Ok(unit) if !unit.contains(OURS.trim_end()) => {
            let runs = unit.lines().find_map(|l| l.strip_prefix("ExecStart=")).unwrap_or_default();
            if config != Path::new(DEFAULT_FILE) && !runs.contains(&config.display().to_string()) {
                return Err(format!(
                    "the unit {NAME} does not use {}: it runs `{runs}`; let it run `{wanted}` (systemctl edit {NAME}), then: \
                     systemctl enable --now {NAME}",
                    config.display()
                )
                .into());
            }
        }
        Ok(_) | Err(_) => {
            let unit = format!("{OURS}{}", UNIT.replace(START, &wanted));
            files::write(Path::new(FILE), unit.as_bytes(), 0o644, Durability::Volatile)
                .map_err(|e| format!("writing {FILE}: {e}"))?;
            systemctl(&["daemon-reload"])?;
            done.push(format!("wrote {FILE}"));
        }
    }
    systemctl(&["enable", NAME])?;
    // not waited for: it is up once the node has joined, which may take a person
    systemctl(&["restart", "--no-block", NAME])?;
    done.push(format!("enabled and started {NAME}: journalctl -fu {NAME} shows how it joins"));
    Ok(done)
}

/// The unit is not started at boot any more. One that does not exist is no error.
pub fn disable() -> Result<(), Failure> {
    if systemctl(&["cat", NAME]).is_err() { Ok(()) } else { systemctl(&["disable", NAME]).map(drop) }
}

/// Ends the agent, and removes a unit that was made here.
pub fn remove() -> Result<(), Failure> {
    let Ok(unit) = systemctl(&["cat", NAME]) else { return Ok(()) };
    systemctl(&["stop", NAME])?;
    if unit.contains(OURS.trim_end()) {
        std::fs::remove_file(FILE).map_err(|e| format!("removing {FILE}: {e}"))?;
        systemctl(&["daemon-reload"])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_has_the_command_that_is_replaced() {
        assert_eq!(UNIT.matches(START).count(), 1);
        let program = std::env::current_exe().unwrap();
        assert_eq!(command(Path::new("/c")).unwrap(), format!("{} run --config /c", program.display()));
        assert!(command(Path::new(DEFAULT_FILE)).unwrap().ends_with(" run"));
    }

    #[test]
    fn words_are_those_of_systemd() {
        for (word, written) in [
            ("/usr/local/bin/pikelet", "/usr/local/bin/pikelet"),
            ("/a b/c", "\"/a b/c\""),
            ("/100%/$HOME", "\"/100%%/$$HOME\""),
            ("/a\"b\\c", "\"/a\\\"b\\\\c\""),
        ] {
            assert_eq!(quoted(word), written);
        }
    }

    #[test]
    fn a_service_is_made_of_no_file_that_others_may_replace() {
        let folder = crate::machine::folder::Folder::new();
        let program = folder.path().join("pikelet");
        drop(files::create(&program, 0o755).unwrap());
        // below /tmp, which everybody may write
        let error = is_roots(&program).unwrap_err().to_string();
        assert!(error.contains("may be written by everybody") && error.contains("/usr/local/bin"), "{error}");
        for (mode, told) in [(0o755, false), (0o777, true), (0o775, false)] {
            files::set_mode(&program, mode).unwrap();
            let found = fs::metadata(&program).unwrap();
            assert_eq!(others(&found).is_some(), told || found.uid() != 0, "{mode:o}");
        }
    }
}
