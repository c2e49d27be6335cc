//! The shim: one small single-threaded process per pod that holds its namespaces and is the parent of its containers.
//!
//! libcontainer clones its caller, changes its working directory and its OOM score: all of that must happen in a
//! process without threads, which is forked from this one. It outlives the agent.

mod bpf;
mod client;
mod console;
mod container;
mod devices;
mod exec;
mod executor;
mod filter;
mod filter_check;
mod jobs;
mod keyring;
mod late_mounts;
mod launch;
mod log;
mod maker;
mod mapped_mounts;
mod namespaces;
mod newer;
mod output;
mod own_memory;
mod pace;
mod pause;
mod places;
mod privileges;
mod process;
mod removal;
mod server;
mod setup;
mod terminal;
mod user_namespace;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs `pikelet shim --dir <sandbox directory>`. Must be called before any thread exists. The calling process
/// returns when the shim, a detached child, is ready (or has failed, told on standard output).
pub fn main(args: Vec<OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let dir = match (args.next(), args.next(), args.next()) {
        (Some(flag), Some(dir), None) if flag == "--dir" => PathBuf::from(dir),
        _ => {
            println!("usage: pikelet shim --dir <sandbox directory>; started by the agent, not by hand");
            return ExitCode::from(2);
        }
    };
    match setup::run(&dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("{message}");
            ExitCode::FAILURE
        }
    }
}
