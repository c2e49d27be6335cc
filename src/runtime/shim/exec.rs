//! Another process in a running container.
//!
//! Its maker becomes, from the outside, all that the process is to be: in the container's cgroup and namespaces, at its
//! root, its user, with its capabilities and filter, with no descriptor but its streams. Only then does the process appear
//! in the container's PID namespace, where a neighbour that may trace others finds nothing of the host behind it.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::stat::{Mode, SFlag, fstat, major, minor};
use nix::unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, getcwd};
use serde::Deserialize;

use super::container::{Container, PROCESS, Pod};
use super::executor::{find_program, reset_signals};
use super::filter::Filter;
use super::launch::Launch;
use super::maker::{Maker, Reporter, close_others};
use super::output::give;
use super::own_memory::forget_on_fork;
use super::privileges::{self, Named, SYS_ADMIN, Sets};
use super::setup::context;
use super::terminal;
use crate::files;
use crate::runtime::controllers;
use crate::runtime::protocol::Wanted;
use crate::runtime::store;

/// Who the process belongs to and what it may do: the container's own process, as it was made.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    user: User,
    env: Vec<String>,
    cwd: String,
    capabilities: Named,
    no_new_privileges: Option<bool>,
    apparmor_profile: Option<String>,
    #[serde(default)]
    oom_score_adj: i32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct User {
    uid: u32,
    gid: u32,
    additional_gids: Vec<u32>,
}

/// Device of `/dev/null`.
const NULL: (u64, u64) = (1, 3);

/// What is wanted.
pub struct Wish {
    /// Command line.
    pub args: Vec<String>,
    /// With a terminal.
    pub tty: bool,
    /// Which streams come as `ends`.
    pub wanted: Wanted,
    /// Ends of pipes, in the order standard input, output, error.
    pub ends: Vec<OwnedFd>,
}

/// What its maker works with.
struct Entry<'a> {
    pod: &'a Pod,
    bundle: PathBuf,
    cgroup: String,
    /// The host's id of the process's user.
    owner: u32,
    /// `/proc/<pid>` of the container's first process: of that one for ever, whoever gets its number.
    first: OwnedFd,
    /// `None` for those nobody wants.
    streams: [Option<OwnedFd>; 3],
    args: Vec<String>,
    tty: bool,
}

/// Starts the maker of a process in `container`.
pub fn start(pod: &Pod, container: &Container, wish: Wish) -> Result<Maker, String> {
    let (id, pid) = (&container.info.spec.id, container.info.pid);
    if container.info.started_at.is_none() || container.info.exit.is_some() {
        return Err(format!("container {id} is not running"));
    }
    let owner = pod.owner_of(&container.info.spec.user);
    wish.ends.iter().try_for_each(|end| give(end, owner))?;
    // not reaped yet, so nobody else has its number
    let first =
        open(format!("/proc/{pid}").as_str(), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let mut ends = wish.ends.into_iter();
    let mut end = |wanted: bool| if wanted { ends.next() } else { None };
    let entry = Entry {
        pod,
        bundle: store::container_dir(&pod.dir, id),
        cgroup: pod.sandbox.container_cgroup(id),
        owner,
        first: first.map_err(context("looking at the container's first process"))?,
        streams: [end(wish.wanted.stdin), end(wish.wanted.stdout), end(wish.wanted.stderr)],
        args: wish.args,
        tty: wish.tty,
    };
    Maker::start(|reporter| enter(entry, reporter))
}

fn enter(entry: Entry<'_>, reporter: &Reporter) -> Result<(), String> {
    // before anything of the container is touched: not even who may trace may look at this process
    prctl::set_dumpable(false).map_err(context("hiding the process"))?;
    let mut kept = vec![reporter.descriptor(), entry.first.as_raw_fd()];
    kept.extend(entry.pod.held.user);
    kept.extend(entry.streams.iter().flatten().map(AsRawFd::as_raw_fd));
    close_others(&mut kept)?;
    forget_on_fork()?;
    let process: Process =
        store::read_json(&entry.bundle.join(PROCESS)).map_err(context("reading the container's process"))?;
    let filter = Filter::of(&entry.bundle)?;
    let capabilities = Sets::try_from(&process.capabilities)?;
    files::set("/proc/self/oom_score_adj", process.oom_score_adj.to_string())
        .map_err(|e| format!("setting oom_score_adj to {}: {e}", process.oom_score_adj))?;
    join_cgroup(&entry)?;
    if let Some(profile) = process.apparmor_profile.as_deref().filter(|p| !p.is_empty()) {
        change_profile(profile).map_err(|e| format!("AppArmor profile {profile}: {e}"))?;
    }
    join_namespaces(&entry)?;
    let terminal = if entry.tty {
        let (own, terminal) = terminal::open_pair(entry.owner)?;
        set_streams([own.as_fd(); 3])?;
        Some(terminal)
    } else {
        let null = open_null()?;
        set_streams(entry.streams.each_ref().map(|end| end.as_ref().unwrap_or(&null).as_fd()))?;
        None
    };
    drop(entry.streams);
    if let Some(users) = entry.pod.held.user {
        // SAFETY: it was kept open above, and is used by nobody else in this process.
        let users = unsafe { OwnedFd::from_raw_fd(users) };
        setns(users, CloneFlags::CLONE_NEWUSER).map_err(context("joining the pod's user namespace"))?;
    }
    if let Some(terminal) = terminal {
        reporter.terminal(&terminal)?;
    }
    // nothing is open any more but the streams and the way to the shim, so no path leads out by a descriptor
    drop(entry.first);
    become_process(process, capabilities, filter, entry.args, entry.tty, reporter)
}

/// Joins the container's cgroup, or on version 2 that of its first process, where the container has made cgroups of its
/// own: then its outermost takes no process.
fn join_cgroup(entry: &Entry<'_>) -> Result<(), String> {
    for dir in entry.pod.hierarchies.dirs(&entry.cgroup) {
        let joined = controllers::join(&dir);
        let busy = |e: &io::Error| matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EOPNOTSUPP));
        let joined = match joined {
            Err(e) if entry.pod.hierarchies.unified() && busy(&e) => {
                let text = read_in(&entry.first, "cgroup").map_err(context("finding the first process's cgroup"))?;
                let below = text.lines().find_map(|l| l.strip_prefix("0::/")).and_then(|path| {
                    let below = Path::new(path).strip_prefix(entry.cgroup.trim_start_matches('/')).ok()?;
                    below.components().all(|c| matches!(c, std::path::Component::Normal(_))).then(|| below.to_owned())
                });
                match below {
                    Some(below) => controllers::join(&dir.join(below)),
                    None => Err(e),
                }
            }
            joined => joined,
        };
        joined.map_err(|e| format!("joining the cgroup {}: {e}", dir.display()))?;
    }
    Ok(())
}

fn read_in(process: &OwnedFd, file: &str) -> io::Result<String> {
    let file = openat(process, file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    io::read_to_string(File::from(file))
}

/// The profile counts from the next program on, which is that of the process this one makes.
fn change_profile(profile: &str) -> io::Result<()> {
    let wanted = format!("exec {profile}");
    files::set("/proc/self/attr/apparmor/exec", &wanted).or_else(|_| files::set("/proc/self/attr/exec", &wanted))
}

/// All of the container's namespaces but that of users; what this process makes is in its PID namespace. The root and the
/// working directory become those of the container.
fn join_namespaces(entry: &Entry<'_>) -> Result<(), String> {
    let failed = |kind: &str, e: Errno| format!("joining the container's {kind} namespace: {e}");
    let kinds = [
        ("net", CloneFlags::CLONE_NEWNET),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    // the container's are named by the process that is its first, all of them before its own /proc is in the way
    let namespaces = kinds.map(|(kind, flag)| {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        (kind, flag, openat(&entry.first, format!("ns/{kind}").as_str(), flags, Mode::empty()))
    });
    for (kind, flag, namespace) in namespaces {
        match namespace {
            // a kernel without them
            Err(Errno::ENOENT) if kind == "cgroup" => {}
            Err(Errno::ENOENT | Errno::ESRCH) => return Err("the container has ended".into()),
            namespace => {
                let namespace = namespace.map_err(|e| failed(kind, e))?;
                setns(namespace, flag).map_err(|e| failed(kind, e))?;
            }
        }
    }
    Ok(())
}

/// The container's own `/dev/null`, so that what a process does to it does not change the host's.
fn open_null() -> Result<OwnedFd, String> {
    // one that is something else must not hold up or start anything by being opened
    let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let real = |fd: &OwnedFd| {
        fstat(fd).is_ok_and(|s| {
            SFlag::from_bits_truncate(s.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR
                && (major(s.st_rdev), minor(s.st_rdev)) == NULL
        })
    };
    let seen = open("/dev/null", flags | OFlag::O_PATH, Mode::empty()).map_err(context("opening /dev/null"))?;
    if real(&seen) {
        let open = open("/dev/null", flags | OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOCTTY, Mode::empty());
        let null = open.map_err(context("opening /dev/null"))?;
        if real(&null) {
            return Ok(null);
        }
    }
    Err("/dev/null in the container is no such device".into())
}

fn set_streams([input, output, error]: [BorrowedFd<'_>; 3]) -> Result<(), String> {
    let set = dup2_stdin(input).and_then(|()| dup2_stdout(output)).and_then(|()| dup2_stderr(error));
    set.map_err(context("setting the standard streams"))
}

/// The rest: the user, what it may do, and the program.
fn become_process(
    process: Process,
    capabilities: Sets,
    filter: Option<Filter>,
    args: Vec<String>,
    tty: bool,
    reporter: &Reporter,
) -> Result<(), String> {
    reset_signals().map_err(context("resetting signals"))?;
    privileges::bound(capabilities.bounding).map_err(context("dropping capabilities"))?;
    // as root first, who may enter more; a few file systems let only the user in
    let cwd = if process.cwd.is_empty() { "/" } else { &process.cwd };
    let enter = || chdir(cwd);
    let entered = enter();
    let User { uid, gid, additional_gids } = process.user;
    privileges::become_user(uid, gid, &additional_gids).map_err(context("changing the user"))?;
    // of what it has as root nothing stays but what the container's own process has
    privileges::set(SYS_ADMIN | capabilities.permitted, SYS_ADMIN | capabilities.effective)
        .map_err(context("dropping capabilities"))?;
    let entered = if matches!(entered, Err(Errno::EPERM | Errno::EACCES)) { enter() } else { entered };
    entered.map_err(|e| format!("entering the working directory {cwd:?}: {e}"))?;
    // CVE-2024-21626: one that is not below the container's root has no name
    match getcwd() {
        Ok(path) if path.is_absolute() => {}
        _ => return Err(format!("the working directory {cwd:?} is not in the container")),
    }
    let no_new_privileges = process.no_new_privileges == Some(true);
    if no_new_privileges {
        prctl::set_no_new_privs().map_err(context("setting no_new_privs"))?;
        privileges::set(capabilities.permitted, capabilities.effective).map_err(context("dropping capabilities"))?;
    }
    let mut env = process.env;
    if tty && !env.iter().any(|e| e.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    let name = args.first().ok_or("no command")?;
    let path = env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or_default();
    let program = c_string(find_program(name, path)?.into_os_string().into_encoded_bytes())?;
    let strings = |list: Vec<String>| list.into_iter().map(|s| c_string(s.into_bytes())).collect::<Result<Vec<_>, _>>();
    let (args, env) = (strings(args)?, strings(env)?);
    let mut launch = Launch::new(program, args, env, tty);
    let early = filter.map(|filter| launch.behind(filter, no_new_privileges)).transpose()?.flatten();
    let started = launch.run(reporter, || {
        if let Some(mut filter) = early {
            filter.load().map_err(context("loading the seccomp filter"))?;
            // its memory stays: the filter may refuse to give it back
            std::mem::forget(filter);
        }
        if !no_new_privileges {
            privileges::set(capabilities.permitted, capabilities.effective)
                .map_err(context("dropping capabilities"))?;
        }
        Ok(())
    });
    started.map(|never| match never {})
}

fn c_string(bytes: Vec<u8>) -> Result<CString, String> {
    CString::new(bytes).map_err(|_| "a word of the command or its environment has a zero byte in it".into())
}
