//! One container in its shim: creation by libcontainer, output, end.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use libcontainer::container::Container as OciContainer;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, Uid, chdir, fchown, pipe2, read, write};
use serde_json::{Value, json};

use super::console::ConsoleSocket;
use super::devices::{self, DeviceProgram};
use super::executor::{Confinement, ProgramExecutor};
use super::filter::Filter;
use super::mapped_mounts::Staged;
use super::namespaces::{Held, send};
use super::process::Process;
use super::setup::context;
use crate::runtime::cgroup::Hierarchies;
use crate::runtime::cri_log::{LineSplitter, LogFile, Stream, timestamp};
use crate::runtime::device_nodes::{granted, host_devices};
use crate::runtime::protocol::Wanted;
use crate::runtime::rooted;
use crate::runtime::spec::{PidNamespace, Surroundings, oci_config};
use crate::runtime::store::{self, SandboxFile};
use crate::runtime::types::{ContainerInfo, ContainerSpec, ExitRecord, User};

/// What other processes in a container are made after: its own, as it is to be, in its directory.
pub const PROCESS: &str = "process.json";
/// How much of the log is searched for the cause of a failure.
const LOGGED_CAUSE: u64 = 16 * 1024;

/// What all containers of a sandbox share.
pub struct Pod {
    /// Sandbox directory.
    pub dir: PathBuf,
    /// What the sandbox is made from.
    pub sandbox: SandboxFile,
    /// The machine's cgroups.
    pub hierarchies: Hierarchies,
    /// Namespaces the containers join.
    pub held: Held,
    /// The shim's own process.
    pub process: Process,
    /// What its containers' device rules have become.
    pub device_program: DeviceProgram,
}

/// A container whose process exists or existed.
pub struct Container {
    /// As told to the agent and kept in `info.json`.
    pub info: ContainerInfo,
    /// libcontainer's handle, until it is started.
    oci: Option<OciContainer>,
    cgroup: String,
    outputs: Vec<Output>,
    log: LogFile,
    /// Write end kept open so that the program sees no end of its standard input.
    stdin: Option<OwnedFd>,
    viewers: Vec<Viewer>,
}

/// Somebody attached to the container's output.
struct Viewer {
    session: u64,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// What libcontainer has made, and the shim's ends of its streams.
type Built = (OciContainer, Vec<Output>, Option<OwnedFd>);

struct Output {
    fd: OwnedFd,
    lines: LineSplitter,
    open: bool,
}

impl Pod {
    /// Creates a container, stopped before its program. After an error nothing of it is left.
    pub fn create(&mut self, spec: ContainerSpec) -> Result<Container, String> {
        let id = &spec.id;
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return Err(format!("container id {id:?}: only letters, digits, - and _ are allowed"));
        }
        let id = id.clone();
        self.try_create(spec).inspect_err(|_| {
            let _ = self.discard(&id);
        })
    }

    fn try_create(&mut self, spec: ContainerSpec) -> Result<Container, String> {
        let bundle = store::container_dir(&self.dir, &spec.id);
        // Left over when an earlier attempt was cut short: the directory is made first and goes last.
        if bundle.exists() {
            self.discard(&spec.id)?;
        }
        fs::create_dir_all(&bundle).map_err(context("creating the container's directory"))?;
        let log = LogFile::open(&spec.log_path, spec.log_rotation)
            .map_err(|e| format!("opening the container's log {}: {e}", spec.log_path.display()))?;
        let owner = self.sandbox.spec.user_namespace.map_or(0, |ids| ids.first);
        if let Err(e) = rooted::create_dir_all(&spec.rootfs, &spec.cwd, owner) {
            tracing::warn!("creating the working directory {} in the container: {e}", spec.cwd);
        }
        let cgroup = self.sandbox.container_cgroup(&spec.id);
        let made = self.hierarchies.create_in(&self.sandbox.pod_cgroup(), &spec.id);
        made.map_err(context("creating the container's cgroup"))?;
        self.hierarchies.apply(&cgroup, &spec.resources).map_err(context("limiting the container's cgroup"))?;
        let around = Surroundings {
            network: self.held.network.clone(),
            ipc: self.held.ipc.clone(),
            uts: self.held.uts.clone(),
            user: self.held.user_path(),
            pid: self.pid_namespace(&spec)?,
            cgroup: cgroup.clone(),
            unified: self.hierarchies.unified(),
            capabilities: self.process.capabilities,
            oom_score_adj: self.process.settable_oom_score(spec.oom_score_adj),
            devices: if spec.privileged { host_devices(Path::new("/dev")) } else { Vec::new() },
            granted: granted(&spec)?,
        };
        let (mut seen, mut staged) = (None, None);
        if let Some(user_namespace) = self.held.user_path() {
            staged = Some(Staged::new(seen.insert(spec.clone()), &user_namespace)?);
        }
        let mut config = oci_config(seen.as_ref().unwrap_or(&spec), &around)?;
        self.device_program.restrict(&self.hierarchies, &cgroup, &config)?;
        write_document(&bundle, PROCESS, &config["process"])?;
        let confinement = self.confine(&mut config, &bundle)?;
        write_document(&bundle, "config.json", &config)?;
        let log_file = self.dir.join(store::LOG);
        let logged = fs::metadata(&log_file).map_or(0, |m| m.len());
        let built = self.build(&spec, &bundle, ProgramExecutor { confinement });
        let was_staged = staged.take().is_some();
        self.process.restore(&self.dir);
        if was_staged {
            // libcontainer looks there again for every other process in the container
            config["root"]["path"] = json!(spec.rootfs);
            write_document(&bundle, "config.json", &config)?;
        }
        let (oci, outputs, stdin) = built.map_err(|e| match logged_cause(&log_file, logged) {
            Some(cause) if !e.starts_with("exec: ") && !e.contains(&cause) => format!("{e}: {cause}"),
            _ => e,
        })?;
        let pid = oci.pid().ok_or("libcontainer created a container without a process")?.as_raw();
        if !spec.privileged {
            devices::withdraw_tun(&self.hierarchies, &cgroup)?;
        }
        let info = ContainerInfo { spec, pid, started_at: None, created_at: store::now(), exit: None };
        store::write_info(&self.dir, &info).map_err(context("writing info.json"))?;
        Ok(Container { info, oci: Some(oci), cgroup, outputs, log, stdin, viewers: Vec::new() })
    }

    /// The host's id of a container's user.
    pub fn owner_of(&self, user: &User) -> u32 {
        self.sandbox.spec.user_namespace.map_or(0, |ids| ids.first).saturating_add(user.uid)
    }

    /// The pod's, or that of the container it targets.
    fn pid_namespace(&self, spec: &ContainerSpec) -> Result<PidNamespace, String> {
        let (Some(target), PidNamespace::New) = (&spec.target, &self.held.pid) else {
            return Ok(self.held.pid.clone());
        };
        let infos = store::read_infos(&self.dir);
        let running = infos.iter().find(|i| i.spec.id == *target && i.pid > 0 && i.exit.is_none());
        let pid = running.ok_or_else(|| format!("container {target}, which is targeted, does not run"))?.pid;
        Ok(PidNamespace::Join(format!("/proc/{pid}/ns/pid").into()))
    }

    /// Takes the seccomp profile out of `config`, which libcontainer must not see: its filter is loaded by our executor.
    fn confine(&self, config: &mut Value, bundle: &Path) -> Result<Option<Confinement>, String> {
        let Some(profile) = config["linux"].as_object_mut().and_then(|l| l.remove("seccomp")) else { return Ok(None) };
        // beside the folder of all sandboxes
        let state = self.dir.ancestors().nth(2).unwrap_or(&self.dir);
        let filter = Filter::prepare(&profile, &state.join("seccomp"), bundle)?;
        Confinement::new(Some(filter), None, &mut config["process"])
    }

    fn build(&self, spec: &ContainerSpec, bundle: &Path, executor: ProgramExecutor) -> Result<Built, String> {
        let state = self.dir.join("youki");
        fs::create_dir_all(&state).map_err(context("creating the runtime's state directory"))?;
        let mut builder = ContainerBuilder::new(spec.id.clone(), SyscallType::default())
            .with_root_path(state)
            .map_err(|e| root_cause(&e))?
            .with_executor(executor);
        let (mut outputs, mut stdin, mut console) = (Vec::new(), None, None);
        if spec.tty {
            let socket = ConsoleSocket::listen(&self.dir, &spec.id)?;
            builder = builder.with_console_socket(Some(socket.path()));
            console = Some(socket);
        } else {
            let owner = self.owner_of(&spec.user);
            let (out, out_write) = output(Stream::Stdout, owner)?;
            let (err, err_write) = output(Stream::Stderr, owner)?;
            outputs = vec![out, err];
            let input: OwnedFd = if spec.stdin {
                let (input, write) = pipe2(OFlag::O_CLOEXEC).map_err(context("creating a pipe"))?;
                give(&input, owner)?;
                stdin = Some(write);
                input
            } else {
                File::open("/dev/null").map_err(context("opening /dev/null"))?.into()
            };
            builder = builder.with_stdin(input).with_stdout(out_write).with_stderr(err_write);
        }
        let built =
            builder.as_init(bundle).with_systemd(false).with_detach(true).build().map_err(|e| root_cause(&e))?;
        if let Some(socket) = console {
            let fd = socket.receive()?;
            set_nonblocking(&fd)?;
            outputs.push(Output { fd, lines: LineSplitter::new(Stream::Stdout), open: true });
        }
        Ok((built, outputs, stdin))
    }

    /// Lets the program run.
    pub fn start(&self, container: &mut Container) -> Result<i64, String> {
        let id = container.info.spec.id.clone();
        if container.info.exit.is_some() {
            return Err(format!("container {id} has ended already; create a new one"));
        }
        if let Some(started) = container.info.started_at {
            return Ok(started);
        }
        let mut oci = container.oci.take().ok_or_else(|| format!("container {id} could not be started before"))?;
        let started = oci.start();
        let _ = chdir(&self.dir);
        started.map_err(|e| format!("starting container {id}: {}", root_cause(&e)))?;
        let now = store::now();
        container.info.started_at = Some(now);
        self.save(container);
        Ok(now)
    }

    /// Sends a signal to the first process or to all.
    pub fn kill(&self, container: &Container, signal: i32, all: bool) -> Result<(), String> {
        if container.info.exit.is_some() {
            return Ok(());
        }
        if all {
            let signal = Signal::try_from(signal).map_err(|e| format!("signal {signal} to all: {e}"))?;
            self.hierarchies.signal_all(&container.cgroup, signal);
        }
        if all && self.hierarchies.processes(&container.cgroup).contains(&Pid::from_raw(container.info.pid)) {
            return Ok(());
        }
        match send(Pid::from_raw(container.info.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(e) => Err(format!("sending signal {signal} to container {}: {e}", container.info.spec.id)),
        }
    }

    /// The first process has been reaped: ends the rest, drains the output and records the exit.
    pub fn finish(&self, container: &mut Container, code: i32, signal: Option<i32>, buffer: &mut [u8]) -> ExitRecord {
        let oom_killed = signal == Some(Signal::SIGKILL as i32) && self.hierarchies.oom_kills(&container.cgroup) > 0;
        // a PID namespace ends with its first process, and the kernel has seen to that
        if container.info.spec.target.is_some() || self.held.pid != PidNamespace::New {
            self.hierarchies.signal_all(&container.cgroup, Signal::SIGKILL);
        }
        container.drain(buffer);
        let exit = ExitRecord { code, signal, oom_killed, finished_at: store::now() };
        container.info.exit = Some(exit.clone());
        self.save(container);
        exit
    }

    fn save(&self, container: &Container) {
        if let Err(e) = store::write_info(&self.dir, &container.info) {
            tracing::error!("writing the state of container {}: {e}", container.info.spec.id);
        }
    }

    /// Removes cgroup, state and directory of a container without processes, also of a half-made one.
    pub fn discard(&self, id: &str) -> Result<(), String> {
        let mut errors = Vec::new();
        if let Err(e) = self.hierarchies.remove(&self.sandbox.container_cgroup(id)) {
            errors.push(format!("removing the cgroup of container {id}: {e}"));
        }
        for dir in [self.dir.join("youki").join(id), store::container_dir(&self.dir, id)] {
            match fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    errors.push(format!("removing {}: {e}", dir.display()));
                }
                _ => {}
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
    }
}

impl Container {
    /// Descriptors to wait for, with their number for [`Container::pump`].
    pub fn readable(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        self.outputs.iter().enumerate().filter(|(_, o)| o.open).map(|(i, o)| (i, o.fd.as_fd()))
    }

    /// Copies what one output holds (at most one buffer of it) to the log; false when there was nothing.
    pub fn pump(&mut self, index: usize, buffer: &mut [u8]) -> bool {
        let Some(output) = self.outputs.get_mut(index).filter(|o| o.open) else { return false };
        let mut lines = Vec::new();
        let more = match read(&output.fd, buffer) {
            Ok(count) if count > 0 => {
                show(&mut self.viewers, output.lines.stream(), &buffer[..count]);
                output.lines.push(&buffer[..count], &timestamp(), &mut lines);
                true
            }
            Err(Errno::EAGAIN | Errno::EINTR) => return false,
            // End of file; EIO is a terminal's.
            _ => {
                output.lines.finish(&timestamp(), &mut lines);
                output.open = false;
                false
            }
        };
        if let Err(e) = self.log.append(&lines) {
            tracing::warn!("writing the log of container {}: {e}; lines are lost", self.info.spec.id);
        }
        more
    }

    fn drain(&mut self, buffer: &mut [u8]) {
        for index in 0..self.outputs.len() {
            while self.pump(index, buffer) {}
        }
        let mut lines = Vec::new();
        for output in self.outputs.drain(..).filter(|o| o.open) {
            let mut splitter = output.lines;
            splitter.finish(&timestamp(), &mut lines);
        }
        // Reported when it first failed.
        let _ = self.log.append(&lines);
    }

    /// Lets a session see the output from now on; returns the terminal, or the way to the program's standard input.
    pub fn attach(&mut self, session: u64, wanted: Wanted, ends: Vec<OwnedFd>) -> Result<Option<OwnedFd>, String> {
        let mut ends = ends.into_iter();
        let stdout = if wanted.stdout { ends.next() } else { None };
        let stderr = if wanted.stderr { ends.next() } else { None };
        for end in [&stdout, &stderr].into_iter().flatten() {
            set_nonblocking(end)?;
        }
        let way_in = match self.outputs.first().filter(|_| self.info.spec.tty) {
            Some(terminal) => Some(&terminal.fd),
            None => self.stdin.as_ref().filter(|_| wanted.stdin),
        };
        let way_in = way_in.map(OwnedFd::try_clone).transpose().map_err(context("attaching"))?;
        self.viewers.push(Viewer { session, stdout, stderr });
        Ok(way_in)
    }

    /// Forgets a session.
    pub fn detach(&mut self, session: u64) {
        self.viewers.retain(|v| v.session != session);
    }

    /// The sessions that see the output, which end with the container.
    pub fn take_viewers(&mut self) -> Vec<u64> {
        self.viewers.drain(..).map(|v| v.session).collect()
    }

    /// An attached standard input has ended: the program sees that if it was promised only one (`stdinOnce`).
    pub fn close_stdin(&mut self, session: u64) {
        if self.info.spec.stdin_once && self.viewers.iter().any(|v| v.session == session) {
            self.stdin = None;
        }
    }
}

/// Copies output to those attached. One that does not keep up misses output rather than holding up the program.
fn show(viewers: &mut [Viewer], stream: Stream, bytes: &[u8]) {
    for viewer in viewers {
        let end = match stream {
            Stream::Stdout => &mut viewer.stdout,
            Stream::Stderr => &mut viewer.stderr,
        };
        let Some(fd) = end else { continue };
        match write(fd, bytes) {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => *end = None,
        }
    }
}

fn write_document(bundle: &Path, name: &str, document: &Value) -> Result<(), String> {
    let written = serde_json::to_vec(document).map_err(io::Error::from).and_then(|t| fs::write(bundle.join(name), t));
    written.map_err(|e| format!("writing {name}: {e}"))
}

/// Lets a user open a pipe again by `/dev/stdout` and the like.
pub(super) fn give(pipe: &OwnedFd, owner: u32) -> Result<(), String> {
    fchown(pipe, Some(Uid::from_raw(owner)), None).map_err(context("giving a pipe to its user"))
}

fn output(stream: Stream, owner: u32) -> Result<(Output, OwnedFd), String> {
    let (fd, write) = pipe2(OFlag::O_CLOEXEC).map_err(context("creating a pipe"))?;
    give(&write, owner)?;
    set_nonblocking(&fd)?;
    Ok((Output { fd, lines: LineSplitter::new(stream), open: true }, write))
}

pub(super) fn set_nonblocking(fd: &OwnedFd) -> Result<(), String> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop).map_err(context("making an output non-blocking"))
}

/// The innermost error: the outer ones only say in which step of libcontainer it happened.
pub(super) fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let text = cause.to_string();
    // Errors of the container's first process arrive as text behind these.
    let steps = ["exec process failed with error error in executing process : ", "exec process failed with error "];
    let inner = steps.iter().find_map(|step| text.split_once(step));
    inner.map_or(text.as_str(), |(_, inner)| inner).to_owned()
}

/// The first error logged after `from`: the container's first process keeps the cause of most errors to its log.
fn logged_cause(log: &Path, from: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut text = String::new();
    file.take(LOGGED_CAUSE).read_to_string(&mut text).ok()?;
    let line = text.lines().find_map(|l| l.split_once(" ERROR "))?.1;
    Some(line.split_once(": ").map_or(line, |(_, message)| message).to_owned())
}
