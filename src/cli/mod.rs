//! One file per subcommand.

mod archives;
mod arguments;
mod check;
mod client;
mod drain;
mod exec;
mod flash;
mod images;
mod inspect;
mod join;
mod leave;
mod logs;
mod manual;
mod port_forward;
mod progress;
mod ps;
mod run;
mod stats;
mod stop;
mod table;
mod terminal;
mod top;
mod unit;
mod upgrade;

use std::error::Error;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{CommandFactory, Parser, Subcommand};

use crate::cluster::KUBELET_VERSION;
use crate::machine::architecture;

/// What it is, the kubelet whose behaviour it has, and what it was built for.
static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{}, kubelet {KUBELET_VERSION}, linux/{}", env!("CARGO_PKG_VERSION"), architecture()));

#[derive(Parser)]
#[command(name = "pikelet", version = VERSION.as_str(), about = "The Kubernetes node agent for single-board computers")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the node agent
    Run(Box<run::Args>),
    /// Check whether this machine can run as a node, and how to fix what is missing
    Check(Box<check::Args>),
    /// Join a cluster: look at everything first, write the settings, start the service
    ///
    /// Looks whether this machine is fit, whether the server is there and the right one, and whether it takes the token;
    /// with anything missing nothing is changed. Then the flags are written into the settings file, which keeps what else
    /// it has, the token into a file beside it, and the systemd unit is enabled and started (it is made if there is none).
    Join(Box<join::Args>),
    /// Leave the cluster: what `join` did is undone
    ///
    /// The service is disabled, the Node cordoned, its pods are evicted, the rest is stopped, the Node deleted if the cluster
    /// lets it, then the membership and all state of the agent are removed. Goes on after an error, and ends with what
    /// could not be done. Archives of images, logs, and all other settings stay.
    Leave(Box<leave::Args>),
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
    /// List the images of this node
    Images(images::ListArgs),
    /// Pull an image
    Pull(images::PullArgs),
    /// Remove images
    Rmi(images::RemoveArgs),
    /// Work with images: import and export archives; list, pull and rm are `images`, `pull` and `rmi`
    #[command(subcommand)]
    Image(archives::Command),
    /// Show what node and pods use
    Top(top::Args),
    /// Show what each container uses
    Stats(stats::Args),
    /// Show a pod, its sandbox and containers as the runtime has them, in JSON
    Inspect(inspect::Args),
    /// Stop the containers of a pod; its restart policy decides whether they start again
    ///
    /// preStop hooks, SIGTERM and, after the grace period, SIGKILL. Returns when the containers have ended. With
    /// restartPolicy Always (that of every Deployment and DaemonSet) they start again, as after a crash: at once the
    /// first time, later with a growing delay. So this restarts a program; to keep it away, delete its pod
    /// (`kubectl delete pod`) or scale down what made it, or take its manifest away.
    Stop(stop::StopArgs),
    /// Remove the sandbox of a pod; a pod that is still wanted gets a fresh one
    ///
    /// Stops its containers as `stop` does, then removes them with their write layers, namespaces and addresses. Returns
    /// when they are gone. The pod itself stays, as it is the control plane's or its manifest's: unless its restart
    /// policy lets it end here, the agent makes it a new sandbox and runs it from its init containers on, at no delay.
    /// Volumes and logs stay. To remove the pod, delete it (`kubectl delete pod`) or take its manifest away.
    Rm(stop::RemoveArgs),
    /// Stop every pod of this node, then the agent
    DrainLocal(drain::Args),
    /// Write the appliance's image to a card, with its settings, and read it back
    Flash(flash::Args),
    /// Upgrade a board that runs the appliance, to fall back to the system of now if the new one does not work
    ///
    /// The image's system is written beside the one that runs, and the board restarts with it. Once its Node is Ready (without
    /// a cluster: its pods are up) it stays; a system that takes longer than upgradeTimeout (10m), hangs or fails is given up,
    /// and the board starts the old one again. Of a cluster, kubectl annotate node NAME
    /// pikelet.io/upgrade=URL#sha256:HEX,ed25519:SIGNATURE does the same, if upgradeKey in pikelet.yaml is the key.
    Upgrade(upgrade::Args),
    /// Print completions for a shell
    Completion(manual::CompletionArgs),
    /// Print the manual page
    Man(manual::ManArgs),
}

/// What a subcommand may end with.
type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

/// Runs the command line.
pub fn main() -> ExitCode {
    let cli = Cli::parse_from(arguments::take());
    arguments::forget();
    let outcome = match cli.command {
        Command::Run(args) => run::run(*args),
        Command::Check(args) => return check::run(*args).unwrap_or_else(fail),
        Command::Join(args) => return join::run(*args).unwrap_or_else(fail),
        Command::Leave(args) => leave::run(*args),
        Command::Ps(args) => ps::run(&args),
        Command::DrainLocal(args) => drain::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Stop(args) => stop::stop(&args),
        Command::Rm(args) => stop::remove(&args),
        Command::Flash(args) => flash::run(&args),
        Command::Upgrade(args) => return upgrade::run(&args).unwrap_or_else(fail),
        Command::Completion(args) => manual::completion(&args, Cli::command()),
        Command::Man(args) => manual::man(&args, Cli::command()),
        Command::Exec(args) => return leave(exec::exec(&args)),
        Command::Attach(args) => return leave(exec::attach(&args)),
        Command::Images(args) => return leave(images::list(&args)),
        Command::Image(command) => return leave(archives::run(&command)),
        Command::Pull(args) => return leave(images::pull(&args)),
        Command::Rmi(args) => return leave(images::remove(&args)),
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
