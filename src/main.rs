//! The `pikelet` program: chooses the role before any thread exists.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let called = args.next().unwrap_or_default();
    let mut args: Vec<_> = args.collect();
    match args.first() {
        // the kernel calls the initramfs' first program by its path only
        _ if called == "/init" => pikelet::init::main(&args),
        // and systemd the last one
        _ if called == "/shutdown" => pikelet::init::shutdown(&args),
        Some(role) if role == "init" => pikelet::init::main(&args.split_off(1)),
        Some(role) if role == "shim" => pikelet::runtime::shim::main(args.split_off(1)),
        Some(role) if role == "mount-nfs" => pikelet::volume::nfs::main(&args[1..]),
        _ => pikelet::cli::main(),
    }
}
