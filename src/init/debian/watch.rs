//! How a board with Debian's system is, told on its consoles and in `pikelet-status.txt`: a unit of its own, so that it is
//! told as well when no agent runs.

use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrIn;
use tokio::sync::watch;

use crate::init::settings::{self, Variant};
use crate::init::status::{self, Status};
use crate::init::{BOOT, Failure, console, report, secrets, system};

/// How often one looks while the board is not up.
const SOON: Duration = Duration::from_secs(5);
/// And once it is.
const LATER: Duration = Duration::from_secs(30);
/// There once systemd-timesyncd has set the clock.
const SYNCHRONIZED: &str = "/run/systemd/timesync/synchronized";

/// Tells for ever.
pub fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(4).enable_all().build();
    let ended = runtime.map_err(Failure::from).and_then(|runtime| runtime.block_on(keep()));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pikelet: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn keep() -> Result<(), Failure> {
    let found = settings::read(Path::new(BOOT), &secrets::kept(), Variant::Debian);
    let mistaken = !found.mistakes.is_empty();
    let (model, serial) = status::board();
    let (mistakes, standalone) = (found.mistakes, found.standalone);
    let first = Status { model, serial, node: crate::machine::hostname(), mistakes, standalone, ..Status::default() };
    let (status, seen) = watch::channel(first);
    tokio::spawn(console::show(seen.clone()));
    tokio::spawn(report::keep(seen));
    if found.board.keep_secrets_on_card == Some(false) {
        tokio::spawn(system::move_secrets(status.clone()));
    }
    loop {
        let (network, clock) = (network(), clock());
        let agent = if mistaken { system::waits() } else { agent().await };
        let pods = tokio::task::spawn_blocking(system::count).await?;
        status.send_if_modified(|old| {
            let new = Status { network, clock, agent, pods, ..old.clone() };
            *old != new && {
                *old = new;
                true
            }
        });
        let up = status.borrow().works();
        tokio::time::sleep(if up { LATER } else { SOON }).await;
    }
}

/// Addresses of real hardware.
fn network() -> String {
    let addresses = getifaddrs().into_iter().flatten().filter_map(|i| {
        let real = Path::new("/sys/class/net").join(&i.interface_name).join("device").exists();
        let of = |address: Option<nix::sys::socket::SockaddrStorage>| {
            address.and_then(|a| a.as_sockaddr_in().map(SockaddrIn::ip)).map(IpAddr::from)
        };
        let net = ipnet::IpNet::with_netmask(of(i.address)?, of(i.netmask)?).ok()?;
        real.then(|| format!("{net} on {}", i.interface_name))
    });
    let addresses: Vec<_> = addresses.collect();
    if addresses.is_empty() {
        "no address: there is no cable, or no DHCP server answers".to_owned()
    } else {
        addresses.join(", ")
    }
}

fn clock() -> String {
    if Path::new(SYNCHRONIZED).exists() {
        "set by a time server".to_owned()
    } else {
        "no time server has answered yet".to_owned()
    }
}

/// What systemd knows of the agent, which is what the agent says.
async fn agent() -> String {
    let asked = tokio::task::spawn_blocking(|| {
        let properties = ["show", "-p", "ActiveState", "-p", "StatusText", "pikelet.service"];
        let said = Command::new("systemctl").args(properties).output();
        said.map_err(|e| format!("starting systemctl: {e}")).map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
    });
    match asked.await {
        Ok(Ok(said)) => state(&said),
        Ok(Err(error)) => error,
        Err(error) => error.to_string(),
    }
}

/// The agent's state by what `systemctl show` says.
fn state(said: &str) -> String {
    let of = |name: &str| said.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default();
    match (of("ActiveState"), of("StatusText")) {
        ("active" | "activating" | "reloading", text) if !text.is_empty() => text.to_owned(),
        ("activating", _) => "the agent is being started".to_owned(),
        (state, _) => format!("the agent is {state}: journalctl -u pikelet says more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_speaks_for_itself_while_it_runs() {
        assert_eq!(state("ActiveState=active\nStatusText=Ready\n"), "Ready");
        assert_eq!(state("StatusText=waits for s\nActiveState=activating\n"), "waits for s");
        assert_eq!(
            state("ActiveState=failed\nStatusText=Ready\n"),
            "the agent is failed: journalctl -u pikelet says more"
        );
        assert!(state("ActiveState=activating\nStatusText=\n").contains("being started"));
    }
}
