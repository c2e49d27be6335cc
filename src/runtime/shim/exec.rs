//! Another process in a running container (libcontainer's tenant).

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::console::ConsoleSocket;
use super::container::{Container, PROCESS, Pod, root_cause};
use super::executor::{Confinement, PodUser, ProgramExecutor};
use super::filter::Filter;
use super::output::{give, set_nonblocking};
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
    let own: Value = store::read_json(&bundle.join(PROCESS)).map_err(context("reading the container's process"))?;
    let mut process = process(own, args, tty);
    let (user, owner) = (&container.info.spec.user, pod.owner_of(&container.info.spec.user));
    ends.iter().try_for_each(|end| give(end, owner))?;
    let users = pod.held.user.map(|namespace| PodUser { namespace, user: user.clone(), owner });
    if users.is_some()
        && let Some(env) = process["env"].as_array_mut()
    {
        env.extend(home(container.info.pid).map(Value::from));
    }
    let executor = ProgramExecutor { confinement: Confinement::new(Filter::of(&bundle)?, users, &mut process)? };
    store::write_json(&file, &process).map_err(context("writing exec.json"))?;
    let built = build(pod, id, &file, executor, tty, wanted, ends);
    pod.process.restore(&pod.dir);
    // only of use while the process is made
    let _ = fs::remove_file(&file);
    built
}

/// The container's own process with another command.
fn process(mut process: Value, args: &[String], tty: bool) -> Value {
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

/// `HOME` as the container's own program has it: libcontainer would look up that of the user it knows.
fn home(pid: i32) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let variables = environment.split(|byte| *byte == 0).filter_map(|v| std::str::from_utf8(v).ok());
    variables.rev().find(|v| v.starts_with("HOME=")).map(str::to_owned)
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
