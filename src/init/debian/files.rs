//! What settings mean to Debian: the files and units they become. Pure rules.

use std::fmt::Write;

use super::access::Wifi;
use crate::init::settings::{Fixed, Found, host_and_port};

/// The folder of what multi-user.target wants.
pub const WANTED: &str = "/etc/systemd/system/multi-user.target.wants";

const REGISTRIES: &str = "/etc/pikelet/registries.yaml";
const ETHERNET: &str = "/etc/systemd/network/10-card-ethernet.network";
const WIRELESS: &str = "/etc/systemd/network/20-card-wifi.network";
const TIME: &str = "/etc/systemd/timesyncd.conf.d/card.conf";
const WATCHDOG: &str = "/etc/systemd/system.conf.d/card-watchdog.conf";
const SUPPLICANT: &str = "/etc/wpa_supplicant/wpa_supplicant-wlan0.conf";
const KEYS: &str = "/root/.ssh/authorized_keys";
/// Seconds until the hardware restarts a board that is stuck; the Raspberry Pi's can count to 15.
const STUCK: &str = "15";

/// A file that the card's settings make.
#[derive(Debug, PartialEq, Eq)]
pub struct File {
    /// Where.
    pub path: &'static str,
    /// For whom.
    pub mode: u32,
    /// What it says; without that there is none, also where one was kept from an earlier start.
    pub text: Option<String>,
}

/// All the files there may be; `node` is the machine's name.
pub fn of(found: &Found, node: &str) -> Result<Vec<File>, serde_json::Error> {
    let board = &found.board;
    let all = |path, text| File { path, mode: 0o644, text };
    let root = |path, text| File { path, mode: 0o600, text };
    // which of the two a fixed address is for
    let by_air = board.network.interface.as_deref().is_some_and(|name| name.starts_with("wl"));
    let other = Fixed { name_servers: board.network.name_servers.clone(), ..Fixed::default() };
    let (wire, air) = if by_air { (&other, &board.network) } else { (&board.network, &other) };
    let own_time = !board.time_servers.is_empty();
    let servers: Vec<_> = board.time_servers.iter().map(|s| host_and_port(s).0).collect();
    // systemd's own habit is to arm it for a restart
    let stuck = if board.watchdog.unwrap_or(true) { STUCK } else { "off" };
    Ok(vec![
        all("/etc/hostname", Some(format!("{node}\n"))),
        all("/etc/hosts", Some(format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {node}\n"))),
        root(crate::init::agent::SETTINGS, Some(found.agent.clone())),
        all(ETHERNET, Some(network(wire, "Type=ether\nKind=!*", own_time))),
        root(SUPPLICANT, found.wifi.as_ref().map(Wifi::supplicant)),
        all(WIRELESS, found.wifi.as_ref().map(|_| network(air, "Type=wlan", own_time))),
        all(TIME, own_time.then(|| format!("[Time]\nNTP={}\n", servers.join(" ")))),
        all(WATCHDOG, Some(format!("[Manager]\nRuntimeWatchdogSec={stuck}\nRebootWatchdogSec={stuck}\n"))),
        root(REGISTRIES, board.registries.as_ref().map(serde_json::to_string).transpose()?),
        root(KEYS, (!found.keys.is_empty()).then(|| found.keys.join("\n") + "\n")),
    ])
}

/// Units that the settings decide about, and whether they are started.
pub fn units(found: &Found) -> [(&'static str, bool); 3] {
    [
        ("pikelet.service", found.mistakes.is_empty()),
        ("ssh.service", !found.keys.is_empty()),
        ("wpa_supplicant@wlan0.service", found.wifi.is_some()),
    ]
}

/// For systemd-networkd.
fn network(fixed: &Fixed, kind: &str, own_time: bool) -> String {
    let which = fixed.interface.as_ref().map_or_else(|| kind.to_owned(), |name| format!("Name={name}"));
    let mut text = format!("[Match]\n{which}\n\n[Network]\n");
    let mut set = |key: &str, value: &dyn std::fmt::Display| {
        // writing to a String cannot fail
        let _ = writeln!(text, "{key}={value}");
    };
    match fixed.address {
        Some(address) => set("Address", &address),
        None => set("DHCP", &"yes"),
    }
    if let Some(gateway) = fixed.gateway {
        set("Gateway", &gateway);
    }
    for server in &fixed.name_servers {
        set("DNS", server);
    }
    // wires first
    let metric = if kind == "Type=wlan" { "\nRouteMetric=600" } else { "" };
    let dns = if fixed.name_servers.is_empty() { "yes" } else { "no" };
    let time = if own_time { "no" } else { "yes" };
    if fixed.address.is_none() {
        let _ = write!(text, "\n[DHCPv4]\nClientIdentifier=mac\nUseHostname=no\nUseDNS={dns}\nUseNTP={time}{metric}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::settings::{Variant, understand};

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA me";

    fn text(settings: &str, path: &str) -> Option<String> {
        let found =
            understand(&format!("server: https://s:6443\ntoken: abcdef.0123456789abcdef\n{settings}"), Variant::Debian);
        assert_eq!(found.mistakes, Vec::<String>::new());
        of(&found, "pi").unwrap().into_iter().find(|f| f.path == path).and_then(|f| f.text)
    }

    #[test]
    fn addresses_are_the_networks() {
        let dhcp = text("", ETHERNET).unwrap();
        assert!(dhcp.contains("Type=ether\n") && dhcp.contains("DHCP=yes\n") && dhcp.contains("UseNTP=yes\n"));
        let fixed = "network: {address: 10.0.0.2/24, gateway: 10.0.0.1, nameServers: [10.0.0.3], interface: eth0}";
        let fixed = text(fixed, ETHERNET).unwrap();
        assert_eq!(fixed, "[Match]\nName=eth0\n\n[Network]\nAddress=10.0.0.2/24\nGateway=10.0.0.1\nDNS=10.0.0.3\n");
        let air = "wifi: {ssid: home, password: '12345678'}\nnetwork: {address: 10.0.0.2/24, interface: wlan0}";
        assert!(text(air, WIRELESS).unwrap().contains("Address=10.0.0.2/24\n"));
        assert!(text(air, ETHERNET).unwrap().contains("DHCP=yes\n"));
        assert_eq!(text("", WIRELESS), None);
    }

    #[test]
    fn what_is_not_set_has_no_file() {
        assert_eq!(text("", TIME), None);
        assert_eq!(
            text("timeServers: [a, '10.0.0.1:123', 'fd00::123']", TIME).unwrap(),
            "[Time]\nNTP=a 10.0.0.1 fd00::123\n"
        );
        assert!(text("", WATCHDOG).unwrap().contains("RebootWatchdogSec=15\n"));
        assert!(text("watchdog: false", WATCHDOG).unwrap().contains("RebootWatchdogSec=off\n"));
        assert_eq!(text("", KEYS), None);
        assert_eq!(text(&format!("sshKey: {KEY}"), KEYS).unwrap(), format!("{KEY}\n"));
    }

    #[test]
    fn with_a_mistake_all_but_the_agent_is_started() {
        let found = understand(&format!("servr: s\nsshKey: {KEY}\n"), Variant::Debian);
        let started: Vec<_> = units(&found).into_iter().filter(|(_, wanted)| *wanted).collect();
        assert_eq!(started, [("ssh.service", true)]);
    }
}
