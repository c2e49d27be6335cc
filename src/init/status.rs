//! How the board is: what the console shows and the card's status file says.

use std::collections::VecDeque;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::machine::board::Board;
use crate::service;

/// Warnings that are kept.
const WARNINGS: usize = 5;

/// What there is to say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// `Raspberry Pi 3 Model B`.
    pub model: String,
    /// The board's serial number.
    pub serial: String,
    /// The Node's name.
    pub node: String,
    /// What is wrong with the settings file.
    pub mistakes: Vec<String>,
    /// Address, interface and where it is from; or why there is none.
    pub network: String,
    /// Where the time is from; or why it is not right.
    pub clock: String,
    /// What the agent says of itself.
    pub agent: String,
    /// How many pods there are; `None` while no agent answers.
    pub pods: Option<Pods>,
    /// The board has no cluster: its pods are those of manifests.
    pub standalone: bool,
    /// What came of an upgrade.
    pub upgrade: String,
    /// The last warnings of agent and system.
    pub warnings: VecDeque<String>,
}

/// Pods, by what they do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pods {
    /// Those that run.
    pub running: usize,
    /// Those that have not come so far.
    pub waiting: usize,
    /// All there are.
    pub all: usize,
}

impl Status {
    /// True when the board does what it is for: its Node is Ready; without a cluster, its pods are up.
    pub fn works(&self) -> bool {
        let up = self.standalone && self.agent == service::UP && self.pods.is_some_and(|pods| pods.waiting == 0);
        up || self.agent.starts_with(READY)
    }

    /// Adds a warning; the oldest one goes.
    pub fn warn(&mut self, text: &str) {
        if self.warnings.len() == WARNINGS {
            self.warnings.pop_front();
        }
        self.warnings.push_back(text.to_owned());
    }

    /// The lines, a heading before each. `all`: with what changes often.
    pub fn text(&self, all: bool) -> String {
        let mut text = format!("pikelet {}\n", env!("CARGO_PKG_VERSION"));
        let mut line = |name: &str, value: &str| {
            if !value.is_empty() {
                // writing to a String cannot fail
                let _ = writeln!(text, "{name:<10}{value}");
            }
        };
        line("board", &format!("{}, serial {}", self.model, self.serial));
        line("node", &self.node);
        line("network", &self.network);
        line("clock", &self.clock);
        line("state", &self.agent);
        line("upgrade", &self.upgrade);
        if let Some(pods) = self.pods.filter(|_| all) {
            line("pods", &format!("{} running of {}", pods.running, pods.all));
        }
        if self.mistakes.is_empty() {
            line("settings", "no mistakes");
        }
        for mistake in &self.mistakes {
            line("MISTAKE", mistake);
        }
        // what went wrong on the way to a good state is of no interest there
        if all || !self.agent.starts_with(READY) {
            for warning in &self.warnings {
                line("warning", warning);
            }
        }
        text
    }
}

/// What the agent's state begins with when the Node is ready.
pub const READY: &str = "Ready";

/// Model and serial number from the device tree; the serial number of a machine that has none is its first network
/// card's address.
pub fn board() -> (String, String) {
    let Board { model, serial, .. } = Board::read(Path::new("/"));
    let mac = || {
        let mut names: Vec<_> = fs::read_dir("/sys/class/net").ok()?.flatten().map(|e| e.path()).collect();
        names.sort();
        let mac =
            names.iter().filter(|n| n.join("device").exists()).find_map(|n| fs::read_to_string(n.join("address")).ok());
        mac.map(|m| m.trim().replace(':', ""))
    };
    let serial = Some(serial).filter(|s| !s.bytes().all(|b| b == b'0')).or_else(mac);
    let model = if model.is_empty() { "unknown board".to_owned() } else { model };
    (model, serial.unwrap_or_else(|| "unknown".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_said_and_old_warnings_go() {
        let mut status = Status { mistakes: vec!["a".into(), "b".into()], ..Status::default() };
        for n in 0..9 {
            status.warn(&format!("w{n}"));
        }
        let text = status.text(false);
        assert!(text.contains("MISTAKE   a\nMISTAKE   b\n") && text.contains("w8") && !text.contains("w3"));
        assert!(!text.contains("no mistakes"));
        status.agent = "Ready".into();
        assert!(!status.text(false).contains("w8") && status.text(true).contains("w8"));
    }

    #[test]
    fn a_board_works_when_its_node_or_its_pods_do() {
        let at = |agent: &str, standalone, waiting| {
            let pods = Some(Pods { waiting, ..Pods::default() });
            Status { agent: agent.into(), standalone, pods, ..Status::default() }.works()
        };
        assert!(at("Ready", false, 3) && !at("not Ready: network", false, 0) && !at("running", false, 0));
        assert!(at("running", true, 0) && !at("running", true, 1) && !at("", true, 0));
        assert!(!Status { agent: "running".into(), standalone: true, ..Status::default() }.works());
    }
}
