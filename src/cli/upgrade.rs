//! `pikelet upgrade`: another system for a board that runs the appliance.

use super::Outcome;
use crate::init::upgrade::{self, Source};

/// Arguments of `pikelet upgrade`.
#[derive(clap::Args)]
pub struct Args {
    /// Image, the same as for `flash`: FILE, FILE#sha256:HEX or URL#sha256:HEX
    image: Source,
    /// Leave the restart to somebody else
    #[arg(long)]
    no_restart: bool,
    /// By the Node's annotation
    #[arg(long, hide = true)]
    asked: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Outcome {
    if !upgrade::is_possible() {
        return Err(
            "this is no board that runs pikelet's appliance, or its processes are not seen from here (hostPID); where \
             Debian runs, apt installs what is newer"
                .into(),
        );
    }
    let record = upgrade::install(&args.image, args.asked)?;
    eprintln!("system {}: {}: it is tried at the next start", record.set, record.system);
    if !args.no_restart {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(1), nix::sys::signal::Signal::SIGTERM)
            .map_err(|e| format!("asking for a restart: {e}"))?;
    }
    Ok(())
}
