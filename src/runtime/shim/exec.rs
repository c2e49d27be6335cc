//! Another process in a running container (libcontainer's tenant).

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::console::ConsoleSocket;
use super::container::{Container, Pod, root_cause, set_nonblocking};
use super::executor::{Confinement, ProgramExecutor};
use super::setup::context;
use crate::runtime::protocol::Wanted;
use crate::runtime::store;

/// Starts `args` in `container` on the given ends of pipes; returns the process and, if asked for, its terminal.
pub fn exec(
    pod: &Pod,
    container: &Container,
    args: &[String],
    tty: bool,
    wanted: Wanted,
    ends: Vec<OwnedFd>,
) -> Result<(Pid, Option<OwnedFd>), String> {
    let id = &container.info.spec.id;
    if container.info.started_at.is_none() || container.info.exit.is_some() {
        return Err(format!("container {id} is not running"));
    }
    let bundle = store::container_dir(&pod.dir, id);
    let file = bundle.join("exec.json");
    let config: Value = store::read_json(&bundle.join("config.json")).map_err(context("reading config.json"))?;
    let mut process = process(&config, args, tty);
    let executor = ProgramExecutor { confinement: confine(&config, &mut process)? };
    store::write_json(&file, &process).map_err(context("writing exec.json"))?;
    let built = build(pod, id, &file, executor, tty, wanted, ends);
    pod.process.restore(&pod.dir);
    // only of use while the process is made
    let _ = fs::remove_file(&file);
    built
}

/// The container's own process with another command.
fn process(config: &Value, args: &[String], tty: bool) -> Value {
    let mut process = config["process"].clone();
    process["args"] = json!(args);
    process["terminal"] = json!(tty);
    if let Some(env) = process["env"].as_array_mut()
        && tty
        && !env.iter().any(|e| e.as_str().is_some_and(|e| e.starts_with("TERM=")))
    {
        env.push(json!("TERM=xterm"));
    }
    process
}

/// The container's seccomp filter. Without `no_new_privs` loading it takes `CAP_SYS_ADMIN`, and dropping that again from
/// the bounding set `CAP_SETPCAP`: `process` gets both until then.
fn confine(config: &Value, process: &mut Value) -> Result<Option<Confinement>, String> {
    let filter = &config["linux"]["seccomp"];
    if filter.is_null() {
        return Ok(None);
    }
    let unreadable = |e: serde_json::Error| format!("reading config.json: {e}");
    let filter = serde_json::from_value(filter.clone()).map_err(unreadable)?;
    if process["noNewPrivileges"] == true {
        return Ok(Some(Confinement { filter, capabilities: None }));
    }
    let kept = serde_json::from_value(process["capabilities"].clone()).map_err(unreadable)?;
    for set in ["bounding", "permitted", "effective"] {
        let Some(names) = process["capabilities"][set].as_array_mut() else { continue };
        for name in ["CAP_SETPCAP", "CAP_SYS_ADMIN"] {
            if !names.iter().any(|n| n == name) {
                names.push(json!(name));
            }
        }
    }
    Ok(Some(Confinement { filter, capabilities: Some(kept) }))
}

fn build(
    pod: &Pod,
    id: &str,
    process: &Path,
    executor: ProgramExecutor,
    tty: bool,
    wanted: Wanted,
    ends: Vec<OwnedFd>,
) -> Result<(Pid, Option<OwnedFd>), String> {
    let mut builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_root_path(pod.dir.join("youki"))
        .map_err(|e| root_cause(&e))?
        .with_executor(executor);
    let mut console = None;
    if tty {
        let socket = ConsoleSocket::listen(&pod.dir, "exec")?;
        builder = builder.with_console_socket(Some(socket.path()));
        console = Some(socket);
    } else {
        let mut ends = ends.into_iter();
        let mut end = |wanted: bool, write: bool| -> Result<OwnedFd, String> {
            match if wanted { ends.next() } else { None } {
                Some(end) => Ok(end),
                None => File::options()
                    .read(!write)
                    .write(write)
                    .open("/dev/null")
                    .map(OwnedFd::from)
                    .map_err(context("opening /dev/null")),
            }
        };
        builder = builder.with_stdin(end(wanted.stdin, false)?);
        builder = builder.with_stdout(end(wanted.stdout, true)?);
        builder = builder.with_stderr(end(wanted.stderr, true)?);
    }
    let tenant = builder.as_tenant().with_process(Some(process)).with_detach(true);
    let pid = tenant.build().map_err(|e| root_cause(&e))?;
    let terminal = match console {
        Some(socket) => {
            let terminal = socket.receive()?;
            set_nonblocking(&terminal)?;
            Some(terminal)
        }
        None => None,
    };
    Ok((Pid::from_raw(pid.as_raw()), terminal))
}
