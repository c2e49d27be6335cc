//! What is said of a clock that is wrong: certificates do not hold before their time, so a node waits for the right one.

use jiff::Timestamp;
use tracing::warn;

use super::complaint::Complaint;
use super::https::{self, Trust};
use crate::machine::clock::Floor;

/// In every message about it.
const WAITING: &str = "waiting for time";

/// What this machine takes for the time: boards without a clock of their own begin in 1970.
pub(super) fn clock() -> String {
    format!("and the clock of this machine says {:.0}: {WAITING}", Timestamp::now())
}

/// What is said when the node's certificate is not valid yet.
pub(super) fn too_early(from: Timestamp) -> String {
    format!("this node's certificate holds from {from} on, {}", clock())
}

/// An error when the clock is behind what this machine has seen before.
pub(super) fn not_behind(floor: Option<&Floor>) -> Result<(), String> {
    let behind = floor.and_then(Floor::contradiction);
    behind.map_or(Ok(()), |why| Err(format!("{why}, {}", clock())))
}

/// Says why membership is not had yet, when it is due; of a wrong clock also what time `server` (a URL) has.
pub(super) async fn complain(complaint: &mut Complaint, error: &str, server: &str) {
    let waiting = error.contains(WAITING);
    // the time in the message is always another one
    if !complaint.is_due(if waiting { WAITING } else { error }) {
        return;
    }
    let hint = if waiting { hint(server).await.unwrap_or_default() } else { String::new() };
    warn!(error = format!("{error}{hint}"), server, "membership of the cluster: trying again");
}

/// The time of a server that nobody vouches for, as certificates cannot be checked.
async fn hint(server: &str) -> Option<String> {
    let client = https::client(Trust::Anybody, None).ok()?;
    let date = https::get(&client, &format!("{server}/version")).await.ok()?.date?;
    Some(format!(
        "; {server} says it is {date:.0}, which nobody vouches for: if that is right, date -s @{} sets it",
        date.as_second()
    ))
}
