//! The manifests of a folder, watched with inotify.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::{FutureExt, StreamExt};
use inotify::{EventStream, Inotify, WatchMask};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{KINDS, Origin, StaticUpdate, parse};

use crate::files;

/// Editors write in steps: a folder is read this long after a change.
const SETTLE: Duration = Duration::from_millis(50);

/// Names, sizes and times of what a folder holds.
fn print(dir: &Path) -> Vec<(PathBuf, u64, Option<SystemTime>)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| {
        let meta = fs::metadata(entry.path()).ok();
        (entry.path(), meta.as_ref().map_or(0, fs::Metadata::len), meta.and_then(|m| m.modified().ok()))
    };
    let mut found: Vec<_> = entries.map(of).collect();
    found.sort();
    found
}

/// What the kernel tells of a folder.
type Changes = EventStream<[u8; 4096]>;

/// Reads the folder, and again after every change in it; `check` says how often it is looked at should none be told.
pub(super) async fn keep(dir: &Path, check: Duration, node: &str, tx: &mpsc::Sender<StaticUpdate>) {
    if let Err(error) = files::dir_kept(dir, 0o700) {
        warn!(dir = %dir.display(), %error, "manifest folder not made");
    }
    watch(dir, check, node, tx, changes).await;
}

fn changes(dir: &Path) -> io::Result<Changes> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
    inotify.watches().add(dir, mask)?;
    inotify.into_event_stream([0; 4096])
}

async fn watch(
    dir: &Path,
    check: Duration,
    node: &str,
    tx: &mpsc::Sender<StaticUpdate>,
    open: impl Fn(&Path) -> io::Result<Changes>,
) {
    let mut known: Vec<(PathBuf, Vec<Arc<Pod>>)> = Vec::new();
    let mut changes = None;
    let mut said = false;
    loop {
        // before it is read, so that no change is missed
        if changes.is_none() {
            match open(dir) {
                Ok(told) => (changes, said) = (Some(told), false),
                // containers may have taken all there are of root's
                Err(error) if !said => {
                    let every = check.as_secs();
                    warn!(dir = %dir.display(), %error, every, "no changes of the manifest folder are told: it is looked at");
                    said = true;
                }
                Err(_) => {}
            }
        }
        let look = print(dir);
        known = read_dir(dir, node, &known);
        let pods = known.iter().flat_map(|(_, pods)| pods.clone()).collect();
        if tx.send(StaticUpdate { source: KINDS[0], pods }).await.is_err() {
            return;
        }
        loop {
            let told = async {
                match &mut changes {
                    Some(changes) => changes.next().await,
                    None => std::future::pending().await,
                }
            };
            match tokio::time::timeout(check, told).await {
                Ok(None) => changes = None,
                Ok(Some(_)) => break,
                // some file systems (NFS) tell no changes, and a folder that was replaced tells none any more
                Err(_) if print(dir) != look => break,
                Err(_) => {}
            }
        }
        tokio::time::sleep(SETTLE).await;
        // what was told meanwhile is read at once, not once for each file
        while let Some(Some(Some(_))) = changes.as_mut().map(|changes| changes.next().now_or_never()) {}
    }
}

/// Every manifest of the folder; one with a mistake is said, and its last good version kept.
fn read_dir(dir: &Path, node: &str, known: &[(PathBuf, Vec<Arc<Pod>>)]) -> Vec<(PathBuf, Vec<Arc<Pod>>)> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.sort();
    files.retain(|f| f.is_file() && f.file_name().is_some_and(|n| !n.as_encoded_bytes().starts_with(b".")));
    let mut found = Vec::new();
    for file in files {
        match fs::read_to_string(&file)
            .map_err(|e| e.to_string())
            .and_then(|text| parse(&text, Origin::File(&file), node))
        {
            Ok(pods) => found.push((file, pods)),
            Err(error) => {
                warn!(file = %file.display(), error, "manifest not used");
                found.extend(known.iter().find(|(f, _)| *f == file).cloned());
            }
        }
    }
    info!(dir = %dir.display(), manifests = found.len(), "manifests read");
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::folder::Folder;

    #[tokio::test]
    async fn a_folder_of_which_nothing_is_told_is_looked_at() {
        let folder = Folder::new();
        let dir = folder.path().to_owned();
        let (tx, mut rx) = mpsc::channel(4);
        let none = |_: &Path| Err(io::Error::from_raw_os_error(nix::libc::EMFILE));
        let place = dir.clone();
        let watching = tokio::spawn(async move { watch(&place, Duration::from_millis(20), "pi", &tx, none).await });
        assert!(rx.recv().await.unwrap().pods.is_empty());
        let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: i}]}\n";
        fs::write(dir.join("web.yaml"), manifest).unwrap();
        let changed = tokio::time::timeout(Duration::from_secs(20), rx.recv()).await;
        assert_eq!(changed.expect("the change was never seen").unwrap().pods.len(), 1);
        watching.abort();
    }

    #[tokio::test]
    async fn many_files_at_once_are_not_read_once_for_each() {
        let dir = std::env::temp_dir().join(format!("pikelet-manifests-{}", std::process::id()));
        let (tx, mut rx) = mpsc::channel(1000);
        let folder = dir.clone();
        tokio::spawn(async move { keep(&folder, Duration::from_mins(1), "pi", &tx).await });
        assert!(rx.recv().await.unwrap().pods.is_empty());
        for i in 0..200 {
            let manifest = format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{i}}}\nspec: {{containers: [{{name: c, image: x}}]}}"
            );
            fs::write(dir.join(format!("{i}.yaml")), manifest).unwrap();
        }
        let mut reads = 1;
        while rx.recv().await.unwrap().pods.len() < 200 {
            reads += 1;
        }
        tokio::time::sleep(SETTLE * 40).await;
        while rx.try_recv().is_ok() {
            reads += 1;
        }
        fs::remove_dir_all(&dir).unwrap();
        assert!(reads < 10, "read {reads} times");
    }
}
