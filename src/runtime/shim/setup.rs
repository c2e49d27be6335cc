//! Becoming a shim: detached from the agent, with the pod's namespaces and cgroup.
#![allow(unsafe_code)]

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Mutex;

use nix::sys::prctl;
use nix::unistd::{ForkResult, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, setgroups, setsid};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;

use super::log::BoundedLog;
use super::namespaces;
use super::server::Server;
use crate::files;
use crate::runtime::cgroup::{Hierarchies, MOST_OF_POD};
use crate::runtime::store::{self, SandboxFile};

/// OOM score of a shim: as good as never killed, like other container managers' shims.
const OOM_SCORE_ADJ: &str = "-998";

/// Detaches; the parent returns at once, the child when the sandbox is removed.
pub fn run(dir: &Path) -> Result<(), String> {
    // the first process of a container has a copy until it is its program, seen in a shared PID namespace
    crate::allocator::erase();
    let dir = dir.canonicalize().map_err(|e| format!("sandbox directory {}: {e}", dir.display()))?;
    // SAFETY: the program has a single thread here, so the child may go on as an ordinary process.
    match unsafe { fork() }.map_err(context("starting the shim: fork"))? {
        ForkResult::Parent { .. } => return Ok(()),
        ForkResult::Child => {}
    }
    setsid().map_err(context("starting the shim: setsid"))?;
    let log = files::append(&dir.join(store::LOG), 0o600);
    let log = log.map_err(context("opening the shim's log"))?;
    let mut server = prepare(&dir, &log)?;
    let mut out = std::io::stdout();
    // The agent may be gone already; the sandbox is ready nevertheless.
    let _ = out.write_all(b"ready\n").and_then(|()| out.flush());
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(context("opening /dev/null"))?;
    dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).map_err(context("closing standard output"))?;
    drop(null);
    server.run()
}

fn prepare(dir: &Path, log: &File) -> Result<Server, String> {
    dup2_stderr(log).map_err(context("redirecting standard error"))?;
    // Containers' first processes log too, after their standard error has become the container's: an own descriptor.
    let log = log.try_clone().map_err(context("opening the shim's log"))?;
    // libcgroups warns of every controller a kernel lacks, for every container.
    let levels = Targets::new().with_default(LevelFilter::ERROR).with_target("pikelet", LevelFilter::WARN);
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(Mutex::new(BoundedLog::new(log)));
    let subscriber = tracing_subscriber::registry().with(lines).with(levels);
    tracing::subscriber::set_global_default(subscriber).map_err(context("setting up the shim's log"))?;
    // Binding by a short name: the whole path may be longer than a socket address can be.
    chdir(dir).map_err(context("entering the sandbox directory"))?;
    let sandbox = SandboxFile::read(dir).map_err(context("reading sandbox.json"))?;
    prctl::set_child_subreaper(true).map_err(context("becoming a subreaper"))?;
    // those of whoever started the agent are nobody's here
    setgroups(&[]).map_err(context("leaving all supplementary groups"))?;
    let name = c"pikelet-shim";
    prctl::set_name(name).map_err(context("setting the process name"))?;
    if let Err(e) = files::set("/proc/self/oom_score_adj", OOM_SCORE_ADJ) {
        tracing::warn!("lowering the shim's oom_score_adj: {e}; it can be killed when memory runs out");
    }
    let hierarchies = Hierarchies::detect().map_err(context("finding cgroups"))?;
    let cgroup = sandbox.pod_cgroup();
    hierarchies.create(&cgroup).map_err(context("creating the pod cgroup"))?;
    hierarchies.bound(&cgroup, MOST_OF_POD);
    hierarchies.apply(&cgroup, &sandbox.spec.resources).map_err(context("limiting the pod cgroup"))?;
    let namespaces = namespaces::enter(&sandbox.spec, dir)?;
    let _ = fs::remove_file(store::SOCKET);
    let listener = UnixListener::bind(store::SOCKET).map_err(context("listening on shim.sock"))?;
    store::write_pid(dir).map_err(context("writing shim.pid"))?;
    Server::new(dir.to_owned(), sandbox, hierarchies, namespaces, listener)
}

/// Names what was tried in front of an error.
pub fn context<E: Display>(what: &'static str) -> impl Fn(E) -> String {
    move |e| format!("{what}: {e}")
}
