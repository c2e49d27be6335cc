//! `pikelet check`: is this machine fit to be a node, and if not, what mends it.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::client::Failure;
use super::table::print;
use crate::config::{Config, Settings};
use crate::machine::check::{Finding, Plan, State, check, fit};

/// Arguments of `pikelet check`: those of `pikelet run`, so that what it is going to use is looked at.
#[derive(clap::Args)]
pub struct Args {
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_parser = ["json"])]
    output: Option<String>,
    /// Settings file [default: /etc/pikelet/config.yaml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// Prints what was found; the exit code is 0 when the machine can be a node, and 1 when something needed is missing.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let config = Config::load(args.config.as_deref(), args.settings)?;
    let findings = check(&plan(&config));
    let fit = fit(&findings);
    if args.output.is_some() {
        print(&format!("{:#}\n", json!({"fit": fit, "checks": findings})))?;
    } else {
        print(&lines(&findings, fit))?;
    }
    Ok(if fit { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What an agent with these settings is going to use.
pub fn plan(config: &Config) -> Plan {
    Plan {
        bridge: config.bridge.clone(),
        root_dir: config.root_dir.clone(),
        node_name: config.node.name.clone(),
        state_dir: config.state_dir.clone(),
        address: config.api.address,
        port: config.api.port,
        healthz_port: config.api.healthz_port,
        resolv_conf: config.resolv_conf.clone(),
    }
}

/// A line for each finding, and the verdict.
pub fn lines(findings: &[Finding], fit: bool) -> String {
    let width = findings.iter().map(|f| f.check.chars().count()).max().unwrap_or_default();
    let line = |Finding { check, state, found, mend }: &Finding| {
        let word = match state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Missing => "MISSING",
            State::Unknown => "unknown",
        };
        let mend = mend.as_ref().map(|m| format!(" -> {m}")).unwrap_or_default();
        format!("{word:<8} {check:<width$}  {found}{mend}\n")
    };
    let count = |state| findings.iter().filter(|f| f.state == state).count();
    let (missing, warnings, unknown) = (count(State::Missing), count(State::Warning), count(State::Unknown));
    let verdict = match (fit, unknown) {
        (false, _) => "this machine cannot be a node yet",
        (true, 0) => "this machine can be a node",
        (true, _) => "nothing needed is known to be missing",
    };
    let lines: String = findings.iter().map(line).collect();
    format!("{lines}\n{verdict}: {missing} missing, {warnings} warnings, {unknown} unknown\n")
}
