//! `pikelet run`: settings, logs, the async runtime, the agent.

use std::path::PathBuf;

use tracing::{Level, Metadata};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterExt, LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::Outcome;
use crate::config::{Config, Settings};

/// Threads for what cannot wait without one: unpacking, entering a pod's network, removing trees.
const BLOCKING_THREADS: usize = 16;

/// Whoever started the agent decides nothing by its own.
const UMASK: nix::sys::stat::Mode = nix::sys::stat::Mode::from_bits_truncate(0o022);

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

/// Whether a part says nothing of what is in an answer or a request. kube's client and watcher write whole answers of the
/// API server into the log, as warnings too: Secrets among them. What is wrong with them the agent says itself. HTTP is
/// heard down to frames by their kind; below that headers, with tokens in them, could be.
fn keeps_secrets(of: &Metadata<'_>) -> bool {
    let part = of.target().split("::").next().unwrap_or_default();
    match part {
        "kube" | "kube_client" | "kube_core" | "kube_runtime" => false,
        "h2" | "hyper" | "hyper_util" | "hyper_rustls" | "reqwest" | "rustls" | "tower" | "tower_http"
        | "tungstenite" | "tokio_tungstenite" | "axum" | "zbus" => *of.level() <= Level::DEBUG,
        _ => true,
    }
}

/// Runs the agent until SIGTERM.
pub fn run(args: Args) -> Outcome {
    // modes are named where files are made; what others make for this process is for root to change
    nix::sys::stat::umask(UMASK);
    let config = Config::load(args.config.as_deref(), args.settings)?;
    let asked = std::env::var("RUST_LOG").ok().and_then(|levels| levels.parse::<Targets>().ok());
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let logs = if config.json_logs { logs.json().boxed() } else { logs.with_ansi(false).with_target(false).boxed() };
    let levels = asked.unwrap_or_else(|| levels(config.verbosity)).and(filter_fn(keeps_secrets));
    tracing_subscriber::registry().with(logs.with_filter(levels)).init();
    for notice in &config.notices {
        tracing::info!("{notice}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()?;
    runtime.block_on(crate::agent::run(config))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn verbosity_says_more_of_this_program_than_of_its_parts() {
        let said = |verbosity, target, level| levels(verbosity).would_enable(target, &level);
        assert!(said(0, "pikelet::pod", Level::INFO) && !said(3, "pikelet::pod", Level::DEBUG));
        assert!(said(4, "pikelet::pod", Level::DEBUG) && !said(4, "hyper::client", Level::DEBUG));
        assert!(said(6, "pikelet::pod", Level::TRACE) && !said(6, "hyper::client", Level::TRACE));
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_answer_of_the_api_server_is_logged_whatever_is_asked_for() {
        for asked in ["trace", "kube_client::client=trace", "kube_client=warn,kube_runtime::watcher=debug,h2=trace"] {
            let log = Log::default();
            let writer = log.clone();
            let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
            let levels: Targets = asked.parse().unwrap();
            let logs = tracing_subscriber::registry().with(layer.with_filter(levels.and(filter_fn(keeps_secrets))));
            tracing::subscriber::with_default(logs, || {
                tracing::warn!(target: "kube_client::client", "c2VjcmV0");
                tracing::debug!(target: "kube_runtime::watcher", "c2VjcmV0");
                tracing::trace!(target: "h2::hpack::decoder", "c2VjcmV0");
                tracing::debug!(target: "h2::codec", "a frame");
                tracing::info!(target: "pikelet::cluster", "own");
            });
            let said = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
            assert!(!said.contains("c2VjcmV0"), "{asked}: {said}");
            assert_eq!(
                (said.contains("a frame"), said.contains("own")),
                match asked {
                    "trace" => (true, true),
                    "kube_client::client=trace" => (false, false),
                    _ => (true, false),
                }
            );
        }
    }
}
