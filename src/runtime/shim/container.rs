//! One container of a pod as its shim runs it, through libcontainer.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

use super::files;
use crate::runtime::cri_log::{LineWriter, Stream};
use crate::runtime::spec::{self, Place};
use crate::runtime::types::{ContainerInfo, ContainerSpec, ExitRecord};

/// One output of a container on its way to the log.
pub struct Output {
    pipe: File,
    lines: LineWriter,
}

impl Output {
    /// The end to poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Copies what is there (at most a few buffers); true when the stream has ended.
    pub fn copy(&mut self, buffer: &mut [u8]) -> bool {
        for _ in 0..4 {
            match self.pipe.read(buffer) {
                Ok(0) => {
                    // a full disk must not stop the container
                    let _ = self.lines.finish();
                    return true;
                }
                Ok(n) => drop(self.lines.push(&buffer[..n])),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() != ErrorKind::WouldBlock,
            }
        }
        false
    }
}

/// A container and its open outputs.
pub struct Container {
    /// What the agent is told of it.
    pub info: ContainerInfo,
    /// Its outputs until they end.
    pub outputs: Vec<Output>,
    /// Absolute cgroup path.
    pub cgroup: String,
    /// OOM kills in its cgroup when it was made.
    pub oom_before: u64,
    dir: PathBuf,
    state: PathBuf,
}

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or_default()
}

fn output_pipe(log: &Arc<Mutex<File>>, stream: Stream) -> Result<(OwnedFd, Output), String> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|e| format!("creating a pipe: {e}"))?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|e| format!("setting a pipe non-blocking: {e}"))?;
    Ok((write, Output { pipe: File::from(read), lines: LineWriter::new(log.clone(), stream) }))
}

/// Whole chain of an error on one line, outermost first.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

impl Container {
    /// Creates the process, stopped before its program.
    pub fn create(sandbox_dir: &Path, spec: ContainerSpec, place: &Place) -> Result<Self, String> {
        let dir = sandbox_dir.join(files::CONTAINERS).join(&spec.id);
        let root = sandbox_dir.join(files::LIBCONTAINER);
        let state = root.join(&spec.id);
        let made = Self::build(&dir, &root, spec, place);
        if made.is_err() {
            reap_leftovers();
            for left in [&dir, &state] {
                // what a failed try left must not refuse the next one; it may not exist
                let _ = fs::remove_dir_all(left);
            }
            // the same for its cgroup
            let _ = crate::runtime::cgroup::remove(place.cgroup);
        }
        made
    }

    fn build(dir: &Path, root: &Path, spec: ContainerSpec, place: &Place) -> Result<Self, String> {
        let made = |what: &Path| format!("creating {}", what.display());
        for dir in [dir, root].into_iter().chain(spec.log_path.parent()) {
            fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", made(dir)))?;
        }
        let log = File::options().create(true).append(true).open(&spec.log_path);
        let log = Arc::new(Mutex::new(log.map_err(|e| format!("opening log {}: {e}", spec.log_path.display()))?));
        spec::write_bundle(dir, &spec::to_oci(&spec, place)).map_err(|e| format!("{}: {e}", made(dir)))?;
        let (stdout, out) = output_pipe(&log, Stream::Stdout)?;
        let (stderr, err) = output_pipe(&log, Stream::Stderr)?;
        let null = File::open("/dev/null").map_err(|e| format!("opening /dev/null: {e}"))?;
        let container = ContainerBuilder::new(spec.id.clone(), SyscallType::default())
            .with_root_path(root)
            .map_err(|e| chain(&e))?
            .with_stdin(OwnedFd::from(null))
            .with_stdout(stdout)
            .with_stderr(stderr)
            .as_init(dir)
            .with_systemd(false)
            .with_detach(true)
            .build()
            .map_err(|e| chain(&e))?;
        let pid = container.pid().map_or(0, |p| p.as_raw());
        let cgroup = place.cgroup.to_owned();
        let oom_before = crate::runtime::cgroup::oom_kills(&cgroup);
        let info = ContainerInfo { spec, pid, started_at: None, created_at: now(), exit: None };
        let state = root.join(&info.spec.id);
        let made = Self { info, outputs: vec![out, err], cgroup, oom_before, dir: dir.to_owned(), state };
        made.save()?;
        Ok(made)
    }

    /// Lets the program run.
    pub fn start(&mut self) -> Result<i64, String> {
        let mut container = libcontainer::container::Container::load(self.state.clone()).map_err(|e| chain(&e))?;
        container.start().map_err(|e| chain(&e))?;
        let started = now();
        self.info.started_at = Some(started);
        self.save()?;
        Ok(started)
    }

    /// Notes how it ended.
    pub fn ended(&mut self, code: i32, signal: Option<i32>) -> ExitRecord {
        let oom_killed = signal == Some(9) && crate::runtime::cgroup::oom_kills(&self.cgroup) > self.oom_before;
        let exit = ExitRecord { code, signal, oom_killed, finished_at: now() };
        self.info.exit = Some(exit.clone());
        // the agent hears of it by message as well
        let _ = self.save();
        exit
    }

    /// Removes bundle, record and libcontainer's state.
    pub fn forget(&self) {
        for dir in [&self.dir, &self.state] {
            // gone with the sandbox's directory at the latest
            let _ = fs::remove_dir_all(dir);
        }
    }

    /// Writes the record (temporary name, rename; the file system is volatile).
    fn save(&self) -> Result<(), String> {
        let file = self.dir.join(files::INFO);
        let temporary = file.with_extension("tmp");
        serde_json::to_vec(&self.info)
            .map_err(std::io::Error::other)
            .and_then(|text| fs::write(&temporary, text))
            .and_then(|()| fs::rename(&temporary, &file))
            .map_err(|e| format!("writing {}: {e}", file.display()))
    }
}

/// A failed build leaves zombies.
fn reap_leftovers() {
    while matches!(waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)), Ok(s) if s != WaitStatus::StillAlive) {}
}
