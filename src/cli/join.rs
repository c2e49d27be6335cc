//! `pikelet join`: look at everything first, then write the settings and start the service.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::check::{lines, plan};
use super::client::{Failure, block_on};
use super::table::print;
use super::unit;
use crate::cluster::preflight;
use crate::config::{Config, DEFAULT_FILE, Settings, edit};
use crate::machine::check::{check, fit};
use crate::membership::member;
use crate::pki::write_secret;
use crate::pod::table::PodTable;

/// Arguments of `pikelet join`: those of `pikelet run`, which are kept in the settings file.
#[derive(clap::Args)]
pub struct Args {
    /// Only look; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Settings file that is written [default: /etc/pikelet/config.yaml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// Joins; the exit code is 1 when something needed is missing, and nothing was changed then.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err("only root can make this machine a node: try again with sudo".into());
    }
    let file = std::path::absolute(args.config.as_deref().unwrap_or(Path::new(DEFAULT_FILE)))?;
    let given = args.settings.absolute()?;
    let text = read(&file)?;
    // what is in the file of another cluster does not count
    let base = edit::write(&text, &Settings::default(), &edit::replaced(&given));
    let base = base.map_err(|e| format!("{}: {e}", file.display()))?;
    let config = Config::of(&file, &base, given.clone())?;
    let Some(how) = &config.join else {
        return Err("join which cluster? --server URL with --token TOKEN, or --kubeconfig FILE".into());
    };
    let mut findings = check(&plan(&config));
    findings.extend(block_on(async { Ok(preflight(how, &member(&config, &PodTable::default())).await) })?);
    let fit = fit(&findings);
    print(&lines(&findings, fit))?;
    if !fit {
        eprintln!("pikelet: not joined, and nothing was changed");
        return Ok(ExitCode::FAILURE);
    }
    if args.dry_run {
        print("dry run: nothing was changed\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    if unit::systemd() {
        unit::may_start()?;
    }
    write(&file, &text, given)?;
    print(&format!("wrote {}\n", file.display()))?;
    if unit::systemd() {
        let done = unit::start(&file)?;
        print(&format!("{}\n", done.join("\n")))?;
    } else {
        let command = unit::command(&file)?;
        print(&format!("no systemd manages this machine: let its own service manager run, as root: {command}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A settings file; one that is not there yet is empty.
pub fn read(file: &Path) -> Result<String, Failure> {
    match std::fs::read_to_string(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("reading {}: {error}", file.display()).into())
        }
        read => Ok(read.unwrap_or_default()),
    }
}

/// Where a token that was given is kept, beside the settings.
pub fn token_file(config: &Path) -> PathBuf {
    config.with_file_name("token")
}

/// Keeps what was given: the token in a file of its own.
fn write(file: &Path, text: &str, mut given: Settings) -> Result<(), Failure> {
    let secret = given.token.take().filter(|t| !t.is_empty());
    if secret.is_some() {
        given.token_file = Some(token_file(file));
    }
    let text = edit::write(text, &given, &edit::replaced(&given)).map_err(|e| format!("{}: {e}", file.display()))?;
    let keep =
        |path: &Path, text: &str| write_secret(path, text).map_err(|e| format!("writing {}: {e}", path.display()));
    if let Some(token) = secret {
        keep(&token_file(file), &format!("{token}\n"))?;
    }
    Ok(keep(file, &text)?)
}
