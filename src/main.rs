//! The `pikelet` program: chooses the role before any thread exists.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args: Vec<_> = std::env::args_os().skip(1).collect();
    match args.first() {
        Some(role) if role == "shim" => pikelet::runtime::shim::main(args.split_off(1)),
        _ => pikelet::cli::main(),
    }
}
