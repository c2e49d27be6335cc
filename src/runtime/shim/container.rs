//! One container in its shim: creation by libcontainer, start, signals, end.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use libcontainer::container::Container as OciContainer;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, chdir};
use serde_json::{Value, json};

use super::console::ConsoleSocket;
use super::devices::{self, DeviceProgram};
use super::executor::{Confinement, ProgramExecutor};
use super::filter::Filter;
use super::mapped_mounts::Staged;
use super::namespaces::{Held, send};
use super::output::Output;
use super::process::Process;
use super::setup::context;
use crate::runtime::cgroup::Hierarchies;
use crate::runtime::cri_log::Stream;
use crate::runtime::device_nodes::{granted, host_devices};
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
    /// Its streams.
    pub output: Output,
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
        let mut output = Output::new(&spec)?;
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
        let built = self.build(&spec, &bundle, ProgramExecutor { confinement }, &mut output);
        let was_staged = staged.take().is_some();
        self.process.restore(&self.dir);
        if was_staged {
            // libcontainer looks there again for every other process in the container
            config["root"]["path"] = json!(spec.rootfs);
            write_document(&bundle, "config.json", &config)?;
        }
        let oci = built.map_err(|e| match logged_cause(&log_file, logged) {
            Some(cause) if !e.starts_with("exec: ") && !e.contains(&cause) => format!("{e}: {cause}"),
            _ => e,
        })?;
        let pid = oci.pid().ok_or("libcontainer created a container without a process")?.as_raw();
        if !spec.privileged {
            devices::withdraw_tun(&self.hierarchies, &cgroup)?;
        }
        let info = ContainerInfo { spec, pid, started_at: None, created_at: store::now(), exit: None };
        store::write_info(&self.dir, &info).map_err(context("writing info.json"))?;
        Ok(Container { info, oci: Some(oci), cgroup, output })
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

    fn build(
        &self,
        spec: &ContainerSpec,
        bundle: &Path,
        executor: ProgramExecutor,
        output: &mut Output,
    ) -> Result<OciContainer, String> {
        let state = self.dir.join("youki");
        fs::create_dir_all(&state).map_err(context("creating the runtime's state directory"))?;
        let mut builder = ContainerBuilder::new(spec.id.clone(), SyscallType::default())
            .with_root_path(state)
            .map_err(|e| root_cause(&e))?
            .with_executor(executor);
        let mut console = None;
        if spec.tty {
            let socket = ConsoleSocket::listen(&self.dir, &spec.id)?;
            builder = builder.with_console_socket(Some(socket.path()));
            console = Some(socket);
        } else {
            let owner = self.owner_of(&spec.user);
            builder = builder
                .with_stdin(output.stdin(spec.stdin, owner)?)
                .with_stdout(output.pipe(Stream::Stdout, owner)?)
                .with_stderr(output.pipe(Stream::Stderr, owner)?);
        }
        let built =
            builder.as_init(bundle).with_systemd(false).with_detach(true).build().map_err(|e| root_cause(&e))?;
        if let Some(socket) = console {
            output.terminal(socket.receive()?)?;
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

fn write_document(bundle: &Path, name: &str, document: &Value) -> Result<(), String> {
    let written = serde_json::to_vec(document).map_err(io::Error::from).and_then(|t| fs::write(bundle.join(name), t));
    written.map_err(|e| format!("writing {name}: {e}"))
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
