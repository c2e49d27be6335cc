//! The board's life once it has a root: network, clock, watchdog, agent, console.

use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, set_cad_enabled};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, sethostname};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};

use super::agent::{self, News};
use super::network::{self, Addressing};
use super::settings::{self, Found, Variant};
use super::status::{self, Pods, Status};
use super::upgrade::trial::{self, Trial};
use super::watchdog::{self, Watchdog};
use super::{BOOT, Failure, card, clock, console, log, mounts, power, report, secrets};
use crate::files::{self, Durability};
use crate::hex::hex;
use crate::server::local;

/// How long the agent waits for an address and the right time; without them pods of before come back all the same.
const PATIENCE: Duration = Duration::from_secs(30);
/// Digits of the serial number in a name.
const DIGITS: usize = 8;
/// How often pods are counted.
const PODS: Duration = Duration::from_secs(30);

/// Runs the board until it is restarted or turned off.
pub fn run() -> Result<Infallible, Failure> {
    mounts::rest()?;
    counts();
    // what was mounted by the first run is known by its identifier
    let cmdline = fs::read_to_string("/proc/cmdline")?;
    let card = card::find(&cmdline, PATIENCE)?;
    clock::floor(&card.data)?;
    let (model, serial) = status::board();
    identify(&serial)?;
    let found = settings::read(Path::new(BOOT), &secrets::kept(), Variant::Appliance);
    if let Some(name) = &found.name {
        sethostname(name)?;
    }
    let node = crate::machine::hostname();
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {node}\n");
    files::write(Path::new("/etc/hosts"), hosts.as_bytes(), 0o644, Durability::Volatile)?;
    // tokens and logins are for root alone
    files::dir(Path::new("/etc/pikelet"), 0o700)?;
    files::write(Path::new(agent::SETTINGS), found.agent.as_bytes(), 0o600, Durability::Volatile)?;
    if let Some(registries) = &found.board.registries {
        let text = serde_json::to_vec(registries)?;
        files::write(Path::new("/etc/pikelet/registries.yaml"), &text, 0o600, Durability::Volatile)?;
    }
    let (mistakes, standalone) = (found.mistakes.clone(), found.standalone);
    let mut status = Status { model, serial, node, mistakes, standalone, ..Status::default() };
    let trial = trial::begin(&cmdline).map(|(trial, text)| {
        status.upgrade = text;
        trial
    });
    let trial = trial.unwrap_or_else(|error| {
        status.warn(&format!("upgrade: {error}"));
        None
    });
    if !status.upgrade.is_empty() {
        log::line(&format!("upgrade: {}", status.upgrade));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(4).enable_all().build()?;
    let watchdog = Watchdog::open(found.board.watchdog.unwrap_or(true)).unwrap_or_else(|error| {
        status.warn(&error.to_string());
        None
    });
    let watchdog = watchdog.map(Arc::new);
    if watchdog.is_none() {
        log::line("watchdog: none: a board that is stuck stays so");
    }
    let mode = runtime.block_on(live(found, status, watchdog.clone(), trial))?;
    runtime.shutdown_background();
    power::off(mode, watchdog.as_deref())
}

/// Raises the counts of root's that containers with the host's users share with the node, so that none of them takes them all.
/// What is counted is memory of their own cgroups, and so bounded (`SLAB_ACCOUNT` in the kernel's `fs/eventpoll.c`,
/// `GFP_KERNEL_ACCOUNT` in `fs/notify`). `systemd/pikelet.service` has the same.
fn counts() {
    for (name, most) in [
        ("epoll/max_user_watches", "1073741824"),
        ("inotify/max_user_instances", "1048576"),
        ("inotify/max_user_watches", "16777216"),
    ] {
        if let Err(error) = files::set(format!("/proc/sys/fs/{name}"), most) {
            log::line(&format!("fs/{name} stays as it is: {error}"));
        }
    }
}

/// What is said of the agent while there are mistakes.
pub(super) fn waits() -> String {
    format!("waits for {} to be mended; no pods run", settings::FILE)
}

/// Name and machine id by the board's serial number: the same after the card was written anew.
pub(super) fn identify(serial: &str) -> Result<(), Failure> {
    let tail: String = serial.chars().rev().take(DIGITS).collect::<Vec<_>>().into_iter().rev().collect();
    sethostname(format!("pikelet-{}", tail.to_lowercase()))?;
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("pikelet machine id {serial}").as_bytes());
    let id: String = hex(digest.as_ref()).chars().take(32).collect();
    Ok(files::write(Path::new("/etc/machine-id"), format!("{id}\n").as_bytes(), 0o444, Durability::Volatile)?)
}

/// Everything at once, until a signal says how to end.
async fn live(
    found: Found,
    first: Status,
    watchdog: Option<Arc<Watchdog>>,
    trial: Option<Trial>,
) -> Result<RebootMode, Failure> {
    let mistaken = !found.mistakes.is_empty();
    let node = first.node.clone();
    let (status, seen) = watch::channel(first);
    tokio::spawn(console::show(seen.clone()));
    tokio::spawn(report::keep(seen));
    let restart = Arc::new(Notify::new());
    if let Some(trial) = trial {
        let limit = found.upgrade_timeout.unwrap_or(trial::LIMIT);
        tokio::spawn(trial.keep(status.clone(), limit, restart.clone()));
    }
    if let Some(watchdog) = watchdog {
        tokio::spawn(watchdog::keep(watchdog));
    }

    if found.board.keep_secrets_on_card == Some(false) {
        tokio::spawn(move_secrets(status.clone()));
    }

    let (addressing_tx, addressing) = watch::channel(Addressing::default());
    let told = status.clone();
    tokio::spawn(async move {
        let tell = |text: String| told.send_modify(|s| s.network = text);
        if let Err(error) = network::keep(found.board.network, node, addressing_tx, tell).await {
            log::line(&format!("network: {error}"));
            told.send_modify(|s| s.network = error.to_string());
        }
    });
    let (right_tx, right) = watch::channel(false);
    let (servers_tx, servers) = watch::channel(Vec::new());
    let told = status.clone();
    tokio::spawn(clock::keep(servers, move |text, right| {
        told.send_if_modified(|s| {
            s.clock != text && {
                s.clock = text;
                true
            }
        });
        right_tx.send_if_modified(|old| {
            *old != right && {
                *old = right;
                true
            }
        });
    }));
    let (again_tx, again) = watch::channel(0);
    tokio::spawn(follow(addressing.clone(), found.board.time_servers, servers_tx, status.clone(), again_tx));

    let (ended_tx, ended) = mpsc::unbounded_channel();
    if mistaken {
        status.send_modify(|s| s.agent = waits());
    } else {
        let (news_tx, news) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let ready = async {
                let (mut addressing, mut right) = (addressing, right);
                // it ends with this process only
                let _ = addressing.wait_for(|a| a.address.is_some()).await;
                let _ = right.wait_for(|right| *right).await;
            };
            if tokio::time::timeout(PATIENCE, ready).await.is_err() {
                log::line("agent: started without network or time: pods of before come back");
            }
            agent::keep(news_tx, again, ended).await;
        });
        tokio::spawn(hear(news, status.clone()));
    }
    signals(&ended_tx, &restart).await
}

/// Moves the settings' secrets off the FAT partition, once it is seen that they are right.
pub(super) async fn move_secrets(status: watch::Sender<Status>) {
    if status.subscribe().wait_for(Status::works).await.is_err() {
        return;
    }
    let moved = tokio::task::spawn_blocking(secrets::move_away).await.unwrap_or_else(|error| Err(error.into()));
    match moved {
        Ok(true) => log::line("settings: secrets were moved to the data partition"),
        Ok(false) => {}
        Err(error) => status.send_modify(|s| s.warn(&format!("secrets stay on the card: {error}"))),
    }
}

/// Passes on what the network gave: to the clock, the status, and the agent when its address is another one.
async fn follow(
    mut addressing: watch::Receiver<Addressing>,
    chosen: Vec<String>,
    servers: watch::Sender<Vec<String>>,
    status: watch::Sender<Status>,
    again: watch::Sender<u64>,
) {
    let mut before = None;
    while addressing.changed().await.is_ok() {
        let now = addressing.borrow_and_update().clone();
        let Some(address) = now.address else {
            status
                .send_modify(|s| s.network = format!("the lease of {} is over, no DHCP server answers", now.interface));
            continue;
        };
        let how = if now.time_servers.is_empty() { "" } else { ", with its own time servers" };
        status.send_modify(|s| s.network = format!("{address} on {}{how}", now.interface));
        let given =
            if now.time_servers.is_empty() { clock::DEFAULT.map(str::to_owned).to_vec() } else { now.time_servers };
        servers.send_replace(if chosen.is_empty() { given } else { chosen.clone() });
        if before.is_some_and(|old| old != address.addr()) {
            again.send_modify(|n| *n += 1);
        }
        before = Some(address.addr());
    }
}

/// Keeps what is said of the agent, and counts its pods.
async fn hear(mut news: mpsc::UnboundedReceiver<News>, status: watch::Sender<Status>) {
    let mut tick = tokio::time::interval(PODS);
    loop {
        tokio::select! {
            said = news.recv() => match said {
                None => return,
                Some(News::State(state)) => {
                    status.send_if_modified(|s| s.agent != state && { s.agent = state; true });
                }
                Some(News::Warning(text)) => status.send_modify(|s| s.warn(&text)),
            },
            _ = tick.tick() => {
                let counted = tokio::task::spawn_blocking(count).await.ok().flatten();
                status.send_if_modified(|s| s.pods != counted && { s.pods = counted; true });
            }
        }
    }
}

/// The pods; `None` while no agent answers.
pub(super) fn count() -> Option<Pods> {
    let answer = local::ask(Path::new("/run/pikelet"), "GET", "/pods").ok()?;
    let list: serde_json::Value = serde_json::from_str(&answer).ok()?;
    let pods = list["items"].as_array()?;
    let of = |phase: &str| pods.iter().filter(|p| p["status"]["phase"] == phase).count();
    let running = of("Running");
    Some(Pods { running, waiting: pods.len() - running - of("Succeeded"), all: pods.len() })
}

/// Collects what has ended, until a signal asks for a restart (SIGTERM, or SIGINT by Ctrl-Alt-Del) or the end (SIGUSR2), or
/// a new system gives up.
async fn signals(ended: &mpsc::UnboundedSender<Pid>, restart: &Notify) -> Result<RebootMode, Failure> {
    // the kernel asks this process instead of restarting at once
    set_cad_enabled(false)?;
    let mut child = signal(SignalKind::child())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut user = signal(SignalKind::user_defined2())?;
    loop {
        tokio::select! {
            _ = child.recv() => {
                while let Ok(state) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                    let Some(pid) = state.pid() else { break };
                    // without an agent nobody wants to know
                    let _ = ended.send(pid);
                }
            }
            () = restart.notified() => return Ok(RebootMode::RB_AUTOBOOT),
            _ = terminate.recv() => return Ok(RebootMode::RB_AUTOBOOT),
            _ = interrupt.recv() => return Ok(RebootMode::RB_AUTOBOOT),
            _ = user.recv() => return Ok(RebootMode::RB_POWER_OFF),
        }
    }
}
