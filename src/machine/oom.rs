//! Processes that the kernel ended as the whole machine ran out of memory, by what it says in its log (`/dev/kmsg`).
//!
//! Each is told of once: how far the log was read is kept while the machine is up, and only written when there was one. So
//! one that took the agent itself is told of by the next agent.
#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::warn;

use crate::files::{self, Durability};

/// The kernel's log.
const LOG: &str = "/dev/kmsg";
/// The largest message there is (`PRINTK_MESSAGE_MAX` and what is put before it).
const MESSAGE: usize = 8192;
/// Records that are read in one go.
const AT_ONCE: usize = 256;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Between two looks at a log that goes on and on.
const PAUSE: Duration = Duration::from_secs(1);

/// A process the kernel ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Victim {
    /// Its program's name.
    pub name: String,
    /// Its process id.
    pub pid: String,
}

/// The process the machine has lost, if this message of the kernel says so: "Out of memory: Killed process 1 (init) ...", or
/// "Kill process" before Linux 5.0. Kills within a cgroup that has a limit begin with "Memory cgroup out of memory". Nothing
/// else of what the kernel says about a kill counts, as it may be left out (it limits how often it says the rest) or have a
/// program's name in it, which that program chose.
fn victim(message: &str) -> Option<Victim> {
    let message = message.strip_prefix("Out of memory")?;
    let (_, killed) = message.split_once("Killed process ").or_else(|| message.split_once("Kill process "))?;
    let (pid, rest) = killed.split_once(" (")?;
    let name = rest.split_once(')').map_or(rest, |(name, _)| name);
    Some(Victim { name: name.to_owned(), pid: pid.to_owned() })
}

/// Number and text of a record: `priority,number,time,flags;text`, and lines of what it is about.
fn record(bytes: &[u8]) -> Option<(u64, String)> {
    let text = String::from_utf8_lossy(bytes);
    let (head, text) = text.split_once(';')?;
    let number = head.split(',').nth(1)?.parse().ok()?;
    Some((number, text.lines().next().unwrap_or_default().to_owned()))
}

/// Follows the log for ever; `seen` is where it is kept how far it was read.
pub async fn watch(seen: &Path, tell: impl FnMut(Victim)) {
    if let Err(error) = follow(Path::new(LOG), seen, tell).await {
        warn!(%error, "{LOG} is not read: no Event will tell of processes that end as the machine is out of memory");
    }
}

async fn follow(log: &Path, seen: &Path, mut tell: impl FnMut(Victim)) -> io::Result<()> {
    let log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(log)?;
    // SAFETY: the descriptor is the file's own, which is owned by what is made of it, and stays open as long.
    let log = unsafe { AsyncFd::register_with_interest(log, Interest::READABLE) }?;
    // the numbers begin anew with each boot
    let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
    let of_boot = |text: String| text.strip_prefix(boot.trim())?.trim().parse::<u64>().ok();
    let mut told = fs::read_to_string(seen).ok().and_then(of_boot);
    let mut bytes = vec![0; MESSAGE];
    loop {
        let mut ready = log.readable().await?;
        let (before, mut left) = (told, AT_ONCE);
        while left > 0 {
            let Some((number, text)) = next(ready.get_inner(), &mut bytes)? else { break };
            if let Some(victim) = victim(&text).filter(|_| told.is_none_or(|told| number > told)) {
                told = Some(number);
                tell(victim);
            }
            left -= 1;
        }
        if let Some(number) = told.filter(|_| told != before) {
            let text = format!("{} {number}", boot.trim());
            if let Err(error) = files::write(seen, text.as_bytes(), 0o600, Durability::Volatile) {
                warn!(%error, file = %seen.display(), "an agent that starts again will tell of it again");
            }
        }
        if left == 0 {
            ready.retain_ready();
            tokio::task::yield_now().await;
            continue;
        }
        ready.clear_ready();
        tokio::time::sleep(PAUSE).await;
    }
}

/// The next record; `None`: none is there yet.
fn next(mut log: &File, bytes: &mut [u8]) -> io::Result<Option<(u64, String)>> {
    loop {
        match log.read(bytes) {
            // what is no record is no message of the kernel
            Ok(length) => match record(bytes.get(..length).unwrap_or_default()) {
                Some(record) => return Ok(Some(record)),
                None if length == 0 => return Ok(None),
                None => {}
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            // the log was faster, and some of it is lost; or a record is larger than any should be
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::EINVAL | libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Where it is kept below `<state>` how far the log was read.
pub fn place(state_dir: &Path) -> PathBuf {
    state_dir.join("kmsg")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn only_the_machines_own_are_told_of() {
        let of = |message: &str| victim(message).map(|v| format!("{} {}", v.name, v.pid));
        let killed = "Out of memory: Killed process 42 (stress) total-vm:1kB, anon-rss:1kB, UID:0";
        assert_eq!(of(killed).as_deref(), Some("stress 42"));
        assert_eq!(of("Memory cgroup out of memory: Killed process 43 (stress) total-vm:1kB"), None);
        // Linux 4, which says it twice
        let old = "Out of memory: Kill process 45 (a b) score 1 or sacrifice child";
        assert_eq!(of(old).as_deref(), Some("a b 45"));
        assert_eq!(of("Killed process 45 (a b) total-vm:1kB"), None);
        assert_eq!(of("Out of memory and no killable processes..."), None);
        // a program's name is no words of the kernel's
        assert_eq!(of("x: Out of memory: Killed process 1 (init)"), None);
    }

    #[test]
    fn records_are_read() {
        let bytes = b"6,339,5140900,-;NET: Registered protocol\n SUBSYSTEM=net\n";
        assert_eq!(record(bytes), Some((339, "NET: Registered protocol".to_owned())));
        assert_eq!(record(b"none"), None);
    }

    /// A FIFO stands for the log: each write is read as one record.
    #[tokio::test]
    async fn each_is_told_of_once_by_agents_that_follow_each_other() {
        let dir = std::env::temp_dir().join(format!("pikelet-kmsg-{}", std::process::id()));
        files::dir(&dir, 0o700).unwrap();
        let (log, seen) = (dir.join("log"), dir.join("seen"));
        nix::unistd::mkfifo(&log, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut writer = OpenOptions::new().read(true).write(true).open(&log).unwrap();
        let found = Arc::new(Mutex::new(Vec::new()));
        for (numbers, expected) in [([10, 11], vec!["11"]), ([10, 11], vec!["11"]), ([12, 13], vec!["11", "13"])] {
            let (log, seen, found) = (log.clone(), seen.clone(), found.clone());
            let all = found.clone();
            let following =
                tokio::spawn(async move { follow(&log, &seen, |victim| all.lock().unwrap().push(victim.pid)).await });
            let killed = format!("Out of memory: Killed process {} (x)", numbers[1]);
            for (number, text) in numbers.into_iter().zip(["x invoked oom-killer:", &killed]) {
                io::Write::write_all(&mut writer, format!("6,{number},1,-;{text}\n").as_bytes()).unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
                if number == numbers[0] {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            tokio::time::sleep(PAUSE).await;
            following.abort();
            assert_eq!(*found.lock().unwrap(), expected);
        }
        // of another boot, whose numbers were larger
        fs::write(&seen, "another-boot 99").unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let all = told.clone();
        let following = tokio::spawn(async move { follow(&log, &seen, |v| all.lock().unwrap().push(v.pid)).await });
        io::Write::write_all(&mut writer, b"6,5,1,-;Out of memory: Killed process 7 (x)\n").unwrap();
        tokio::time::sleep(PAUSE).await;
        following.abort();
        assert_eq!(*told.lock().unwrap(), ["7"]);
        fs::remove_dir_all(dir).unwrap();
    }
}
