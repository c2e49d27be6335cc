//! The board's consoles: lines on each, and a screen of the board's status where there is one.

use std::fs::{self, OpenOptions};
use std::io::Write;

use tokio::sync::watch;

use super::status::Status;

/// The screen, whose console is `tty0`.
const SCREEN: &str = "/dev/tty1";

/// Consoles of the kernel but the screen, which has its own ways.
fn lines() -> Vec<String> {
    let names = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let names: Vec<_> = names.split_whitespace().filter(|n| *n != "tty0").map(|n| format!("/dev/{n}")).collect();
    // before there is a /sys
    if names.is_empty() { vec!["/dev/console".to_owned()] } else { names }
}

fn write(device: &str, text: &str) {
    // a console that cannot be written to has nobody who reads
    let _ = OpenOptions::new().write(true).open(device).and_then(|mut console| console.write_all(text.as_bytes()));
}

/// Says a line on every console.
pub fn say(line: &str) {
    for device in lines().iter().map(String::as_str).chain([SCREEN]) {
        write(device, &format!("{line}\r\n"));
    }
}

/// Shows the status on every console when it changes: drawn over on the screen, what is new elsewhere.
pub async fn show(mut status: watch::Receiver<Status>) {
    let mut shown = Vec::new();
    loop {
        let text = status.borrow_and_update().text(true);
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        write(SCREEN, &format!("\x1b[H\x1b[J{}", text.replace('\n', "\r\n")));
        for line in lines.iter().filter(|l| !shown.contains(*l)) {
            for device in self::lines() {
                write(&device, &format!("{line}\r\n"));
            }
        }
        shown = lines;
        if status.changed().await.is_err() {
            return;
        }
    }
}
