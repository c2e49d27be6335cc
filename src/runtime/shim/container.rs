//! One container in its shim: creation by libcontainer, start, signals, end.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libcontainer::container::Container as OciContainer;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::notify_socket::NOTIFY_FILE;
use libcontainer::syscall::syscall::SyscallType;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::console::ConsoleSocket;
use super::devices::{self, DeviceProgram};
use super::executor::{Confinement, ProgramExecutor};
use super::filter::Filter;
use super::late_mounts;
use super::maker::Reporter;
use super::mapped_mounts::Staged;
use super::namespaces::{Held, send};
use super::output::Output;
use super::places;
use super::process::Process;
use super::setup::context;
use super::terminal;
use crate::files::{self, Durability};
use crate::runtime::cgroup::{Hierarchies, MOST_OF_CONTAINER};
use crate::runtime::cri_log::Stream;
use crate::runtime::device_nodes::{granted, host_devices};
use crate::runtime::rooted;
use crate::runtime::spec::{PidNamespace, Surroundings, has_capability, is_late, oci_config};
use crate::runtime::store::{self, SandboxFile};
use crate::runtime::types::{ContainerInfo, ContainerSpec, ExitRecord, User};
use crate::runtime::user::home;

/// What other processes in a container are made after: its own, as it is to be, in its directory.
pub const PROCESS: &str = "process.json";
/// libcontainer's state, below the sandbox directory.
const STATE: &str = "youki";
/// Start of a variable's word in an environment.
const HOME: &str = "HOME=";
/// How long processes of a neighbour may take to stand still, and how often that is looked at.
const STILLNESS: Duration = Duration::from_secs(5);
const STILLNESS_PAUSE: Duration = Duration::from_millis(1);
/// Numbers of `/dev/net/tun`.
const TUN: (u64, u64) = (10, 200);
/// What a program ends with that was killed, and a shell whose child was: 128 and the signal's number.
const KILLED: i32 = 128 + Signal::SIGKILL as i32;
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
    /// Its cgroup from the hierarchies' roots.
    pub cgroup: String,
    /// Its streams.
    pub output: Output,
}

/// A container that is being made.
pub struct Making {
    /// As the agent wants it.
    pub spec: ContainerSpec,
    /// Its cgroup, which exists.
    pub cgroup: String,
    output: Output,
    /// The program's ends of its streams, for the maker: input, output, error; none with a terminal.
    ends: Vec<OwnedFd>,
    around: Surroundings,
    config: Value,
    /// Cgroups that must stand still meanwhile.
    pub still: Still,
}

/// The cgroups of a pod's containers that may not go on while another one is made, where one of them may trace others.
#[derive(Debug, Clone, Default)]
pub struct Still {
    /// Those that may trace others: stopped last, as what they hold in a trace stops only when they let it go on.
    pub tracers: Vec<String>,
    /// The others, stopped before.
    pub others: Vec<String>,
}

/// Refuses what is no name of a folder.
pub fn check_id(id: &str) -> Result<(), String> {
    if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return Err(format!("container id {id:?}: only letters, digits, - and _ are allowed"));
    }
    Ok(())
}

impl Making {
    /// Whether other containers see its processes, and not because the host's are seen.
    pub fn is_seen(&self) -> bool {
        matches!(self.around.pid, PidNamespace::Join(_))
    }
}

impl Pod {
    /// The quick part of making a container, in the shim: what its maker needs.
    pub fn prepare(&mut self, mut spec: ContainerSpec) -> Result<Making, String> {
        places::settle(&mut spec)?;
        let bundle = store::container_dir(&self.dir, &spec.id);
        // Left over when an earlier attempt was cut short: the directory is made first and goes last.
        if bundle.exists() {
            self.try_discard(&spec.id)?;
        }
        files::dir(&bundle, 0o700).map_err(context("creating the container's directory"))?;
        let mut output = Output::new(&spec)?;
        let mut ends = Vec::new();
        if !spec.tty {
            let owner = self.owner_of(&spec.user);
            ends.push(output.stdin(spec.stdin, owner)?);
            ends.push(output.pipe(Stream::Stdout, owner)?);
            ends.push(output.pipe(Stream::Stderr, owner)?);
        }
        let cgroup = self.sandbox.container_cgroup(&spec.id);
        let made = self.hierarchies.create_in(&self.sandbox.pod_cgroup(), &spec.id);
        made.map_err(context("creating the container's cgroup"))?;
        self.hierarchies.bound(&cgroup, MOST_OF_CONTAINER);
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
            oom_score_adj: spec.oom_score_adj,
            devices: if spec.privileged { host_devices(Path::new("/dev")) } else { Vec::new() },
            granted: granted(&spec)?,
        };
        let config = oci_config(&spec, &around)?;
        self.device_program.restrict(&self.hierarchies, &cgroup, &config)?;
        Ok(Making { spec, cgroup, output, ends, around, config, still: Still::default() })
    }

    /// The rest, in a process of its own: it may change itself as it likes, and take its time.
    pub fn make(&self, making: &mut Making, reporter: &Reporter) -> Result<(), String> {
        let spec = &making.spec;
        let bundle = store::container_dir(&self.dir, &spec.id);
        places::check(&spec.rootfs)?;
        self.hierarchies.join_others(&making.cgroup).map_err(context("joining the container's cgroup"))?;
        self.stand_still(&making.still)?;
        let owner = self.sandbox.spec.user_namespace.map_or(0, |ids| ids.first);
        if let Err(e) = rooted::create_dir_all(&spec.rootfs, &spec.cwd, owner) {
            tracing::warn!("creating the working directory {} in the container: {e}", spec.cwd);
        }
        let (mut staged, mut config) = (None, std::mem::take(&mut making.config));
        let user_namespace = self.held.user_path();
        if let Some(user_namespace) = &user_namespace {
            let mut seen = spec.clone();
            staged = Some(Staged::new(&mut seen, user_namespace)?);
            config = oci_config(&seen, &making.around)?;
        }
        settle(&mut config["process"], spec, self.process.set_oom_score(spec.oom_score_adj));
        write_document(&bundle, PROCESS, &config["process"])?;
        // by a neighbour, or by another process of its own that comes before its program
        let traced = making.is_seen() || has_capability(spec, "SYS_PTRACE");
        let confinement = self.confine(&mut config, &bundle, traced)?;
        let late = spec.mounts.iter().any(|m| is_late(spec, user_namespace.is_some(), m));
        let late_cwd = late.then(|| std::mem::replace(&mut config["process"]["cwd"], json!("/")));
        let late_cwd = late_cwd.and_then(|cwd| cwd.as_str().map(str::to_owned));
        write_document(&bundle, "config.json", &config)?;
        let log_file = self.dir.join(store::LOG);
        let logged = fs::metadata(&log_file).map_or(0, |m| m.len());
        let executor = ProgramExecutor { confinement, reporter: Some(reporter.descriptor()), late_cwd };
        let built = self.build(spec, &bundle, executor, std::mem::take(&mut making.ends), reporter);
        let oci = built.map_err(|e| match logged_cause(&log_file, logged) {
            Some(cause) if !e.starts_with("exec: ") && !e.contains(&cause) => format!("{e}: {cause}"),
            _ => e,
        })?;
        drop(staged);
        if !spec.privileged {
            let granted = making.around.granted.iter().find(|(device, _)| (device.major, device.minor) == TUN);
            let permissions = granted.map(|(_, permissions)| permissions.as_str());
            devices::settle_tun(&self.hierarchies, &making.cgroup, permissions)?;
        }
        let pid = oci.pid().ok_or("libcontainer created a container without a process")?;
        late_mounts::apply(spec, user_namespace.is_some(), pid.as_raw())?;
        reporter.process(Pid::from_raw(pid.as_raw()));
        Ok(())
    }

    fn stand_still(&self, still: &Still) -> Result<(), String> {
        let wait = |cgroup: &String, deadline: Instant| {
            while !self.hierarchies.still(cgroup) {
                if Instant::now() >= deadline {
                    return Err(format!(
                        "processes of {cgroup} cannot be stopped for a moment, and may trace others or help one that does"
                    ));
                }
                std::thread::sleep(STILLNESS_PAUSE);
            }
            Ok(())
        };
        // a tracer may take hold of them again and again
        let first = Instant::now() + STILLNESS / 4;
        let _ = still.others.iter().try_for_each(|cgroup| wait(cgroup, first));
        still.tracers.iter().try_for_each(|cgroup| self.freeze(cgroup))?;
        let last = Instant::now() + STILLNESS;
        still.tracers.iter().chain(&still.others).try_for_each(|cgroup| wait(cgroup, last))
    }

    /// Begins to stop the processes of a container.
    pub fn freeze(&self, cgroup: &str) -> Result<(), String> {
        self.hierarchies.freeze(cgroup).map_err(|e| format!("stopping the processes of {cgroup} for a moment: {e}"))
    }

    /// It is made: `pid` waits for its start.
    pub fn made(&self, making: Making, pid: Pid, terminal: Option<OwnedFd>) -> Result<Container, String> {
        let Making { spec, cgroup, mut output, .. } = making;
        if let Some(terminal) = terminal {
            output.terminal(terminal)?;
        }
        let info = ContainerInfo { spec, pid: pid.as_raw(), started_at: None, created_at: store::now(), exit: None };
        store::write_info(&self.dir, &info).map_err(context("writing info.json"))?;
        Ok(Container { info, cgroup, output })
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
        // until it is its program, it may have more capabilities than it is to have
        let program = |pid: i32| fs::metadata(format!("/proc/{pid}/exe")).map(|m| (m.dev(), m.ino()));
        let own = program(std::process::id() as i32).ok();
        let runs = |i: &&ContainerInfo| i.started_at.is_some() && i.exit.is_none() && program(i.pid).ok() != own;
        let running = infos.iter().filter(|i| i.spec.id == *target).find(runs);
        let pid = running.ok_or_else(|| format!("container {target}, which is targeted, does not run"))?.pid;
        Ok(PidNamespace::Join(format!("/proc/{pid}/ns/pid").into()))
    }

    /// Takes the seccomp profile out of `config`, which libcontainer must not see: its filter is loaded by our executor.
    fn confine(&self, config: &mut Value, bundle: &Path, traced: bool) -> Result<Option<Confinement>, String> {
        let Some(profile) = config["linux"].as_object_mut().and_then(|l| l.remove("seccomp")) else { return Ok(None) };
        // beside the folder of all sandboxes
        let state = self.dir.ancestors().nth(2).unwrap_or(&self.dir);
        let filter = Filter::prepare(&profile, &state.join("seccomp"), bundle)?;
        Confinement::new(filter, &mut config["process"], traced).map(Some)
    }

    fn build(
        &self,
        spec: &ContainerSpec,
        bundle: &Path,
        executor: ProgramExecutor,
        ends: Vec<OwnedFd>,
        reporter: &Reporter,
    ) -> Result<OciContainer, String> {
        let state = self.dir.join(STATE);
        files::dir(&state, 0o700).map_err(context("creating the runtime's state directory"))?;
        let mut builder = ContainerBuilder::new(spec.id.clone(), SyscallType::default())
            .with_root_path(state)
            .map_err(|e| root_cause(&e))?
            .with_executor(executor);
        let mut console = None;
        if let Ok([input, output, error]) = <[OwnedFd; 3]>::try_from(ends) {
            builder = builder.with_stdin(input).with_stdout(output).with_stderr(error);
        } else {
            let socket = ConsoleSocket::listen(&self.dir, &spec.id)?;
            builder = builder.with_console_socket(Some(socket.path()));
            console = Some(socket);
        }
        // a sibling of this process is a child of the shim, like this process
        let init = builder.as_init(bundle).with_systemd(false).with_detach(true).as_sibling(true);
        let built = init.build().map_err(|e| root_cause(&e))?;
        if let Some(socket) = console {
            let terminal = socket.receive()?;
            terminal::give(&terminal, self.owner_of(&spec.user))?;
            reporter.terminal(&terminal)?;
        }
        Ok(built)
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
        notify(&self.dir.join(STATE).join(&id)).map_err(|e| format!("starting container {id}: {e}"))?;
        let now = store::now();
        container.info.started_at = Some(now);
        self.save(container);
        Ok(now)
    }

    /// Which of these containers may not go on while another is made that they see: where one may trace others, and is not the
    /// host's root anyway, all of them. Else one would put the tracer into a cgroup that goes on (version 1 lets any root do
    /// that), and it would look around behind a process that has the host's files still.
    pub fn not_to_go_on(containers: &[Container]) -> Still {
        let mut still = Still::default();
        for container in containers.iter().filter(|c| !c.info.spec.privileged && c.info.exit.is_none()) {
            let traces = has_capability(&container.info.spec, "SYS_PTRACE");
            let list = if traces { &mut still.tracers } else { &mut still.others };
            list.push(container.cgroup.clone());
        }
        if still.tracers.is_empty() { Still::default() } else { still }
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
        // also when it was a child of the first process, which ended for that
        let oom_killed = code == KILLED && self.hierarchies.oom_kills(&container.cgroup) > 0;
        // a PID namespace ends with its first process, and the kernel has seen to that
        if container.info.spec.target.is_some() || self.held.pid != PidNamespace::New {
            self.hierarchies.signal_all(&container.cgroup, Signal::SIGKILL);
        }
        container.output.drain(buffer);
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

    /// Removes cgroup, state and directory of a container without processes, also of a half-made one. Waits a little for
    /// processes to be gone.
    pub fn discard(&self, id: &str) -> Result<(), String> {
        let removed = self.hierarchies.remove(&self.sandbox.container_cgroup(id));
        self.discard_rest(id, removed)
    }

    /// The same without waiting; fails while processes have not left the cgroup.
    pub fn try_discard(&self, id: &str) -> Result<(), String> {
        let removed = self.hierarchies.try_remove(&self.sandbox.container_cgroup(id));
        self.discard_rest(id, removed)
    }

    fn discard_rest(&self, id: &str, removed: io::Result<()>) -> Result<(), String> {
        let mut errors = Vec::new();
        if let Err(e) = removed {
            errors.push(format!("removing the cgroup of container {id}: {e}"));
        }
        for dir in [self.dir.join(STATE).join(id), store::container_dir(&self.dir, id)] {
            if let Err(e) = files::remove_tree(&dir) {
                errors.push(format!("removing {}: {e}", dir.display()));
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
    }
}

/// What Kubernetes expects of every process: a `HOME`, which nobody must look up later in files that the container may have
/// changed, and its primary group among its groups (CVE-2023-25173).
fn settle(process: &mut Value, spec: &ContainerSpec, oom_score: i32) {
    process["oomScoreAdj"] = json!(oom_score);
    if let Some(env) = process["env"].as_array_mut()
        && !env.iter().any(|e| e.as_str().is_some_and(|e| e.len() > HOME.len() && e.starts_with(HOME)))
    {
        env.retain(|e| e != HOME);
        env.push(json!(format!("{HOME}{}", home(&spec.rootfs, spec.user.uid))));
    }
    if let Some(groups) = process["user"]["additionalGids"].as_array_mut()
        && !groups.iter().any(|group| *group == spec.user.gid)
    {
        groups.insert(0, json!(spec.user.gid));
    }
}

/// Tells a first process in the state directory `dir` that it may go on. Never waits: nobody else asks that socket.
fn notify(dir: &Path) -> io::Result<()> {
    // by way of a descriptor: the whole path may be longer than a socket address can be
    let dir = File::open(dir)?;
    let address = UnixAddr::new(format!("/proc/self/fd/{}/{NOTIFY_FILE}", dir.as_raw_fd()).as_str())?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &address)?;
    UnixStream::from(socket).write_all(b"start container")
}

fn write_document(bundle: &Path, name: &str, document: &Value) -> Result<(), String> {
    let written = serde_json::to_vec(document)
        .map_err(io::Error::from)
        .and_then(|t| files::write(&bundle.join(name), &t, 0o600, Durability::Volatile));
    written.map_err(|e| format!("writing {name}: {e}"))
}

/// The innermost error: the outer ones only say in which step of libcontainer it happened.
fn root_cause(error: &dyn Error) -> String {
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
    // it may have begun anew meanwhile
    let from = if file.metadata().ok()?.len() < from { 0 } else { from };
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut text = String::new();
    file.take(LOGGED_CAUSE).read_to_string(&mut text).ok()?;
    let line = text.lines().find_map(|l| l.split_once(" ERROR "))?.1;
    Some(line.split_once(": ").map_or(line, |(_, message)| message).to_owned())
}
