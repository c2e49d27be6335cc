//! `pikelet run`: settings, logs, the async runtime, the agent.

use std::path::PathBuf;

use tracing_subscriber::EnvFilter;

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

/// Runs the agent until SIGTERM.
pub fn run(args: Args) -> Outcome {
    let config = Config::load(args.config.as_deref(), args.settings)?;
    let level = match config.verbosity {
        0..4 => "info",
        4..6 => "pikelet=debug,info",
        _ => "pikelet=trace,debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if config.json_logs {
        logs.json().init();
    } else {
        logs.with_ansi(false).with_target(false).init();
    }
    crate::allocator::bound();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()?;
    runtime.block_on(crate::agent::run(config))
}
