//! `pikelet upgrade`: another system for a board that runs the appliance.

use std::process::ExitCode;

use super::client::Failure;
use crate::init::upgrade::{self, Source, UNFIT, Unfit};

/// Arguments of `pikelet upgrade`.
#[derive(clap::Args)]
pub struct Args {
    /// Image, the same as for `flash`: FILE, FILE#sha256:HEX or URL#sha256:HEX; with ,older behind the digest one that is
    /// older than the system of now
    image: Source,
    /// Leave the restart to somebody else
    #[arg(long)]
    no_restart: bool,
    /// By the Node's annotation
    #[arg(long, hide = true)]
    asked: bool,
}

/// Runs the command; the exit code says of an image that it is of no use here.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    if !upgrade::is_possible() {
        return Err(
            "this is no board that runs pikelet's appliance, or its processes are not seen from here (hostPID); where \
             Debian runs, apt installs what is newer"
                .into(),
        );
    }
    let record = match upgrade::install(&args.image, args.asked) {
        Err(error) if error.is::<Unfit>() => {
            eprintln!("pikelet: {error}");
            return Ok(ExitCode::from(UNFIT));
        }
        other => other?,
    };
    eprintln!("system {}: {}: it is tried at the next start", record.set, record.system);
    if !args.no_restart {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(1), nix::sys::signal::Signal::SIGTERM)
            .map_err(|e| format!("asking for a restart: {e}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
