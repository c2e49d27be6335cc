//! The systemd unit of the agent, as `pikelet join` and `leave` want it.

use std::path::Path;
use std::process::Command;

use super::client::Failure;
use crate::config::DEFAULT_FILE;

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

/// The command that starts an agent with the settings file `config`.
pub fn command(config: &Path) -> Result<String, Failure> {
    let program = std::env::current_exe()?;
    let named =
        if config == Path::new(DEFAULT_FILE) { String::new() } else { format!(" --config {}", config.display()) };
    Ok(format!("{} run{named}", program.display()))
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
            std::fs::write(FILE, unit).map_err(|e| format!("writing {FILE}: {e}"))?;
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
}
