//! `pikelet leave`: what `pikelet join`, and a node's life in its cluster, left on this machine and in the cluster.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::client::{Failure, block_on};
use super::drain::drain;
use super::join::{read, token_file};
use super::{Outcome, unit};
use crate::cluster::{Join, Leaver, member};
use crate::config::{Config, DEFAULT_FILE, Settings, edit};
use crate::files;
use crate::membership;
use crate::pki::write_secret;
use crate::pod::table::PodTable;
use crate::server::local;
use crate::volume::remove_tree;

/// What the agent keeps in its root directory, but for what a person put there (archives of images, seccomp profiles).
const STATE: [&str; 5] = ["pods", "containers", "objects", "images", "time"];
/// What a membership is; `kubeconfig` only if it was written by bootstrapping.
const MEMBERSHIP: [&str; 2] = ["pki", "k3s-config.json"];
/// How often, and how soon again, one looks whether an agent that was drained has ended.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(50);
/// What there is in the state directory.
const VOLATILE: [&str; 3] = ["agent.sock", "sandboxes", "network"];

/// Arguments of `pikelet leave`: the settings it joined with are in the settings file, others as for `pikelet run`.
#[derive(clap::Args)]
pub struct Args {
    /// Seconds that evicted pods have to end
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Settings file [default: /etc/pikelet/config.yaml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// What was done and what could not be.
#[derive(Default)]
struct Report(Vec<String>);

impl Report {
    fn done(&mut self, what: &str, result: Result<(), Failure>) {
        match result {
            Ok(()) => println!("{what}"),
            Err(error) => self.0.push(error.to_string()),
        }
    }
}

/// Leaves. An error names all that could not be done; the rest was.
pub fn run(args: Args) -> Outcome {
    if !nix::unistd::geteuid().is_root() {
        return Err("only root can take this machine out of its cluster: try again with sudo".into());
    }
    let file = std::path::absolute(args.config.as_deref().unwrap_or(Path::new(DEFAULT_FILE)))?;
    let text = read(&file)?;
    let config = Config::of(&file, &text, args.settings)?;
    block_on(leave(config, &file, &text, Duration::from_secs(args.timeout)))
}

async fn leave(config: Config, file: &Path, text: &str, patience: Duration) -> Outcome {
    let mut report = Report::default();
    if unit::systemd() {
        report.done("the service is not started at boot any more", unit::disable());
    }
    let leaver = leaver(&config, &mut report).await;
    let runs = local::connect(&config.state_dir).is_ok();
    if let Some(leaver) = &leaver {
        let cordoned = leaver.cordon().await.map_err(Failure::from);
        report.done(&format!("Node {} takes no new pods", leaver.node), cordoned);
        if runs {
            let left = leaver.evict(patience).await;
            if left.is_empty() {
                println!("its pods were evicted");
            }
            report.0.extend(left);
        }
    }
    if runs {
        let state_dir = config.state_dir.clone();
        // the link to the API server goes on meanwhile
        let drained = tokio::task::spawn_blocking(move || drain(&state_dir)).await?;
        // it answers before its very end, when it writes once more
        for _ in 0..TRIES {
            if local::connect(&config.state_dir).is_err() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        report.done("every pod of this node was stopped, and the agent", drained);
    }
    if unit::systemd() {
        report.done("the service is stopped", unit::remove());
    }
    if let Some(leaver) = &leaver {
        let deleted = leaver.delete_node().await.map_err(Failure::from);
        report.done(&format!("Node {} was deleted", leaver.node), deleted);
    }
    remove(&config, &mut report);
    report.done("the settings of the membership are gone", forget(file, text));
    if report.0.is_empty() { Ok(()) } else { Err(format!("not all was done:\n{}", report.0.join("\n")).into()) }
}

/// The member, if this node is one.
async fn leaver(config: &Config, report: &mut Report) -> Option<Leaver> {
    let how = config.join.as_ref()?;
    match member(how, &membership::member(config, &PodTable::default())).await {
        Ok(client) => client.map(|client| Leaver { client, node: config.node.name.clone() }),
        Err(error) => {
            report.0.push(format!("the cluster was not told: {error}"));
            None
        }
    }
}

/// Removes a file or a folder, below which nothing must stay mounted.
fn clear(path: &Path, report: &mut Report) {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => report.0.extend(remove_tree(path)),
        Ok(_) => report.0.extend(fs::remove_file(path).err().map(|e| format!("removing {}: {e}", path.display()))),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => report.0.push(format!("removing {}: {error}", path.display())),
    }
}

/// What is removed below a folder; an error when an agent never ran there, and what is there may be anybody's.
fn ours(dir: &Path, names: &[&str]) -> Result<Vec<PathBuf>, String> {
    let found: Vec<PathBuf> =
        names.iter().map(|name| dir.join(name)).filter(|path| fs::symlink_metadata(path).is_ok()).collect();
    if found.is_empty() || files::is_marked(dir) {
        return Ok(found);
    }
    let names: Vec<_> =
        found.iter().filter_map(|path| path.file_name()).map(|name| name.display().to_string()).collect();
    Err(format!(
        "{} is not marked as pikelet's (by a file .pikelet, which the agent puts there when it starts): {} in it were not \
        removed; if they are pikelet's, make that file, and leave again",
        dir.display(),
        names.join(", ")
    ))
}

/// Removes all of these in a folder that is pikelet's.
fn clear_all(dir: &Path, names: &[&str], report: &mut Report) {
    match ours(dir, names) {
        Ok(found) => found.iter().for_each(|path| clear(path, report)),
        Err(error) => report.0.push(error),
    }
}

fn remove(config: &Config, report: &mut Report) {
    let before = report.0.len();
    clear_all(&config.root_dir, &MEMBERSHIP, report);
    for kubeconfig in bootstrapped(config.join.as_ref()) {
        clear(&kubeconfig, report);
    }
    let sandboxes = config.state_dir.join("sandboxes");
    if fs::read_dir(&sandboxes).is_ok_and(|mut entries| entries.next().is_some()) {
        report.0.push(format!(
            "pods still run, with no agent that could stop them ({}): nothing of theirs was removed; start the agent \
             (`{} run`), then leave again",
            sandboxes.display(),
            std::env::current_exe().unwrap_or_default().display()
        ));
        return;
    }
    clear_all(&config.root_dir, &STATE, report);
    clear_all(&config.state_dir, &VOLATILE, report);
    for dir in [&config.root_dir, &config.state_dir] {
        if report.0.len() == before
            && let Err(error) = files::unmark(dir)
        {
            report.0.push(format!("removing the mark of {}: {error}", dir.display()));
        }
        // what a person put there keeps it
        let _ = fs::remove_dir(dir);
    }
    if report.0.len() == before {
        println!("membership and state in {} were removed", config.root_dir.display());
    }
}

/// The kubeconfig that bootstrapping wrote; others are a person's.
fn bootstrapped(how: Option<&Join>) -> Vec<PathBuf> {
    match how {
        Some(Join::Bootstrap { kubeconfig, .. }) => vec![kubeconfig.clone()],
        Some(Join::Ask { bootstrap, .. }) => bootstrapped(Some(bootstrap)),
        Some(Join::K3s { .. } | Join::Kubeconfig(_)) | None => vec![],
    }
}

/// Takes the membership out of the settings, and the token that `join` kept beside them.
fn forget(file: &Path, text: &str) -> Result<(), Failure> {
    let rest = edit::write(text, &Settings::default(), edit::membership());
    let rest = rest.map_err(|e| format!("{}: {e}", file.display()))?;
    if rest != *text {
        let done = if rest.trim().is_empty() { fs::remove_file(file) } else { write_secret(file, &rest) };
        done.map_err(|e| format!("changing {}: {e}", file.display()))?;
    }
    // a file of that name beside settings that do not name it is somebody else's
    let kept = edit::token_file(text).map_err(|e| format!("{}: {e}", file.display()))?;
    match kept.filter(|kept| *kept == token_file(file)).map(fs::remove_file) {
        Some(Err(error)) if error.kind() != ErrorKind::NotFound => {
            Err(format!("removing {}: {error}", token_file(file).display()).into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::folder::Folder;

    #[test]
    fn only_what_is_marked_is_removed() {
        let folder = Folder::new();
        let dir = folder.path();
        assert_eq!(ours(dir, &STATE), Ok(vec![]));
        files::dir(&dir.join("containers"), 0o700).unwrap();
        let error = ours(dir, &STATE).unwrap_err();
        assert!(error.contains("is not marked") && error.contains("containers in it"), "{error}");
        files::mark(dir).unwrap();
        assert_eq!(ours(dir, &STATE), Ok(vec![dir.join("containers")]));
    }

    #[test]
    fn a_token_that_the_settings_do_not_name_stays() {
        let folder = Folder::new();
        let (settings, token) = (folder.path().join("config.yaml"), folder.path().join("token"));
        let forget = |text: &str| {
            files::write(&token, b"x", 0o600, files::Durability::Volatile).unwrap();
            files::write(&settings, text.as_bytes(), 0o600, files::Durability::Volatile).unwrap();
            forget(&settings, text).unwrap();
            token.exists()
        };
        assert!(forget("nodeName: pi\n") && forget("server: https://s\ntokenFile: /elsewhere\n"));
        assert!(!forget(&format!("server: https://s\ntokenFile: {}\n", token.display())));
    }
}
