//! `pikelet run`: settings, logs, the async runtime, the agent.

use std::path::PathBuf;

use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::Outcome;
use crate::config::{Config, Settings};

/// Threads for what cannot wait without one: unpacking, entering a pod's network, removing trees.
const BLOCKING_THREADS: usize = 16;

/// Arguments of `pikelet run`.
#[derive(clap::Args)]
pub struct Args {
    /// Settings file [default: /etc/pikelet/config.yaml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// What is logged, of this program's own and of its parts.
fn levels(verbosity: u8) -> Targets {
    let (own, others) = match verbosity {
        0..4 => (LevelFilter::INFO, LevelFilter::INFO),
        4..6 => (LevelFilter::DEBUG, LevelFilter::INFO),
        _ => (LevelFilter::TRACE, LevelFilter::DEBUG),
    };
    Targets::new().with_default(others).with_target("pikelet", own)
}

/// Runs the agent until SIGTERM.
pub fn run(args: Args) -> Outcome {
    let config = Config::load(args.config.as_deref(), args.settings)?;
    let asked = std::env::var("RUST_LOG").ok().and_then(|levels| levels.parse::<Targets>().ok());
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let logs = if config.json_logs { logs.json().boxed() } else { logs.with_ansi(false).with_target(false).boxed() };
    tracing_subscriber::registry().with(logs.with_filter(asked.unwrap_or_else(|| levels(config.verbosity)))).init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()?;
    runtime.block_on(crate::agent::run(config))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn verbosity_says_more_of_this_program_than_of_its_parts() {
        let said = |verbosity, target, level| levels(verbosity).would_enable(target, &level);
        assert!(said(0, "pikelet::pod", Level::INFO) && !said(3, "pikelet::pod", Level::DEBUG));
        assert!(said(4, "pikelet::pod", Level::DEBUG) && !said(4, "hyper::client", Level::DEBUG));
        assert!(said(6, "pikelet::pod", Level::TRACE) && !said(6, "hyper::client", Level::TRACE));
    }
}
