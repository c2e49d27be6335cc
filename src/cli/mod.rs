//! One file per subcommand.

mod check;
mod client;
mod drain;
mod exec;
mod logs;
mod port_forward;
mod ps;
mod run;
mod terminal;
mod top;

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
    /// Look whether this machine can be a node, and what mends it if not
    Check(Box<check::Args>),
    /// List the pods of this node
    Ps(ps::Args),
    /// Run a command in a container
    Exec(exec::ExecArgs),
    /// Join the streams of a container's own process
    Attach(exec::AttachArgs),
    /// Print the log of a container
    Logs(logs::Args),
    /// Offer ports of a pod on loopback
    PortForward(port_forward::Args),
    /// Show what node and pods use
    Top(top::Args),
    /// Stop every pod of this node, then the agent
    DrainLocal(drain::Args),
}

/// What a subcommand may end with.
type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

/// Runs the command line.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(*args),
        Command::Check(args) => return check::run(*args).unwrap_or_else(fail),
        Command::Ps(args) => ps::run(&args),
        Command::DrainLocal(args) => drain::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Exec(args) => return leave(exec::exec(&args)),
        Command::Attach(args) => return leave(exec::attach(&args)),
        Command::Logs(args) => return leave(logs::run(&args)),
        Command::PortForward(args) => return leave(port_forward::run(&args)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error),
    }
}

fn fail(error: client::Failure) -> ExitCode {
    eprintln!("pikelet: {error}");
    ExitCode::FAILURE
}

/// Ends at once with a command's exit code: a thread may still wait for keys that nobody types.
fn leave(outcome: Result<i32, client::Failure>) -> ExitCode {
    let code = outcome.unwrap_or_else(|error| {
        eprintln!("pikelet: {error}");
        1
    });
    std::process::exit(code)
}
