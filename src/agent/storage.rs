//! Holds the agent's folders. Puts what containers write, and their logs, into memory where the settings say so: a tmpfs on
//! the folder itself, so that every path stays as it is. Where containers run the folder stays what it is until they have
//! ended.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tracing::{info, warn};

use crate::config::{Config, Place};
use crate::files;
use crate::image::{ImageStore, probe_mount};

/// What the mount table names as the source of these mounts.
const SOURCE: &str = "pikelet";

/// How often, and how long after the other, one looks whether an agent that was to end has ended.
const TRIES: u32 = 30;
const PAUSE: Duration = Duration::from_millis(100);

/// Takes the folders for this agent, before it changes anything there: two would run every pod twice.
pub async fn hold(dirs: &[&Path]) -> Result<(), String> {
    for dir in dirs {
        let mut tries = 0;
        loop {
            let other = match files::hold(dir) {
                Ok(Ok(())) => break,
                Ok(Err(other)) => other,
                Err(error) => {
                    warn!(%error, dir = %dir.display(), "not held: a second agent would not be refused");
                    break;
                }
            };
            tries += 1;
            if tries > TRIES {
                let other = other.map_or_else(|| "another agent".to_owned(), |pid| format!("the agent with pid {pid}"));
                return Err(format!(
                    "{} is used by {other}: end that one, or give this one folders of its own (--root-dir, --state-dir)",
                    dir.display()
                ));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

/// Whether `table` (proc(5), `mountinfo`) has a tmpfs of ours on `dir`, and nothing on top of it.
fn is_ours(table: &str, dir: &Path) -> bool {
    // a blank ends a field
    let dir = dir.display().to_string().replace(' ', "\\040");
    let on_dir = |line: &&str| line.split(' ').nth(4) == Some(dir.as_str());
    let kind = table.lines().rfind(on_dir).and_then(|line| line.split_once(" - "));
    kind.is_some_and(|(_, kind)| kind.starts_with(&format!("tmpfs {SOURCE} ")))
}

fn mounted(dir: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    fs::canonicalize(dir).is_ok_and(|dir| is_ours(&table, &dir))
}

fn mount_memory(dir: &Path, size: u64, flags: MsFlags) -> Result<(), String> {
    let mode = fs::metadata(dir).map_or(0o755, |m| m.mode() & 0o7777);
    let options = format!("size={size},mode={mode:o}");
    mount(Some(SOURCE), dir, Some("tmpfs"), flags | MsFlags::MS_NOATIME, Some(options.as_str()))
        .map_err(|e| format!("mounting {size} bytes of memory on {}: {e}", dir.display()))
}

/// Removes write layers whose containers are gone.
async fn sweep(dir: &Path, images: &ImageStore) -> Result<(), String> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        images.unmount(&entry.path()).await.map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Makes both folders what the settings say.
pub async fn prepare(config: &Config, images: &ImageStore) -> Result<(), String> {
    let storage = config.storage;
    let containers = config.root_dir.join("containers");
    let live = fs::read_dir(config.state_dir.join("sandboxes")).is_ok_and(|mut dir| dir.next().is_some());
    for (dir, place, layers) in [(&containers, storage.containers, true), (&config.logs_dir, storage.logs, false)] {
        match (place, mounted(dir)) {
            (Place::Disk, false) => {}
            // the size may be another one
            (Place::Memory, true) => mount_memory(dir, storage.size, MsFlags::MS_REMOUNT)?,
            _ if live => {
                warn!(dir = %dir.display(), "containers run: it moves between disk and memory at a start with none, such as the next boot");
            }
            (Place::Memory, false) => {
                files::dir(dir, 0o700).map_err(|e| format!("creating {}: {e}", dir.display()))?;
                if layers {
                    sweep(dir, images).await?;
                } else if fs::read_dir(dir).is_ok_and(|mut dir| dir.next().is_some()) {
                    info!(dir = %dir.display(), "older logs stay on the disk, below those in memory");
                }
                mount_memory(dir, storage.size, MsFlags::empty())?;
                if layers {
                    probe_mount(&dir.join(".probe")).map_err(|e| format!("containerStorage: memory: {e}"))?;
                }
            }
            (Place::Disk, true) => {
                if layers {
                    sweep(dir, images).await?;
                }
                umount2(dir, MntFlags::empty()).map_err(|e| format!("unmounting {}: {e}", dir.display()))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_agents_own_mounts_are_taken_for_such() {
        let table = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                     30 22 0:25 / /var/log rw,noatime shared:5 - tmpfs log2ram rw\n\
                     31 22 0:26 / /var/log/pods rw,noatime shared:6 - tmpfs pikelet rw,size=65536k\n\
                     32 22 0:27 / /a\\040b rw - tmpfs pikelet rw\n";
        let ours = |dir: &str| is_ours(table, Path::new(dir));
        assert!(ours("/var/log/pods") && ours("/a b"));
        assert!(!ours("/var/log") && !ours("/") && !ours("/var/log/pods/x"));
        let over = format!("{table}33 31 0:28 / /var/log/pods rw - ext4 /dev/sdb rw\n");
        assert!(!is_ours(&over, Path::new("/var/log/pods")));
    }
}
