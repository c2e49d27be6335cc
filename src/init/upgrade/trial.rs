//! What a system on trial does, and what its end means to the other one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::choice::{Choice, Set};
use super::record::{Record, State};
use super::{FOLDER, install};
use crate::init::status::Status;
use crate::init::{BOOT, Failure, boot, console, log};

/// How long a new system has, when the settings do not say.
pub const LIMIT: Duration = Duration::from_mins(10);
/// How long it has to be Ready before it is believed.
const SETTLED: Duration = Duration::from_secs(20);

/// A new system, which is this one.
pub struct Trial {
    set: Set,
    record: Option<Record>,
}

/// In the initramfs, as soon as there is a card: the other system is started next, whatever becomes of this one. True when
/// this is its first start.
pub fn take_back() -> Result<bool, Failure> {
    match Choice::read(Path::new(BOOT))?.taken_back() {
        None => Ok(false),
        Some(back) => boot::writable(|| back.write(Path::new(BOOT))).map(|()| true),
    }
}

/// Whether this system is on trial, and what there is to say: of this trial, or of one that failed.
pub fn begin(cmdline: &str) -> Result<(Option<Trial>, String), Failure> {
    let Some(running) = Set::running(cmdline) else { return Ok((None, String::new())) };
    let choice = Choice::read(Path::new(BOOT))?;
    let folder = Path::new(FOLDER);
    // of an upgrade that the power ended
    install::clear()?;
    let record = Record::read(folder);
    if choice.trial == Some(running) {
        let system = record.as_ref().map(|r| format!(" ({})", r.system)).unwrap_or_default();
        let text = format!("system {}{system} is being tried", running.folder());
        return Ok((Some(Trial { set: running, record }), text));
    }
    let Some(failed) = choice.trial else {
        if let Err(error) = install::sweep(running) {
            log::line(&format!("upgrade: {error}"));
        }
        if let Some(record) = record.filter(|r| r.state == State::Trying) {
            unfinished(record, running, folder)?;
        }
        return Ok((None, String::new()));
    };
    let mut record = record;
    if let Some(record) = &mut record {
        if record.state == State::Trying {
            "it ended before the Node was Ready".clone_into(&mut record.reason);
        }
        record.state = State::Failed;
        record.write(folder)?;
    }
    boot::writable(|| Choice { next: running, trial: None }.write(Path::new(BOOT)))?;
    let (system, reason) = record.map(|r| (format!(" ({})", r.system), r.reason)).unwrap_or_default();
    let text =
        format!("FAILED: system {}{system}: {reason}; this is system {} again", failed.folder(), running.folder());
    Ok((None, text))
}

/// The power failed at one of two moments: before the choice, and nothing was tried, or after it was confirmed.
fn unfinished(mut record: Record, running: Set, folder: &Path) -> Result<(), Failure> {
    if record.set == running.folder() {
        record.state = State::Confirmed;
        return record.write(folder);
    }
    record.state = State::Failed;
    "the power failed before it was tried".clone_into(&mut record.reason);
    // then it may be asked for once more
    record.asked = record.asked.filter(|asked| *asked != record.sha256);
    record.write(folder)
}

impl Trial {
    /// Confirms this system once the Node is Ready, or the pods of a board without a cluster are up; asks for a `restart`,
    /// with the old system, when that takes longer than the limit.
    pub async fn keep(self, status: watch::Sender<Status>, limit: Duration, restart: Arc<Notify>) {
        let (mut seen, mut mistaken) = (status.subscribe(), status.subscribe());
        let works = async {
            // it ends with this process only
            while seen.wait_for(Status::works).await.is_ok() {
                if timeout(SETTLED, seen.wait_for(|now| !now.works())).await.is_err() {
                    return;
                }
            }
        };
        let reason = tokio::select! {
            () = works => None,
            Ok(found) = mistaken.wait_for(|now| !now.mistakes.is_empty()) => found.mistakes.first().cloned(),
            () = tokio::time::sleep(limit) => {
                Some(format!("not Ready {} s after its start: {}", limit.as_secs(), status.borrow().agent))
            }
        };
        let set = self.set.folder();
        let Some(reason) = reason else {
            let text = match tokio::task::spawn_blocking(move || self.confirm()).await {
                Ok(Ok(())) => format!("system {set} works, and is confirmed"),
                Ok(Err(error)) => format!("system {set} works, but was not confirmed: {error}"),
                Err(error) => error.to_string(),
            };
            log::line(&text);
            status.send_modify(|s| s.upgrade = text);
            return;
        };
        let text = format!("system {set} failed: {reason}: back to system {}", self.set.other().folder());
        log::line(&text);
        console::say(&format!("pikelet: {text}"));
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || self.fail(reason)).await {
            log::line(&error.to_string());
        }
        restart.notify_one();
    }

    fn confirm(self) -> Result<(), Failure> {
        boot::writable(|| Choice { next: self.set, trial: None }.write(Path::new(BOOT)))?;
        self.tell(State::Confirmed, String::new())
    }

    fn fail(self, reason: String) -> Result<(), Failure> {
        self.tell(State::Failed, reason)
    }

    fn tell(self, state: State, reason: String) -> Result<(), Failure> {
        self.record.map_or(Ok(()), |record| Record { state, reason, ..record }.write(Path::new(FOLDER)))
    }
}
