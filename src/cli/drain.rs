//! `pikelet drain-local`: stop every pod of this node, then the agent.

use std::path::{Path, PathBuf};

use super::Outcome;
use super::client::Failure;
use crate::server::local;

/// Arguments of `pikelet drain-local`.
#[derive(clap::Args)]
pub struct Args {
    /// State directory of the agent
    #[arg(long, default_value = "/run/pikelet")]
    state_dir: PathBuf,
    /// Keep what pods have on disk, and tell nobody that they ended: they go on when the machine has been restarted
    #[arg(long)]
    for_restart: bool,
}

/// Waits until every pod is gone.
pub fn run(args: &Args) -> Outcome {
    if args.for_restart {
        return local::ask(&args.state_dir, "POST", "/drain?forRestart=true").map(drop);
    }
    drain(&args.state_dir)
}

/// The same for the agent of a state directory.
pub fn drain(state_dir: &Path) -> Result<(), Failure> {
    local::ask(state_dir, "POST", "/drain").map(drop)
}
