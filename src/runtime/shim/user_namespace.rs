//! A pod's user namespace: it owns the pod's other namespaces, and is joined by its containers. The shim stays outside.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, setresgid, setresuid};

use super::namespaces::{Held, held, settle};
use super::pause;
use super::setup::context;
use crate::files;
use crate::runtime::spec::PidNamespace;
use crate::runtime::store;
use crate::runtime::types::{IdRange, SandboxSpec};

/// What the helper says when it waits for its ids.
const WAITING: u8 = b'w';

/// Makes the namespaces of a pod whose users are `ids` of the host, and joins all but that of users. Another process
/// makes them: what it makes belongs to the user namespace it is in, and the shim must not be in one.
pub fn enter(spec: &SandboxSpec, ids: IdRange, dir: &Path) -> Result<Held, String> {
    let (mut ours, theirs) = UnixStream::pair().map_err(context("creating a socket"))?;
    // SAFETY: the shim has a single thread, so the child may go on as an ordinary process.
    let helper = match unsafe { fork() }.map_err(context("making the pod's namespaces: fork"))? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop(ours);
            help(spec, theirs)
        }
    };
    drop(theirs);
    let made = take_over(ids, dir, helper, &mut ours);
    // its end of the connection lets it go
    drop(ours);
    let _ = waitpid(helper, None);
    made
}

fn take_over(ids: IdRange, dir: &Path, helper: Pid, socket: &mut UnixStream) -> Result<Held, String> {
    let mut said = [0];
    let waits = socket.read_exact(&mut said).is_ok() && said == [WAITING];
    if waits {
        for file in ["uid_map", "gid_map"] {
            let file = format!("/proc/{helper}/{file}");
            files::set(&file, format!("0 {} {}", ids.first, ids.count)).map_err(|e| format!("writing {file}: {e}"))?;
        }
        socket.write_all(&said).map_err(context("talking to the maker of the pod's namespaces"))?;
    }
    let mut answer = String::new();
    read_line(socket, &mut answer).map_err(context("waiting for the pod's namespaces"))?;
    let pause = match answer.trim().strip_prefix("made ") {
        Some(pid) => pid.parse().ok().filter(|pid| *pid > 0).map(Pid::from_raw),
        None => return Err(format!("creating the pod's user namespace: {}", answer.trim())),
    };
    let user = namespace(helper, "user")?;
    let link = dir.join(store::USER_NAMESPACE);
    let _ = fs::remove_file(&link);
    let place = format!("/proc/{}/fd/{}", std::process::id(), user.as_raw_fd());
    std::os::unix::fs::symlink(place, link).map_err(context("naming the pod's user namespace"))?;
    let joined = |kind: &str, flag: CloneFlags| {
        let file = namespace(helper, kind)?;
        setns(&file, flag).map_err(|e| format!("joining the pod's {kind} namespace: {e}"))?;
        Ok::<_, String>(held(file))
    };
    Ok(Held {
        network: Some(joined("net", CloneFlags::CLONE_NEWNET)?),
        ipc: Some(joined("ipc", CloneFlags::CLONE_NEWIPC)?),
        uts: Some(joined("uts", CloneFlags::CLONE_NEWUTS)?),
        pid: match pause {
            Some(_) => PidNamespace::Join(held(namespace(helper, "pid_for_children")?)),
            None => PidNamespace::New,
        },
        user: Some(user.into_raw_fd()),
        pause,
    })
}

fn namespace(of: Pid, kind: &str) -> Result<File, String> {
    let path = format!("/proc/{of}/ns/{kind}");
    File::open(&path).map_err(|e| format!("opening {path}: {e}"))
}

fn read_line(from: &mut UnixStream, line: &mut String) -> std::io::Result<()> {
    let mut byte = [0];
    while from.read(&mut byte)? == 1 && byte != [b'\n'] {
        line.push(char::from(byte[0]));
    }
    Ok(())
}

/// The helper: says what it has made, and lives until that has been opened.
fn help(spec: &SandboxSpec, mut socket: UnixStream) -> ! {
    let answer = match make(spec, &mut socket) {
        Ok(pause) => format!("made {}\n", pause.map_or(0, Pid::as_raw)),
        Err(error) => format!("{}\n", error.replace('\n', " ")),
    };
    let _ = socket.write_all(answer.as_bytes());
    let _ = socket.read(&mut [0]);
    // SAFETY: ends this process without running what its parent has registered for its own end.
    unsafe { libc::_exit(0) }
}

fn make(spec: &SandboxSpec, socket: &mut UnixStream) -> Result<Option<Pid>, String> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|e| match e {
        Errno::EINVAL => "this kernel has no user namespaces (CONFIG_USER_NS)".to_owned(),
        Errno::ENOSPC => "there are too many already (sysctl user.max_user_namespaces)".to_owned(),
        e => e.to_string(),
    })?;
    let talk = context("talking to the shim");
    socket.write_all(&[WAITING]).map_err(&talk)?;
    socket.read_exact(&mut [0]).map_err(&talk)?;
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    let root = setresgid(group, group, group).and_then(|()| setresuid(user, user, user));
    root.map_err(context("becoming its root"))?;
    let others = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    unshare(others).map_err(context("creating the pod's other namespaces"))?;
    settle(spec)?;
    if !spec.share_process_namespace {
        return Ok(None);
    }
    unshare(CloneFlags::CLONE_NEWPID).map_err(context("creating the pod's PID namespace"))?;
    let started = pause::start(|| {
        // SAFETY: a fork, but for the parent, which is the shim; this process has a single thread.
        let forked = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_PARENT | libc::SIGCHLD, 0, 0, 0, 0) };
        Errno::result(forked).map(|pid| i32::try_from(pid).ok().filter(|pid| *pid > 0).map(Pid::from_raw))
    });
    started.map(Some)
}
