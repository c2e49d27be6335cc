//! The host's resolv.conf: which file it is, and when it is another one.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use inotify::{Inotify, WatchMask};
use tokio::sync::watch as channel;

use super::resolv::{Parsed, too_much};

/// The host's own, and what systemd-resolved keeps behind its stub.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// Writers may take more than one step.
const SETTLE: Duration = Duration::from_millis(200);
/// Links followed from one file to the next.
const LINKS: usize = 8;

/// True when pods can ask all of its name servers: as k3s decides which file counts.
fn serves_pods(text: &str) -> bool {
    let servers = Parsed::of(text).servers;
    let reachable =
        |server: &String| server.parse::<IpAddr>().is_ok_and(|ip| !ip.is_loopback() && !ip.is_unspecified());
    !servers.is_empty() && servers.iter().all(reachable)
}

/// Of these texts the first that pods can use; when there is none, the first with what pods cannot reach left out, if that
/// leaves anything.
fn choose(texts: &[String]) -> String {
    if let Some(text) = texts.iter().find(|text| serves_pods(text)) {
        return text.clone();
    }
    let first = texts.first().cloned().unwrap_or_default();
    let of_host = |line: &&str| {
        let mut words = line.split_whitespace();
        let server = words.next().filter(|w| *w == "nameserver").and_then(|_| words.next());
        !server.is_some_and(|s| s.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()))
    };
    let rest = first.lines().filter(of_host).fold(String::new(), |rest, line| rest + line + "\n");
    if Parsed::of(&rest).servers.is_empty() { first } else { rest }
}

/// The text pods get their name servers from; empty where there is none. That of the file `set`, which counts as it is, or of
/// none where `set` is empty.
pub fn host_resolv_conf(set: Option<&Path>) -> String {
    let read = |file: &Path| fs::read_to_string(file).unwrap_or_default();
    match set {
        Some(file) if file.as_os_str().is_empty() => String::new(),
        Some(file) => read(file),
        None => choose(&FILES.map(|file| read(Path::new(file)))),
    }
}

/// What of that text pods would not get, or why it cannot be read, in the kubelet's words (`CheckLimitsForResolvConf`).
pub fn resolv_conf_limits(set: Option<&Path>) -> Option<String> {
    if set.is_some_and(|file| file.as_os_str().is_empty()) {
        return None;
    }
    let file = set.unwrap_or(Path::new(FILES[0])).display().to_string();
    match set.map_or(Ok(()), |set| fs::File::open(set).map(drop)) {
        Err(error) => Some(format!("open {file}: {error}")),
        Ok(()) => too_much(&file, &host_resolv_conf(set)),
    }
}

/// Folders in which a change may make `file` another one: those of all links on the way, the nearest above that exists.
fn folders(file: &Path) -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::new();
    let mut file = file.to_owned();
    for _ in 0..LINKS {
        let Some(folder) = file.ancestors().skip(1).find(|folder| folder.is_dir()).map(Path::to_owned) else { break };
        folders.insert(folder);
        let Ok(target) = fs::read_link(&file) else { break };
        file = file.parent().map_or_else(|| target.clone(), |parent| parent.join(&target));
    }
    folders
}

async fn follow(files: &[PathBuf], told: impl Fn()) -> io::Result<()> {
    let inotify = Inotify::init()?;
    let mut watches = inotify.watches();
    let mask =
        WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::CREATE | WatchMask::DELETE;
    let mut changes = inotify.into_event_stream([0; 4096])?;
    loop {
        for folder in files.iter().flat_map(|file| folders(file)) {
            // one that goes in this moment is found missing at the next change
            let _ = watches.add(folder, mask);
        }
        told();
        if changes.next().await.is_none() {
            return Ok(());
        }
        tokio::time::sleep(SETTLE).await;
        while let Some(Some(_)) = changes.next().now_or_never() {}
    }
}

/// How often is looked where the kernel tells no changes: containers may have taken all inotify instances of root's.
const AGAIN: Duration = Duration::from_secs(30);

/// Makes `text` what [`host_resolv_conf`] is, whenever it changes.
pub async fn watch(set: Option<PathBuf>, text: channel::Sender<String>) {
    let files = set.as_ref().map_or_else(|| FILES.map(PathBuf::from).to_vec(), |file| vec![file.clone()]);
    if files.iter().all(|file| file.as_os_str().is_empty()) {
        return;
    }
    let told = || {
        let now = host_resolv_conf(set.as_deref());
        text.send_if_modified(|known| {
            *known != now && {
                *known = now;
                true
            }
        });
    };
    let mut said = false;
    while let Err(error) = follow(&files, told).await {
        if !said {
            tracing::warn!(%error, every = AGAIN.as_secs(), ?files, "no changes of the resolv.conf are told: it is looked at");
            said = true;
        }
        tokio::time::sleep(AGAIN).await;
        told();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn servers_that_pods_reach_go_first() {
        let [plain, stub, real, pihole] = [
            "nameserver 192.168.1.1\n",
            "nameserver 127.0.0.53\noptions edns0\n",
            "nameserver 192.168.1.2\nsearch .\n",
            "nameserver 127.0.0.1\nnameserver 9.9.9.9\n",
        ];
        let choose = |texts: [&str; 2]| choose(&texts.map(str::to_owned));
        assert_eq!(choose([plain, real]), plain);
        assert_eq!(choose([stub, real]), real);
        assert_eq!(choose(["# not 127.0.0.53\nnameserver 1.1.1.1\n", real]), "# not 127.0.0.53\nnameserver 1.1.1.1\n");
        assert_eq!(choose([pihole, ""]), "nameserver 9.9.9.9\n");
        assert_eq!(choose([stub, ""]), stub, "`pikelet check` says it");
        assert_eq!(choose(["", ""]), "");
    }

    #[test]
    fn a_file_that_is_set_counts_as_it_is() {
        let folder = crate::machine::folder::Folder::new();
        let file = folder.path().join("resolv.conf");
        crate::files::write(&file, b"nameserver 127.0.0.1\n", 0o644, crate::files::Durability::Volatile).unwrap();
        assert_eq!(host_resolv_conf(Some(&file)), "nameserver 127.0.0.1\n");
        assert_eq!(host_resolv_conf(Some(Path::new(""))), "", "as the kubelet's");
        let limits = |file: &Path| resolv_conf_limits(Some(file));
        assert_eq!([limits(&file), limits(Path::new(""))], [None, None]);
        assert!(limits(&folder.path().join("none")).unwrap().starts_with("open /"));
    }

    #[tokio::test]
    async fn links_and_their_targets_are_watched() {
        let dir = std::env::temp_dir().join(format!("pikelet-resolv-{}", std::process::id()));
        fs::create_dir_all(dir.join("etc")).unwrap();
        symlink("../run/resolve/resolv.conf", dir.join("etc/resolv.conf")).unwrap();
        let seen = std::sync::Arc::new(AtomicUsize::new(0));
        let (file, counted) = (dir.join("etc/resolv.conf"), seen.clone());
        let task = tokio::spawn(async move {
            follow(&[file], move || {
                counted.fetch_add(1, Ordering::SeqCst);
            })
            .await
        });
        let told = async |at_least: usize| {
            let waited = async {
                while seen.load(Ordering::SeqCst) < at_least {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), waited).await.expect("nothing was told");
        };
        told(1).await;
        // the folder of the target comes later, as at a boot
        fs::create_dir_all(dir.join("run/resolve")).unwrap();
        told(2).await;
        tokio::time::sleep(SETTLE * 2).await;
        for step in 0..2 {
            let before = seen.load(Ordering::SeqCst);
            fs::write(dir.join("run/resolve/resolv.conf"), format!("nameserver 10.0.0.{step}\n")).unwrap();
            told(before + 1).await;
            tokio::time::sleep(SETTLE * 2).await;
        }
        let before = seen.load(Ordering::SeqCst);
        fs::write(dir.join("etc/new"), "nameserver 10.0.0.9\n").unwrap();
        fs::rename(dir.join("etc/new"), dir.join("etc/resolv.conf")).unwrap();
        told(before + 1).await;
        task.abort();
        fs::remove_dir_all(dir).unwrap();
    }
}
