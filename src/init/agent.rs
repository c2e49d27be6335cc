//! The agent as a child: started, listened to, started again.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixDatagram;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{RUN, log, mounts};

use crate::files;

/// Its settings, made of the card's.
pub const SETTINGS: &str = "/etc/pikelet/config.yaml";
/// Open files it may have.
const FILES: u64 = 1 << 20;
/// Pause before it is started again.
const PAUSE: Duration = Duration::from_secs(2);
/// How long it may be silent once it is up.
const SILENCE: Duration = Duration::from_mins(1);
/// How long it has to end when it is asked to.
const GRACE: Duration = Duration::from_secs(10);

/// What there is to say of it.
#[derive(Debug)]
pub enum News {
    /// What it says of itself.
    State(String),
    /// A warning or an error it logged.
    Warning(String),
}

/// Starts it. Its log goes to a thread of its own, which ends with it.
fn start(news: &mpsc::UnboundedSender<News>) -> io::Result<Pid> {
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new("/bin/pikelet");
    command.arg("run").env("NOTIFY_SOCKET", format!("{RUN}/notify"));
    command.env("WATCHDOG_USEC", SILENCE.as_micros().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(OwnedFd::from(writer));
    // made before: memory is not to be had between fork(2) and execve(2)
    let cgroup = format!("{}/cgroup.procs", mounts::AGENT_CGROUP);
    let in_child = move || {
        files::set(&cgroup, "0")?;
        files::set("/proc/self/oom_score_adj", "-999")?;
        setrlimit(Resource::RLIMIT_NOFILE, FILES, FILES)?;
        Ok(())
    };
    // SAFETY: it makes system calls only, with what was made before.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(in_child);
    }
    let child = command.spawn()?;
    let news = news.clone();
    std::thread::spawn(move || listen(File::from(OwnedFd::from(reader)), &news));
    Ok(Pid::from_raw(child.id().cast_signed()))
}

/// Copies its log, line by line.
fn listen(log: File, news: &mpsc::UnboundedSender<News>) {
    for line in BufReader::new(log).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        log::raw(&line);
        let warning = line.split_once(" WARN ").or_else(|| line.split_once(" ERROR ")).map(|(_, what)| what);
        if let Some(what) = warning.or_else(|| line.strip_prefix("pikelet: ")) {
            // nobody listens any more when the board goes down
            let _ = news.send(News::Warning(what.trim().to_owned()));
        }
    }
}

/// Keeps an agent running for ever. `again` changes when it has to start anew; `ended` hears which children have ended.
pub async fn keep(
    news: mpsc::UnboundedSender<News>,
    mut again: watch::Receiver<u64>,
    mut ended: mpsc::UnboundedReceiver<Pid>,
) {
    let path = format!("{RUN}/notify");
    let _ = fs::remove_file(&path);
    let socket = match UnixDatagram::bind(&path) {
        Ok(socket) => socket,
        Err(error) => return log::line(&format!("{path}: {error}")),
    };
    again.mark_unchanged();
    loop {
        let pid = match start(&news) {
            Ok(pid) => pid,
            Err(error) => {
                // nobody listens any more when the board goes down
                let _ = news.send(News::State(format!("the agent does not start: {error}")));
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        log::line(&format!("agent: started, pid {pid}"));
        let code = watch_over(pid, &socket, &news, &mut again, &mut ended).await;
        log::line(&format!("agent: {code}"));
        let _ = news.send(News::State(code));
        tokio::time::sleep(PAUSE).await;
    }
}

/// Listens to one agent until it has ended; how it did.
async fn watch_over(
    pid: Pid,
    socket: &UnixDatagram,
    news: &mpsc::UnboundedSender<News>,
    again: &mut watch::Receiver<u64>,
    ended: &mut mpsc::UnboundedReceiver<Pid>,
) -> String {
    let mut buffer = [0; 4096];
    // only who has said that it is up is known to speak regularly
    let mut silent_at = None::<Instant>;
    let mut how = "the agent has ended and is started again".to_owned();
    let far = || Instant::now() + Duration::from_hours(24);
    loop {
        tokio::select! {
            Ok(size) = socket.recv(&mut buffer) => {
                let said = String::from_utf8_lossy(buffer.get(..size).unwrap_or_default()).into_owned();
                for line in said.lines() {
                    if let Some(state) = line.strip_prefix("STATUS=") {
                        let _ = news.send(News::State(state.to_owned()));
                    }
                    if line == "READY=1" || line == "WATCHDOG=1" {
                        silent_at = Some(Instant::now() + SILENCE);
                    }
                }
            }
            Some(child) = ended.recv() => if child == pid { return how },
            _ = again.changed() => {
                "the agent is started again with the board's new address".clone_into(&mut how);
                // one that has ended needs no signal
                let _ = kill(pid, Signal::SIGTERM);
                silent_at = Some(Instant::now() + GRACE);
            }
            () = tokio::time::sleep_until(silent_at.unwrap_or_else(far)), if silent_at.is_some() => {
                how = format!("the agent was silent for {} s and is started again", SILENCE.as_secs());
                let _ = kill(pid, Signal::SIGKILL);
                silent_at = None;
            }
        }
    }
}
