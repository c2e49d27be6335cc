//! The card's settings file: what of it is the board's, what the agent's, and what is wrong with it.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::debian::access::{self, Wifi};
use super::secrets;
use super::upgrade::Permit;
use crate::config::{Config, duration, mistake};
use crate::image::Registries;

/// The file on the FAT partition.
pub const FILE: &str = "pikelet.yaml";
/// Largest file that is read.
const MAX: u64 = 1 << 20;
/// Keys of the file that are the board's; all others are the agent's.
const BOARD: [&str; 12] = [
    "network",
    "timeServers",
    "time-servers",
    "registries",
    "watchdog",
    "upgradeTimeout",
    "upgradeKey",
    "allowUpgrades",
    "keepSecretsOnCard",
    "keepChanges",
    "wifi",
    "sshKey",
];

/// Which system is on the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// pikelet, and nothing else.
    Appliance,
    /// Debian's, with systemd.
    Debian,
}

/// What the card says of the board.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Board {
    /// Fixed address; without one DHCP is asked.
    pub network: Fixed,
    /// Time servers; without any those that DHCP names, then the default ones.
    #[serde(alias = "time-servers")]
    pub time_servers: Vec<String>,
    /// As `registries.yaml` of k3s.
    pub registries: Option<Value>,
    /// Whether the hardware restarts a board that is stuck [default: true].
    pub watchdog: Option<bool>,
    /// How long a new system has until the Node is Ready, such as `10m`.
    upgrade_timeout: Option<String>,
    /// Key with which upgrades are signed that the Node's annotation asks for.
    upgrade_key: Option<String>,
    /// Who may ask for one without a signature.
    allow_upgrades: Option<String>,
    /// Whether secrets stay in the file [default: true]; else they are moved to the data partition once they are used.
    pub keep_secrets_on_card: Option<bool>,
    /// Whether changes of Debian's system outlive a restart [default: false].
    pub keep_changes: Option<bool>,
    /// See [`Wifi`]; not in the appliance.
    wifi: Option<Value>,
    /// Public keys with which root may log in; not in the appliance.
    ssh_key: Option<Value>,
}

/// `network` of the card.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Fixed {
    /// Which interface; without one the first with a cable.
    pub interface: Option<String>,
    /// Address and length of the network's prefix.
    pub address: Option<IpNet>,
    /// Way to the rest of the world.
    pub gateway: Option<IpAddr>,
    /// Name servers.
    pub name_servers: Vec<IpAddr>,
}

/// Settings as they were found, and all that is wrong with them.
#[derive(Debug, Default)]
pub struct Found {
    /// The board's.
    pub board: Board,
    /// How long a new system has until the Node is Ready, if the file says.
    pub upgrade_timeout: Option<Duration>,
    /// Who may ask for an upgrade by the Node's annotation.
    pub permit: Permit,
    /// The wireless network, where there can be one.
    pub wifi: Option<Wifi>,
    /// Keys with which root may log in, where that is possible.
    pub keys: Vec<String>,
    /// The agent's file.
    pub agent: String,
    /// The board has no cluster.
    pub standalone: bool,
    /// The Node's name, if the file gives one.
    pub name: Option<String>,
    /// Mistakes; with any the agent is not started.
    pub mistakes: Vec<String>,
}

/// Reads the file in `folder`; `kept` are secrets that were moved out of it, which count if that is still wanted.
pub fn read(folder: &Path, kept: &str, variant: Variant) -> Found {
    let path = folder.join(FILE);
    let text = match std::fs::metadata(&path) {
        Ok(found) if found.len() > MAX => Err(format!("it has {} bytes, {MAX} are allowed", found.len())),
        _ => std::fs::read(&path)
            .map_err(|e| e.to_string())
            .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is no text in UTF-8".to_owned())),
    };
    match text {
        Ok(text) => {
            let found = understand(&text, variant);
            if found.board.keep_secrets_on_card == Some(false) {
                understand(&secrets::with(&text, kept), variant)
            } else {
                found
            }
        }
        Err(error) => Found { mistakes: vec![format!("{FILE}: {error}")], ..Found::default() },
    }
}

/// The setting that a line begins: one that is not indented, unless it goes on with a list or ends a brace.
pub fn key(line: &str) -> Option<&str> {
    let begins = line.chars().next().is_some_and(|c| !c.is_whitespace() && !"-#}]".contains(c));
    begins.then(|| line.split(':').next().unwrap_or_default().trim().trim_matches(['"', '\'']))
}

/// The board's lines and the agent's, each in its place, so that mistakes are told with their line.
fn split(text: &str) -> (String, String) {
    let (mut board, mut agent) = (String::new(), String::new());
    let mut of_board = false;
    for line in text.lines() {
        if let Some(key) = key(line) {
            of_board = BOARD.contains(&key);
        }
        let (own, other) = if of_board { (&mut board, &mut agent) } else { (&mut agent, &mut board) };
        own.push_str(line);
        own.push('\n');
        other.push('\n');
    }
    (board, agent)
}

/// Reads both parts, and says all that is wrong at once.
pub(super) fn understand(text: &str, variant: Variant) -> Found {
    // what an editor of another system puts there
    let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let (board, agent) = split(&text);
    let mut mistakes = Vec::new();
    let mut wrong = |what: String| mistakes.push(format!("{FILE}: {what}"));
    let board: Board = if written(&board) {
        serde_saphyr::from_str(&board).unwrap_or_else(|error| {
            wrong(mistake::explain(&error));
            Board::default()
        })
    } else {
        Board::default()
    };
    let (mut wifi, mut keys) = (None, Vec::new());
    match variant {
        Variant::Appliance => {
            if board.wifi.is_some() {
                wrong("wifi: this image has no WiFi: connect the board by cable".to_owned());
            }
            if board.ssh_key.is_some() {
                wrong("sshKey: this image has no SSH server: use kubectl exec, or kubectl debug node/NAME".to_owned());
            }
            if board.keep_changes.is_some() {
                wrong(
                    "keepChanges: this image has no system that could be changed: it is for that with Debian"
                        .to_owned(),
                );
            }
        }
        Variant::Debian => {
            for (name, set) in [
                ("upgradeTimeout", board.upgrade_timeout.is_some()),
                ("upgradeKey", board.upgrade_key.is_some()),
                ("allowUpgrades", board.allow_upgrades.is_some()),
            ] {
                if set {
                    wrong(format!("{name}: this image is not upgraded by pikelet: use apt, with keepChanges: true"));
                }
            }
            wifi = board.wifi.as_ref().and_then(|value| Wifi::read(value).map_err(&mut wrong).ok());
            keys = board.ssh_key.as_ref().and_then(|v| access::keys(v).map_err(&mut wrong).ok()).unwrap_or_default();
            for server in &board.time_servers {
                if host_and_port(server).1.is_some_and(|port| port != "123") {
                    wrong(format!("timeServers: {server:?}: systemd-timesyncd asks at port 123 only"));
                }
            }
        }
    }
    if let Some(registries) = &board.registries
        && let Err(what) = serde_json::from_value(registries.clone())
            .map_err(|e| mistake::explain_value(&e))
            .and_then(|r: Registries| r.check())
    {
        wrong(format!("registries: {what}"));
    }
    if let Some(what) = board.network.mistake() {
        wrong(what);
    }
    for server in &board.time_servers {
        if server.is_empty() || server.contains(char::is_whitespace) {
            wrong(format!("timeServers: {server:?} is no name or address"));
        }
    }
    let upgrade_timeout = board.upgrade_timeout.as_deref().and_then(|text| {
        duration("upgradeTimeout", text).map_err(|error| wrong(error.to_string())).ok().filter(|limit| !limit.is_zero())
    });
    let permit = Permit::of(board.upgrade_key.as_deref(), board.allow_upgrades.as_deref());
    let permit = permit.map_err(&mut wrong).unwrap_or_default();
    if board.keep_secrets_on_card == Some(false)
        && let Some(what) = secrets::mistake(&text)
    {
        wrong(what.to_owned());
    }
    let mut standalone = false;
    let name = match Config::check(&agent) {
        Ok((config, named)) => {
            standalone = config.join.is_none();
            if config.join.is_none() && config.manifests.folder.is_none() && config.manifests.remote.is_none() {
                wrong("no server is set: the board does not know which cluster it belongs to".to_owned());
            }
            named.then_some(config.node.name)
        }
        Err(error) => {
            wrong(error.to_string());
            None
        }
    };
    Found { board, upgrade_timeout, permit, wifi, keys, agent, standalone, name, mistakes }
}

/// A server's name or address without brackets, and its port if there is one: `a`, `a:1`, `[fd00::1]:1`, `fd00::1`.
pub(super) fn host_and_port(server: &str) -> (&str, Option<&str>) {
    match server.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host.trim_matches(['[', ']']), Some(port)),
        _ => (server.trim_matches(['[', ']']), None),
    }
}

/// What is wrong with a settings file of this text.
pub fn mistakes(text: &str, variant: Variant) -> Vec<String> {
    understand(text, variant).mistakes
}

/// True when there is more than comments.
fn written(text: &str) -> bool {
    text.lines().any(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#'))
}

impl Fixed {
    fn mistake(&self) -> Option<String> {
        let Some(address) = self.address else {
            let rest = self.gateway.is_some();
            return rest.then(|| "network: gateway goes with an address, such as 192.168.1.20/24".to_owned());
        };
        if address.prefix_len() == address.max_prefix_len() {
            return Some(format!("network: {address} has no network: it is written such as 192.168.1.20/24"));
        }
        let gateway = self.gateway?;
        (!address.contains(&gateway)).then(|| format!("network: gateway {gateway} is not in the network of {address}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn understand(text: &str) -> Found {
        super::understand(text, Variant::Appliance)
    }

    const GOOD: &str = "# comment\nserver: https://s:6443\ntoken: abcdef.0123456789abcdef\nnodeName: pi\nnetwork:\n  \
                        address: 10.0.0.2/24\n  gateway: 10.0.0.1\n\n# about time\ntimeServers:\n- a\n- b:1\n\
                        nodeLabels: {a: b}\n";

    #[test]
    fn the_board_has_its_part_and_the_agent_the_rest() {
        let found = understand(GOOD);
        assert_eq!(found.mistakes, Vec::<String>::new());
        assert_eq!(found.name.as_deref(), Some("pi"));
        assert_eq!(found.board.time_servers, ["a", "b:1"]);
        assert_eq!(found.board.network.address.unwrap().to_string(), "10.0.0.2/24");
        assert!(found.agent.contains("nodeLabels") && !found.agent.contains("network"));
        let of_windows = understand(&format!("\u{feff}{}", GOOD.replace('\n', "\r\n")));
        assert_eq!(of_windows.mistakes, Vec::<String>::new());
    }

    #[test]
    fn all_mistakes_are_told_with_their_lines() {
        let with = |more: &str| understand(&format!("{GOOD}{more}")).mistakes.join("\n");
        assert!(
            with("tokn: x\n").contains("line 14: there is no setting \"tokn\": did you mean \"token\"?"),
            "{}",
            with("tokn: x\n")
        );
        assert!(with("upgradeTimeout: soon\n").contains("upgradeTimeout \"soon\": it is a duration"));
        assert!(with("upgradeKey: AAAA\n").contains("upgradeKey: it is an Ed25519 key"));
        assert!(with("allowUpgrades: all\n").contains("allowUpgrades \"all\": it is annotation"));
        assert_eq!(understand(&format!("{GOOD}allowUpgrades: annotation\n")).permit, Permit::Annotation);
        assert_eq!(understand(GOOD).permit, Permit::Nobody);
        assert!(with("wifi: {ssid: a}\n").contains("no WiFi"));
        assert!(with("sshKey: ssh-ed25519 A\n").contains("no SSH server"));
        assert!(with("registries: {mirors: {}}\n").contains("registries: unknown field `mirors`"));
        assert!(with("registries: [\n").contains("pikelet.yaml"));
        assert!(with("register-with-taints: [a]\n").contains("register-with-taints"));
        assert!(with("keepChanges: true\n").contains("keepChanges: this image has no system"));
        let braces = understand("{server: s, token: abcdef.0123456789abcdef}\nkeepSecretsOnCard: false\n");
        assert!(braces.mistakes.join("\n").contains("one setting a line"), "{:?}", braces.mistakes);
        let two = with("wifi: 1\nsshKey: 2\n");
        assert_eq!(two.lines().count(), 2);
        assert!(understand("").mistakes[0].contains("no server is set"));
        let address = |text: &str| understand(&format!("server: s\nnetwork: {text}\n")).mistakes.join("\n");
        assert!(address("{address: 10.0.0.2}").contains("pikelet.yaml"));
        assert!(address("{address: 10.0.0.2/24, gateway: 10.0.1.1}").contains("not in the network"));
        assert!(address("{gateway: 10.0.1.1}").contains("goes with an address"));
        assert!(address("{adress: 10.0.0.2/24}").contains("adress"));
    }

    #[test]
    fn debian_has_more_ways_in_and_no_upgrades() {
        let with = |more: &str| {
            super::understand(&format!("{}{more}", GOOD.replace("b:1", "b")), Variant::Debian).mistakes.join("\n")
        };
        assert!(
            with("upgradeTimeout: 5m\n").contains("upgradeTimeout: this image is not upgraded by pikelet: use apt")
        );
        assert!(with("sshKey: 7\n").contains("sshKey: 7 is no text"));
        assert!(with("sshKey:\n- {a: b}\n").contains("sshKey: "));
        assert!(with("wifi: {ssid: a, passwort: b}\n").contains("wifi: unknown field `passwort`"));
        assert_eq!(with("wifi: {ssid: a, password: '12345678'}\nkeepChanges: true\n"), "");
        let time = |server: &str| {
            super::understand(
                &format!("server: https://s:6443\ntoken: abcdef.0123456789abcdef\ntimeServers: ['{server}']\n"),
                Variant::Debian,
            )
            .mistakes
            .join("\n")
        };
        assert!(time("a:1123").contains("port 123 only") && time("[fd00::1]:124").contains("port 123 only"));
        assert_eq!([time("a:123"), time("fd00::124"), time("a")].concat(), "");
    }
}
