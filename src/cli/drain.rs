//! `pikelet drain-local`: stop every pod of this node, then the agent.

use std::path::PathBuf;

use super::Outcome;
use crate::server::local;

/// Arguments of `pikelet drain-local`.
#[derive(clap::Args)]
pub struct Args {
    /// State directory of the agent
    #[arg(long, default_value = "/run/pikelet")]
    state_dir: PathBuf,
}

/// Waits until every pod is gone.
pub fn run(args: &Args) -> Outcome {
    local::ask(&args.state_dir, "POST", "/drain").map(drop)
}
