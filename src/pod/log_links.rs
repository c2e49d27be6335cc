//! `/var/log/containers/<pod>_<namespace>_<container>-<id>.log`: links to the log files, where log collectors look.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::files;

/// The links' folder: beside that of the logs.
fn dir(logs_dir: &Path) -> PathBuf {
    logs_dir.parent().unwrap_or(Path::new("/")).join("containers")
}

/// Links a container's log file; without the link the container runs all the same.
pub fn make(logs_dir: &Path, pod: &str, namespace: &str, container: &str, id: &str, log: &Path) {
    let link = dir(logs_dir).join(format!("{pod}_{namespace}_{container}-{id}.log"));
    let made = files::dir_kept(&dir(logs_dir), 0o755).and_then(|()| symlink(log, &link));
    if let Err(error) = made
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        warn!(link = %link.display(), %error, "log file not linked: log collectors may not see it");
    }
}

/// Removes every link to `logs` or below it: a log file, or the folder of a pod.
pub fn remove(logs_dir: &Path, logs: &Path) {
    for entry in fs::read_dir(dir(logs_dir)).into_iter().flatten().flatten() {
        let link = entry.path();
        if fs::read_link(&link).is_ok_and(|to| to.starts_with(logs))
            && let Err(error) = fs::remove_file(&link)
        {
            warn!(link = %link.display(), %error, "link to a log file that is gone not removed");
        }
    }
}

/// Removes links into `logs_dir` that lead nowhere: left by an agent that was cut off.
pub fn sweep(logs_dir: &Path) {
    for entry in fs::read_dir(dir(logs_dir)).into_iter().flatten().flatten() {
        let link = entry.path();
        let dangling = fs::read_link(&link).is_ok_and(|to| to.starts_with(logs_dir) && !to.exists());
        if dangling && let Err(error) = fs::remove_file(&link) {
            warn!(link = %link.display(), %error, "link that leads nowhere not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_come_and_go_with_the_logs() {
        let root = std::env::temp_dir().join(format!("pikelet-links-{}", std::process::id()));
        let logs = root.join("pods");
        let log = logs.join("ns_web_1/c/0.log");
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        fs::write(&log, "x").unwrap();
        make(&logs, "web", "ns", "c", "abc", &log);
        make(&logs, "gone", "ns", "c", "abc", &logs.join("ns_gone_2/c/0.log"));
        let names = || {
            let entries = fs::read_dir(root.join("containers")).unwrap().flatten();
            entries.map(|e| e.file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(fs::read_to_string(root.join("containers/web_ns_c-abc.log")).unwrap(), "x");
        sweep(&logs);
        assert_eq!(names(), ["web_ns_c-abc.log"]);
        remove(&logs, &logs.join("ns_web_1"));
        assert!(names().is_empty());
        fs::remove_dir_all(root).unwrap();
    }
}
