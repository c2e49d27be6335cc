//! Upgrades of the appliance that the Node's annotation asks for, and what came of them, as Events.
//!
//! Who may write the annotation is whoever may patch `nodes` or `nodes/status`; that is no right to change a board's system,
//! which the card's settings give (`init/upgrade/permit.rs`). An image is tried once: what was tried is on record, until the
//! annotation is taken away.

use std::path::Path;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::watch;
use tracing::warn;

use crate::cluster::{EventRecorder, NodeSeen};
use crate::init::upgrade::{self, FOLDER, Permit, Record, Source, State, UNFIT};

/// How often the end of a trial is looked for; that is minutes.
const LOOK: Duration = Duration::from_secs(5);
/// Waits after an upgrade that could not be begun: they double, from the first to the last.
const FIRST_WAIT: Duration = Duration::from_mins(1);
const LAST_WAIT: Duration = Duration::from_hours(1);

/// Follows the annotation for ever; on machines other than the appliance it is let be.
pub async fn follow(events: EventRecorder, mut seen: watch::Receiver<Option<NodeSeen>>) {
    if !upgrade::is_possible() {
        return;
    }
    tell(&events).await;
    let mut wait = FIRST_WAIT;
    loop {
        let wanted = seen.borrow_and_update().as_ref().map(|node| node.upgrade.clone());
        let failed = match &wanted {
            // the Node was not seen yet
            None => false,
            Some(None) => {
                forget();
                false
            }
            Some(Some(image)) => begin(image, &events).await,
        };
        let changed = async {
            while seen.changed().await.is_ok() {
                if seen.borrow().as_ref().map(|node| node.upgrade.clone()) != wanted {
                    return true;
                }
            }
            false
        };
        tokio::select! {
            more = changed => if more { wait = FIRST_WAIT } else { return },
            () = tokio::time::sleep(wait), if failed => wait = (wait * 2).min(LAST_WAIT),
        }
    }
}

/// Says how the last upgrade ended, once.
async fn tell(events: &EventRecorder) {
    let folder = Path::new(FOLDER);
    while let Some(mut record) = Record::read(folder).filter(|record| !record.told) {
        let system = format!("system {} ({}) of {}", record.set, record.system, record.image);
        match record.state {
            State::Trying => {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            State::Confirmed => events.node_event("Normal", "Upgraded", format!("{system} works, and is confirmed")),
            State::Failed => {
                events.node_event("Warning", "UpgradeFailed", format!("{system} failed: {}", record.reason));
            }
        }
        record.told = true;
        if let Err(error) = record.write(folder) {
            return warn!(error, "cannot record that the upgrade's result was reported: its Event may come again");
        }
    }
}

/// A new annotation may name any image again.
fn forget() {
    if let Err(error) = Record::forget_asked(Path::new(FOLDER)) {
        warn!(error, "an earlier upgrade is not forgotten: its image is not tried again");
    }
}

/// Begins the upgrade, unless it is not allowed or that image was tried; true when it failed, and may not another time. The board is restarted
/// by the command.
async fn begin(image: &str, events: &EventRecorder) -> bool {
    let failed = |why: String| events.node_event("Warning", "UpgradeFailed", format!("{image}: {why}"));
    let source = match image.parse::<Source>() {
        Ok(source) if source.sha256().is_some() => source,
        // only another annotation mends it
        wrong => {
            failed(wrong.err().unwrap_or_else(|| "it is written URL#sha256:HEX".to_owned()));
            return false;
        }
    };
    // before anything is opened or fetched
    if let Err(why) = Permit::of_card().allows(&source) {
        events.node_event("Warning", "UpgradeRefused", format!("{source}: {why}"));
        return false;
    }
    if Record::read(Path::new(FOLDER)).is_some_and(|record| source.sha256() == record.asked.as_deref()) {
        return false;
    }
    events.node_event("Normal", "UpgradeStarted", source.to_string());
    let command = ["upgrade", "--asked", "--", image];
    let ended = Command::new("/proc/self/exe").args(command).kill_on_drop(true).output().await;
    let again = !ended.as_ref().is_ok_and(|ended| ended.status.code() == Some(UNFIT.into()));
    let why = match ended {
        Ok(ended) if ended.status.success() => return false,
        Ok(ended) => String::from_utf8_lossy(&ended.stderr).lines().last().unwrap_or_default().to_owned(),
        Err(error) => error.to_string(),
    };
    failed(why);
    again
}
