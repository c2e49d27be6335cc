//! One file per subcommand.

mod drain;
mod ps;
mod run;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "pikelet", version, about = "The Kubernetes node agent for single-board computers")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the node agent
    Run(Box<run::Args>),
    /// List the pods of this node
    Ps(ps::Args),
    /// Stop every pod of this node, then the agent
    DrainLocal(drain::Args),
}

/// What a subcommand may end with.
type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

/// Runs the command line.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(*args),
        Command::Ps(args) => ps::run(&args),
        Command::DrainLocal(args) => drain::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pikelet: {error}");
            ExitCode::FAILURE
        }
    }
}
